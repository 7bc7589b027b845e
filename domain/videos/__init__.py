"""Exports of a study's videos, as far as the database decides them: who gets which, and what becomes of a request."""
