"""A real player, really built for three studies: the stamps for two of them are what their builds make."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from ember_build.builder import BuildOrder
from ember_build.docker.confinement import Limits
from ember_build.templates.folder import stamp_folder
from ember_build.templates.stamping import first_difference, read_folder
from tests.support.docker_engine import REPOSITORY, Engine, Yard

pytestmark = [pytest.mark.docker, pytest.mark.ember]
PLAYER = REPOSITORY / "examples" / "frameplayer"
LABELS = {"repository": "lookit/example-frameplayer"}


@pytest.fixture
def yard(docker_engine: Engine, image: str, tmp_path: Path, client: docker.DockerClient) -> Iterator[Yard]:
    """A deployment of its own: the three builds share their dependencies."""
    yard = Yard(docker_engine, f"stamps-{secrets.token_hex(4)}", tmp_path)
    yard.image = image
    yield yard
    yard.remove_volumes(client)


def test_two_studies_stamped_from_a_third_are_what_real_builds_make(yard: Yard) -> None:
    builder = yard.builder(limits=Limits(), seconds=900)
    first, *others = (f"/studies/{uuid.uuid4()}/" for _ in range(3))

    def build(prefix: str, name: str) -> Path:
        output = yard.root / name
        order = BuildOrder(PLAYER, prefix, {}, output, trusted=True, labels=LABELS, image=yard.image)
        builder.build(order, yard.said.append)
        return output

    template = build(first, "template")
    for number, prefix in enumerate(others):
        built = read_folder(build(prefix, f"built-{number}"))
        stamped = stamp_folder(template, first, yard.root / f"stamped-{number}", prefix)
        assert first_difference(read_folder(stamped.root), built) is None
        assert built.keys() != read_folder(template).keys()
