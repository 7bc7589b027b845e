"""A real engine with the image of the builds, and a yard with a player for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.support.docker_engine import Engine, EngineMissing, Yard, find_engine, start_engine

DEPLOYMENT = "tests"
LEFT_OUT = pytest.StashKey[str]()
_OUTPUT = "docker_tests_left_out"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without an engine all of these tests are left out at once, to be told of in one line; but not in CI."""
    wanted = [item for item in items if item.get_closest_marker("docker")]
    if not wanted or config.option.collectonly or os.environ.get("CI"):
        return
    try:
        start_engine()
    except EngineMissing as reason:
        config.stash[LEFT_OUT] = f"{len(wanted)} Docker tests were left out: {reason}"
        if (output := getattr(config, "workeroutput", None)) is not None:
            output[_OUTPUT] = config.stash[LEFT_OUT]
        config.hook.pytest_deselected(items=wanted)
        items[:] = [item for item in items if item not in wanted]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """A process of pytest-xdist has ended: what it left out is told by the one that tells of all."""
    if said := getattr(node, "workeroutput", {}).get(_OUTPUT):
        node.config.stash[LEFT_OUT] = said


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if said := config.stash.get(LEFT_OUT, ""):
        terminalreporter.write_line(said, yellow=True)


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
    yard.builder().remove_orphans(lambda request: False)
    assert left == []


@pytest.fixture
def client(docker_engine: Engine) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=docker_engine.url)
    yield client
    client.close()
