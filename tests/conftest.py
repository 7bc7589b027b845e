"""What every test may ask for: databases of both kinds, and a populated site in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from domain.db import Sessions, engine_for, sessions_for
from domain.migrations import upgrade
from tests.support.databases import POSTGRESQL, SQLITE, start_postgresql
from tests.support.site import Site, populate


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL server that lives as long as the test run."""
    with start_postgresql(tmp_path_factory.mktemp("postgresql")) as url:
        yield url


@pytest.fixture(params=[SQLITE, POSTGRESQL])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == SQLITE:
        return f"sqlite:///{tmp_path / 'lookit.db'}"
    server = request.getfixturevalue("postgresql_server")
    name = f"test_{abs(hash(str(tmp_path))):x}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return server.rpartition("/")[0] + f"/{name}" if "?" not in server else server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a database with the newest schema."""
    engine = engine_for(database_url)
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: Engine) -> Sessions:
    return sessions_for(engine)


@pytest.fixture
def site(sessions: Sessions) -> Site:
    """A lab with people in several roles and one study; see `tests/support/site.py`."""
    return populate(sessions)
