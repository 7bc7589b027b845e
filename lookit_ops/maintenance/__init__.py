"""What keeps an installation tidy and true: cleanups, availability of pages, the public list, Dagster's history."""
