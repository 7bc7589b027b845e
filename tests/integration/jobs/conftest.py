"""The workshop and the reels: platforms for tests of whole jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from lookit_ops.demo.github_server import GitHubServer
from tests.support.faulty_github import Faults
from tests.support.reels import Reels
from tests.support.site import Site
from tests.support.workshop import REPOSITORY, Workshop, player


@pytest.fixture
def github_faults() -> Faults:
    return Faults()


@pytest.fixture
def workshop(tmp_path: Path, site: Site, engine: Engine, github_faults: Faults) -> Iterator[Workshop]:
    with GitHubServer({REPOSITORY: [player("1.0"), player("2.0")]}, on_request=github_faults) as server:
        workshop = Workshop(tmp_path / "workshop", site, engine, server)
        yield workshop
        workshop.close()


@pytest.fixture
def reels(tmp_path: Path, site: Site, engine: Engine) -> Iterator[Reels]:
    reels = Reels(tmp_path / "reels", site, engine)
    yield reels
    reels.close()
