"""Processes on one machine: Dagster's own, its home, and the servers of local buckets."""
