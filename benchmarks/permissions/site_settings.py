"""Django's settings for the peer. They are made once in a process: import the peer's side only after that."""

from __future__ import annotations

from typing import Any

import django
from django.conf import settings
from sqlalchemy.engine import make_url


def configure(url: str, *, direct_keys: bool) -> None:
    """Set Django up for the database of this URL, with django-guardian's direct foreign keys or its generic ones."""
    settings.configure(
        AUTHENTICATION_BACKENDS=[
            "django.contrib.auth.backends.ModelBackend",
            "guardian.backends.ObjectPermissionBackend",
        ],
        AUTH_USER_MODEL="studies.User",
        ANONYMOUS_USER_NAME=None,
        DATABASES={"default": _database(url)},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "guardian",
            "benchmarks.permissions.studies",
            *(["benchmarks.permissions.direct_keys"] if direct_keys else []),
        ],
        USE_TZ=True,
    )
    django.setup()


def _database(url: str) -> dict[str, Any]:
    """The same connection as ours: on SQLite our pragmas and BEGIN IMMEDIATE, on PostgreSQL prepared statements.

    Django prepares none unless it is told to; it gains a third of its time by them.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": parsed.database,
            "OPTIONS": {
                "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL",
                "timeout": 30,
                "transaction_mode": "IMMEDIATE",
            },
        }
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parsed.database,
        "USER": parsed.username,
        "PASSWORD": parsed.password or "",
        "HOST": parsed.host or parsed.query["host"],
        "PORT": parsed.port or "",
        "OPTIONS": {"server_side_binding": True, "prepare_threshold": 5},
    }
