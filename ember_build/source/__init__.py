"""A player's source: where it comes from, what is in it, what it asks for."""
