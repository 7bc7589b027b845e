"""The schema's history: Alembic revisions, and the two things that people do with them."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, func, select

from domain.db import sessions_for
from domain.errors import InvalidRequest
from domain.permissions.roles import sync_builtin_roles

LOCK = "lookit_ops: schema and roles"
"""What the advisory lock is named after."""
WAIT_SECONDS = 600.0
_POLL_SECONDS = 0.2


def config_for(engine: Engine) -> Config:
    """Alembic's configuration for this engine; there is no alembic.ini to keep in step."""
    config = Config()
    config.set_main_option("script_location", "domain:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["engine"] = engine
    return config


def upgrade(engine: Engine) -> None:
    """Bring the schema to its newest revision, and the built-in roles up to date. Safe to run at every start.

    Of several processes that start at once, one does it and the others wait.

    Raises:
        InvalidRequest: another process has been at it for longer than `WAIT_SECONDS`.
    """
    with _alone(engine):
        command.upgrade(config_for(engine), "head")
        with sessions_for(engine).begin() as session:
            sync_builtin_roles(session)


@contextmanager
def _alone(engine: Engine) -> Generator[None]:
    """Hold the one lock of the schema: an advisory lock in PostgreSQL, a lock on a file beside a SQLite database."""
    if engine.dialect.name == "postgresql":
        key = func.hashtext(LOCK)
        with engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            _wait(lambda: bool(connection.scalar(select(func.pg_try_advisory_lock(key)))))
            try:
                yield
            finally:
                connection.execute(select(func.pg_advisory_unlock(key)))
    elif engine.url.database and not engine.url.database.startswith((":", "file:")):
        with Path(f"{engine.url.database}.upgrade-lock").open("wb") as file:
            _wait(lambda: _is_locked(file))
            yield
    else:
        yield


def _is_locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(is_locked: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not is_locked():
        if time.monotonic() > until:
            raise InvalidRequest(
                f"another process has been upgrading the database for more than {WAIT_SECONDS:,.0f} s: let it end, or"
                " stop it, and start again"
            )
        time.sleep(_POLL_SECONDS)
