"""A study's files in the bucket: publishing, the commit point, manifests, rolling back, pruning."""
