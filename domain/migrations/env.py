"""Alembic's entry: runs the revisions on the engine that `domain.migrations` passes in, up or down.

What follows from the models' types on SQLite is taken away before a change of the schema, and put in place at its head.
"""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from domain import models as _all_models  # noqa: F401 - fills the metadata
from domain import sqlite_types
from domain.db import Base, CanonicalUuid, UtcDateTime, default_now, default_uuid

RENDERED = (CanonicalUuid, UtcDateTime, default_now, default_uuid)


def render_item(kind: str, item: Any, autogen: AutogenContext) -> str | Literal[False]:
    """Write our own types and defaults by name, so that a revision holds for both databases."""
    element = getattr(item, "arg", item)
    if isinstance(element, RENDERED):
        autogen.imports.add("from domain import db")
        return f"db.{type(element).__name__}()"
    return False


with context.config.attributes["engine"].connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_item=render_item,
        render_as_batch=connection.dialect.name == "sqlite",
        transaction_per_migration=True,
    )
    head, target = context.get_head_revision(), context.get_revision_argument()
    current = context.get_context().get_current_revision()
    if current != target:
        if target == head:
            sqlite_types.require_rows_of_the_types(connection, Base.metadata)
        sqlite_types.take_away(connection)
    connection.commit()
    with context.begin_transaction():
        context.run_migrations()
    if target == head:
        sqlite_types.put_in_place(connection, Base.metadata)
    connection.commit()
