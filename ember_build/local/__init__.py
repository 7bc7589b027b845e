"""Builds on this machine, for development."""
