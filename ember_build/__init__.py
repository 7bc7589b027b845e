"""Source in, distribution out: a repository and a commit become static files. Knows no study and no database."""
