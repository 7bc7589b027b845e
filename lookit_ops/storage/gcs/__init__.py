"""Google Cloud Storage: its library takes more than a second to load, so only what uses it imports this."""
