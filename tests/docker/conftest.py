"""A real engine with the image of the builds, and a yard with a player for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.support.docker_engine import Engine, Yard, find_engine

DEPLOYMENT = "tests"


@pytest.fixture(scope="session")
def docker_engine() -> Engine:
    return find_engine()


@pytest.fixture(scope="session")
def image(docker_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of the real image, from the engine's cache where it was built before."""
    yard = Yard(docker_engine, DEPLOYMENT, tmp_path_factory.mktemp("image"))
    return yard.builder().prepare(yard.said.append, yard.player.folder).name


@pytest.fixture
def yard(docker_engine: Engine, image: str, tmp_path: Path) -> Iterator[Yard]:
    """One for each test; whatever way its build ends, nothing may be left on the engine."""
    yard = Yard(docker_engine, DEPLOYMENT, tmp_path)
    yield yard
    left = yard.left_on_the_engine()
    yard.builder().sweep_orphans(lambda request: False)
    assert left == []


@pytest.fixture
def client(docker_engine: Engine) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=docker_engine.url)
    yield client
    client.close()
