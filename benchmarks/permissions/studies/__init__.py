"""The peer's Django app: people, labs and studies with the same columns as ours."""
