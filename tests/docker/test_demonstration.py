"""`LOOKIT_BUILDER=docker lookit-ops demo`: the example player, built and deployed in the image of production."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from ember_build.docker.engine import filters_for
from tests.e2e.conftest import free_port
from tests.support.docker_engine import Engine

pytestmark = [pytest.mark.docker, pytest.mark.ember]
DEPLOYMENT = "tests"  # so that its image comes from the cache


def test_the_demonstration_deploys_a_player_that_was_built_in_containers(
    docker_engine: Engine, image: str, tmp_path: Path
) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LOOKIT_", "DAGSTER_"))}
    environment = {
        **inherited,
        "LOOKIT_HOME": str(tmp_path / "home"),
        "LOOKIT_BUILDER": "docker",
        "LOOKIT_DOCKER_ENGINE": docker_engine.url,
        "LOOKIT_DOCKER_DEPLOYMENT": DEPLOYMENT,
        "LOOKIT_BUILD_REGISTRY": docker_engine.registry or "",
        # So that a machine for tests has it to spare; the example needs less.
        "LOOKIT_BUILD_MEMORY_MB": "3000",
        "LOOKIT_BUILD_WORK_MB": "1000",
        "LOOKIT_BUILD_TEMPORARY_MB": "1000",
    }
    program = Path(sys.executable).with_name("lookit-ops")
    try:
        done = subprocess.run(
            [program, "demo", "--repository-port", str(free_port())],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "approved → active" in done.stdout
        (page,) = (tmp_path / "home" / "buckets" / "development" / "experiments").glob("*/index.html")
        script = next(page.parent.glob("assets/frameplayer-*.js")).read_text()
        assert f"/studies/{page.parent.name}/assets/images/" in script
        log = subprocess.run(
            [program, "study", "log", page.parent.name, "--full"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "==> docker build: Node 8.2.1" in log
        first, second = log.count("from the downloads"), log.count("nothing to install")
        assert (first, second) == (1, 2), "the second build takes what the first has installed"
    finally:
        with contextlib.closing(docker.DockerClient(base_url=docker_engine.url)) as client:
            for volume in client.api.volumes(filters=filters_for(DEPLOYMENT)).get("Volumes") or []:
                client.api.remove_volume(volume["Name"], force=True)
