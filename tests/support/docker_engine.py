"""A real Docker engine for tests, and players that are built in seconds: their `ember` is a script of their own."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import docker
import pytest

from ember_build.builder import BuildOrder
from ember_build.bundle import Bundle
from ember_build.docker.builder import DockerBuilder
from ember_build.docker.confinement import Limits
from ember_build.docker.engine import filters_for

REPOSITORY = Path(__file__).parents[2]
PREFIX = "/studies/1b2c3d/"
GOOD_DIST = """
mkdir -p dist/assets
echo 'var a = 1;' > dist/assets/player.js
echo "<script src=\\"${STUDY_PREFIX}assets/player.js\\"></script>" > dist/index.html
"""
SMALL = Limits(memory_mb=900, work_mb=150, temporary_mb=100, output_mb=20, processes=150, files=20_000)
"""Limits that are reached in seconds."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that has the base images, and the registry that builds on it have to be told, if they have to."""

    url: str
    registry: str | None


class EngineMissing(Exception):
    """There is no engine, and none can be started here; the message says why."""


def start_engine() -> Engine:
    """Find or start an engine; of several processes that want one, the first starts it. Raises EngineMissing."""
    with (Path(tempfile.gettempdir()) / f"lookit-tests-docker-{os.getuid()}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        done = subprocess.run(
            [REPOSITORY / "scripts" / "docker.sh"], capture_output=True, text=True, check=False, timeout=600
        )
    if done.returncode:
        raise EngineMissing((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    told = dict(line.split("=", 1) for line in done.stdout.splitlines())
    registry = told.get("LOOKIT_BUILD_REGISTRY") or os.environ.get("LOOKIT_BUILD_REGISTRY")
    return Engine(told["DOCKER_HOST"], registry)


def find_engine() -> Engine:
    """As `start_engine` for tests: without one they are skipped, but fail in CI."""
    try:
        return start_engine()
    except EngineMissing as reason:
        if os.environ.get("CI"):
            pytest.fail(f"CI must run the Docker tests, but there is no engine: {reason}", pytrace=False)
        pytest.skip(f"the Docker tests were left out: {reason}")


class Player:
    """A checkout whose `yarn install` fetches nothing and runs `install_script`, and whose `ember` runs a script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "cli").mkdir(parents=True)
        described = {"name": "ember-cli", "version": "0.0.1", "main": "index.js", "bin": {"ember": "ember.js"}}
        (folder / "cli" / "package.json").write_text(json.dumps(described))
        # The global `ember` hands over to the ember-cli that it finds in the player.
        (folder / "cli" / "index.js").write_text(
            "module.exports = function () {\n"
            "  var done = require('child_process').spawnSync('/bin/bash', ['ember.sh'], { stdio: 'inherit' });\n"
            "  return Promise.resolve(done.status === null ? 137 : done.status);\n"
            "};\n"
        )
        # Where the image has no `ember` of its own.
        (folder / "cli" / "ember.js").write_text(
            "#!/usr/bin/env node\nrequire('./index.js')().then(function (status) { process.exit(status); });\n"
        )
        (folder / "yarn.lock").write_text('# yarn lockfile v1\n\n\n"ember-cli@file:./cli":\n  version "0.0.1"\n')
        (folder / "ember-cli-build.js").write_text("var app = { fingerprint: { prepend: '' } };\n")
        self.write()

    def share(self, postinstall: str = "exit 0") -> Player:
        """Make it one whose dependencies can be shared: without scripts of its own, with a package that has one."""
        package = {"name": "player", "version": "1.0.0", "private": True}
        wanted = {"ember-cli": "file:./cli", "dep": "file:./dep"}
        (self.folder / "package.json").write_text(json.dumps({**package, "devDependencies": wanted}))
        (self.folder / "dep").mkdir(exist_ok=True)
        own = {"name": "dep", "version": "0.0.1", "scripts": {"postinstall": "bash postinstall.sh"}}
        (self.folder / "dep" / "package.json").write_text(json.dumps(own))
        (self.folder / "dep" / "postinstall.sh").write_text(postinstall)
        lock = "".join(f'"{name}@{where}":\n  version "0.0.1"\n\n' for name, where in sorted(wanted.items()))
        (self.folder / "yarn.lock").write_text(f"# yarn lockfile v1\n\n\n{lock}")
        return self

    def write_ember(self, script: str) -> Player:
        (self.folder / "ember.sh").write_text(script)
        return self

    def write(self, ember: str = GOOD_DIST, install: str = "exit 0") -> Player:
        self.write_ember(ember)
        (self.folder / "install.sh").write_text(install)
        package = {
            "name": "player",
            "version": "1.0.0",
            "private": True,
            "scripts": {"postinstall": "bash install.sh"},
            "devDependencies": {"ember-cli": "file:./cli"},
        }
        (self.folder / "package.json").write_text(json.dumps(package))
        return self


class Yard:
    """A deployment of its own on the engine: builds players in it, and knows what is left of it there."""

    def __init__(self, engine: Engine, deployment: str, root: Path) -> None:
        self.engine = engine
        self.deployment = deployment
        self.root = root
        self.output = root / "built" / "1"
        self.said: list[str] = []
        self.player = Player(root / "checkout")
        self.image: str | None = None
        """Of another deployment; None: this one's own."""

    def builder(
        self,
        limits: Limits = SMALL,
        seconds: float = 90,
        max_output_bytes: int = 1_000_000,
        open_networks: tuple[str, ...] = (),
        on_checked: Callable[[str, str], None] | None = None,
    ) -> DockerBuilder:
        return DockerBuilder(
            self.deployment,
            engine_url=self.engine.url,
            registry=self.engine.registry,
            limits=limits,
            time_limit=timedelta(seconds=seconds),
            max_output_bytes=max_output_bytes,
            open_networks=open_networks,
            on_checked=on_checked,
        )

    def order(self, *, request: str = "1", repository: str = "", **environment: str) -> BuildOrder:
        """With a `repository`, one of a commit that is trusted."""
        return BuildOrder(
            checkout=self.player.folder,
            prefix=PREFIX,
            environment=environment,
            output=self.output,
            trusted=bool(repository),
            labels={"request": request, "study": "5b2c", **({"repository": repository} if repository else {})},
            image=self.image,
        )

    def build(
        self,
        *,
        builder: DockerBuilder | None = None,
        on_line: Callable[[str], None] | None = None,
        cancelled: threading.Event | None = None,
        **environment: str,
    ) -> Bundle:
        def hear(line: str) -> None:
            self.said.append(line)
            if on_line:
                on_line(line)

        return (builder or self.builder()).build(self.order(**environment), hear, cancelled)

    def remove_volumes(self, client: docker.DockerClient) -> None:
        """Remove what builds of this deployment have shared."""
        for volume in client.api.volumes(filters=filters_for(self.deployment)).get("Volumes") or []:
            client.api.remove_volume(volume["Name"], force=True)

    def left_on_the_engine(self) -> list[str]:
        """Names of containers, networks and volumes of this deployment."""
        client = docker.DockerClient(base_url=self.engine.url)
        try:
            filters = filters_for(self.deployment)
            names = [found["Names"][0] for found in client.api.containers(all=True, filters=filters)]
            names += [found["Name"] for found in client.api.networks(filters=filters)]
            names += [found["Name"] for found in client.api.volumes(filters=filters).get("Volumes") or []]
        finally:
            client.close()
        return names

    def nothing_is_left(self) -> bool:
        built = self.output.parent
        return self.left_on_the_engine() == [] and not (built.exists() and any(built.iterdir()))
