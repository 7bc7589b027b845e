"""Measures what we promise to do quickly, side by side with peers: `make bench`. A benchmark is a module in here."""
