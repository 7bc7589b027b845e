"""Alembic's entry: runs the revisions on the engine that `domain.migrations` passes in."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from domain import models as _all_models  # noqa: F401 - fills the metadata
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
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
