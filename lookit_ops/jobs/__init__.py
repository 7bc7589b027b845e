"""Dagster jobs: one file each, the order of the steps readable in one place."""
