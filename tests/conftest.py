"""What every test may ask for: databases of both kinds, a populated site in them, and an S3."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from domain.db import Sessions, engine_for, sessions_for
from tests.support.databases import POSTGRESQL, SQLITE, create_database, migrate, start_postgresql
from tests.support.s3_server import S3Server, seaweedfs
from tests.support.site import Site, populate
from tests.support.turns import WITH_DEMONSTRATION, WITH_S3, Turns


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Which tests one of several processes takes as a whole (`pytest -n 3`)."""
    return Turns(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See that tests which share something are listed: they take turns."""
    for fixture, listed in (("s3", WITH_S3), ("demonstration", WITH_DEMONSTRATION)):
        unlisted = {item.path.name for item in items if fixture in getattr(item, "fixturenames", ())} - listed
        if unlisted:
            raise pytest.UsageError(
                f"add {', '.join(sorted(unlisted))} to those with {fixture} in tests/support/turns.py"
            )


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a real PostgreSQL server that lives as long as the test run.

    Not below pytest's own folder: the next pytest that starts takes from everybody else, and so from the server's user,
    the right to enter it.
    """
    with TemporaryDirectory(prefix="lookit-postgresql-") as folder, start_postgresql(Path(folder)) as url:
        yield url


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server that lives as long as the test run; each test makes a bucket of its own."""
    with seaweedfs(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the newest schema, to be copied: migrating for each test would take most of its time."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: str) -> str:
    """The name of a PostgreSQL database with the newest schema, to be used as template."""
    migrate(create_database(postgresql_server, "lookit_template"))
    return "lookit_template"


@pytest.fixture(params=[SQLITE, POSTGRESQL])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database of each kind, with the newest schema and the built-in roles."""
    if request.param == SQLITE:
        path = tmp_path / "lookit.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        return f"sqlite:///{path}"
    template = request.getfixturevalue("postgresql_template")
    return create_database(request.getfixturevalue("postgresql_server"), f"test_{uuid4().hex}", template)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on that database."""
    engine = engine_for(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: Engine) -> Sessions:
    return sessions_for(engine)


@pytest.fixture
def site(sessions: Sessions) -> Site:
    """A lab with people in several roles and one study; see `tests/support/site.py`."""
    return populate(sessions)
