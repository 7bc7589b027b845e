"""Builds of a study, as far as the database decides them."""
