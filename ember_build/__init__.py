"""Source in, distribution out: a repository and a commit become a folder of static files. Knows no study, no database."""
