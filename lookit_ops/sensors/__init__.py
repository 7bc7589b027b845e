"""Sensors: what happens by itself because something changed in the database."""
