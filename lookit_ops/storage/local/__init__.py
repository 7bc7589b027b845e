"""Folders of this machine as buckets."""
