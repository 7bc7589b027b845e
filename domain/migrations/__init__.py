"""The schema's history: Alembic revisions, and the two things that people do with them."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

from domain.db import sessions_for
from domain.permissions.roles import sync_builtin_roles


def config_for(engine: Engine) -> Config:
    """Alembic's configuration for this engine; there is no alembic.ini to keep in step."""
    config = Config()
    config.set_main_option("script_location", "domain:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["engine"] = engine
    return config


def upgrade(engine: Engine) -> None:
    """Bring the schema to its newest revision, and the built-in roles up to date. Safe to run at every start."""
    command.upgrade(config_for(engine), "head")
    with sessions_for(engine).begin() as session:
        sync_builtin_roles(session)
