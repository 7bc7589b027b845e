"""Dagster assets: what exists because of the jobs."""
