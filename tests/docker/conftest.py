"""A real engine with the image of the builds, and a yard with a player for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.support.docker_engine import Yard, find_engine

DEPLOYMENT = "tests"


@pytest.fixture(scope="session")
def engine_url() -> str:
    return find_engine()


@pytest.fixture(scope="session")
def image(engine_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of the real image, from the engine's cache where it was built before."""
    yard = Yard(engine_url, DEPLOYMENT, tmp_path_factory.mktemp("image"))
    return yard.builder().prepare(yard.said.append, yard.player.folder).name


@pytest.fixture
def yard(engine_url: str, image: str, tmp_path: Path) -> Iterator[Yard]:
    """One for each test; whatever way its build ends, nothing may be left on the engine."""
    yard = Yard(engine_url, DEPLOYMENT, tmp_path)
    yield yard
    left = yard.left_on_the_engine()
    yard.builder().sweep_orphans(lambda request: False)
    assert left == []


@pytest.fixture
def client(engine_url: str) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=engine_url)
    yield client
    client.close()
