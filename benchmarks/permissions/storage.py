"""The sides' databases: one each, of the same kind, equally tidy before anything is measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from tests.support.databases import create_database, start_postgresql

MakeDatabase = Callable[[str], str]
"""Makes an empty database of this name, and returns its URL."""


@contextmanager
def sqlite_databases(folder: Path) -> Generator[MakeDatabase]:
    """Files in the folder."""
    yield lambda name: f"sqlite:///{folder / name}.db"


@contextmanager
def postgresql_databases(folder: Path) -> Generator[MakeDatabase]:
    """Databases of a server of our own, with its default settings."""
    with start_postgresql(folder) as server:
        yield lambda name: create_database(server, name)


def tidy(url: str) -> None:
    """Pack tables and indexes and gather statistics, as after a night without load."""
    with _connected(url) as connection:
        if connection.dialect.name == "sqlite":
            for statement in ("VACUUM", "ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)"):
                connection.execute(text(statement))
        else:
            for statement in (f"REINDEX DATABASE {make_url(url).database}", "VACUUM (ANALYZE)", "CHECKPOINT"):
                connection.execute(text(statement))


def size_of(url: str, tables: Iterable[str]) -> int:
    """Bytes of these tables with their indexes. On SQLite: of a copy of the file that holds nothing else."""
    with _connected(url) as connection:
        if connection.dialect.name != "sqlite":
            size = text("SELECT pg_total_relation_size(CAST(:name AS regclass))")
            return sum(connection.execute(size, {"name": table}).scalar_one() for table in tables)
    path = Path(str(make_url(url).database))
    copy = path.with_name(f"{path.name}.copy")
    shutil.copy(path, copy)
    with _connected(f"sqlite:///{copy}") as connection:
        names = text("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        for name in set(connection.scalars(names)) - set(tables):
            connection.execute(text(f'DROP TABLE "{name}"'))
        connection.execute(text("DROP TABLE IF EXISTS sqlite_stat1"))
        connection.execute(text("VACUUM"))
    size = copy.stat().st_size
    copy.unlink()
    return size


@contextmanager
def _connected(url: str) -> Generator[Connection]:
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        yield connection
