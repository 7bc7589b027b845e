"""Dagster sensors: what starts work without anybody watching."""
