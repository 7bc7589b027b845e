"""Adapters to the places where bundles and archives are kept, each behind a port."""
