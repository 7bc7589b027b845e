"""The peer's Django app for django-guardian's direct foreign keys; without it the keys are generic."""
