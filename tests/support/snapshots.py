"""A site and its bucket as they were after some builds, kept once and copied for each test that begins there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

from sqlalchemy.engine import make_url

from domain.db import engine_for, sessions_for
from lookit_ops.demo.github_server import GitHubServer
from tests.support.databases import SQLITE, create_database
from tests.support.site import Site, populate
from tests.support.workshop import REPOSITORY, Workshop, player

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot(Generic[T]):
    """A database and a home that nobody changes any more, and what the builds in them returned."""

    url: str
    home: Path
    ids: dict[str, int]
    made: T

    def copy_database(self, folder: Path) -> str:
        """Return the URL of a copy."""
        url = make_url(self.url)
        if url.get_backend_name() == SQLITE:
            path = folder / "lookit.db"
            shutil.copy(str(url.database), path)
            return f"sqlite:///{path}"
        server = url.set(database="postgres").render_as_string(hide_password=False)
        return create_database(server, f"test_{uuid4().hex}", str(url.database))


@dataclass
class Snapshots(Generic[T]):
    """The snapshots of one kind, by database; each is made at its first use."""

    folder: Path
    make: Callable[[Workshop], T]
    _made: dict[str, Snapshot[T]] = field(default_factory=dict)

    def of(self, database: str, url: Callable[[Path], str]) -> Snapshot[T]:
        """Return the snapshot on this kind of database; `url` makes an empty one in a folder."""
        if database not in self._made:
            folder = self.folder / database
            folder.mkdir()
            self._made[database] = self._build(folder, url(folder))
        return self._made[database]

    def _build(self, folder: Path, url: str) -> Snapshot[T]:
        engine = engine_for(url)
        site = populate(sessions_for(engine))
        with GitHubServer({REPOSITORY: [player("1.0"), player("2.0")]}) as server:
            workshop = Workshop(folder / "workshop", site, engine, server)
            made = self.make(workshop)
            workshop.close()
        engine.dispose()
        ids: dict[str, Any] = {one.name: getattr(site, one.name) for one in fields(Site) if one.name != "sessions"}
        return Snapshot(url, folder / "workshop" / "home", ids, made)
