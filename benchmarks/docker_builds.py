"""Builds in Docker: what the shared dependencies of a trusted repository save, and what an unchanged image costs.

The example player is really built, on the engine that scripts/docker.sh finds or starts. The peer is the same build as
that of a repository that shares nothing: it downloads and installs what its lock file names.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import docker

from benchmarks.frame import BenchmarkError, Result, benchmark, compare
from ember_build.builder import BuildOrder
from ember_build.docker.builder import DockerBuilder
from ember_build.errors import NotStampable
from ember_build.templates.folder import compare_with_build, stamp_folder
from tests.support.docker_engine import Engine, EngineMissing, start_engine

DEPLOYMENT = "benchmarks"
PLAYER = Path(__file__).parents[1] / "examples" / "frameplayer"
RUNS, QUICK_RUNS = 3, 1
IMAGE_RUNS = 7


@benchmark("build.warm_dependencies")
def warm_dependencies(quick: bool) -> Iterator[Result]:
    """A second build under an unchanged lock file, beside one without anything kept."""
    with bench() as found:
        if found is None:
            return
        builds = found
        builds.seconds(trusted=True)  # fills the store
        yield compare(
            "build.warm_dependencies",
            "s",
            lambda: builds.seconds(trusted=True),
            lambda: builds.seconds(trusted=False),
            runs=QUICK_RUNS if quick else RUNS,
            peer_name="the same build with cold caches",
            note="example player, Node 8, real engine and registry",
        )


@benchmark("build.image_unchanged")
def image_unchanged(quick: bool) -> Iterator[Result]:
    """What rebuilding the image costs when nothing has changed."""
    with bench() as found:
        if found is None:
            return
        builder = found.builder
        # As in a run: the image says which request it was made for.
        yield compare(
            "build.image_unchanged",
            "s",
            lambda: builder.prepare(lambda _line: None, PLAYER, {"request": secrets.token_hex(4)}).seconds,
            None,
            runs=QUICK_RUNS if quick else IMAGE_RUNS,
            note="all layers from the engine's cache; the target is about 1 s",
        )


@benchmark("build.stamped_vs_full")
def stamped_vs_full(quick: bool) -> Iterator[Result]:
    """Stamp the bundle of one study for another one, checks included, beside a full build with warm dependencies."""
    with bench() as found:
        if found is None:
            return
        builds = found
        one, other = (f"/studies/{uuid.uuid4()}/" for _ in range(2))
        builds.seconds(trusted=True, prefix=one)
        template = builds.output
        builds.seconds(trusted=True, prefix=other)
        try:
            compare_with_build(template, one, builds.output, other)
        except NotStampable as reason:
            raise BenchmarkError(f"the stamp is not what a full build makes: {reason}") from reason

        def stamp_it() -> float:
            began = time.monotonic()
            stamp_folder(template, one, builds.folder / secrets.token_hex(4), other)
            return time.monotonic() - began

        yield compare(
            "build.stamped_vs_full",
            "s",
            stamp_it,
            lambda: builds.seconds(trusted=True, prefix=other),
            runs=QUICK_RUNS if quick else RUNS,
            peer_name="a full build, dependencies shared",
            note="example player (10 files, 0.7 MB), build step alone; the two are equal, byte for byte",
        )


SIZE_OF_THE_REAL_PLAYER = (1500, 50, 10_333)
"""Packages, files of each, bytes of each: 75,000 files and 775 MB, as `node_modules` of today's frame player."""
MADE_UP = """
mkdir -p /store/node_modules && cd /store/node_modules
head -c {bytes} /dev/urandom > /tmp/one
for package in $(seq {packages}); do
    mkdir -p $package/lib && for file in $(seq {files}); do cp /tmp/one $package/lib/$file.js; done
done
"""
CHECKOUT = "mkdir -p /checkouts && echo \"fingerprint: { prepend: '' }\" > /checkouts/ember-cli-build.js"


@benchmark("build.take_dependencies")
def take_dependencies(quick: bool) -> Iterator[Result]:
    """Take the dependencies of a player of the real size into a build's memory, beside `cp -a`."""
    with bench() as found:
        if found is None:
            return
        packages, files, size = (50, 50, 10_333) if quick else SIZE_OF_THE_REAL_PLAYER
        engine = start_engine()
        image = found.builder.prepare(lambda _line: None, PLAYER).name
        with closing(docker.DockerClient(base_url=engine.url, timeout=600)) as client, _volume(client) as store:

            def seconds(script: str, *, writable: bool = False) -> float:
                began = time.monotonic()
                client.containers.run(
                    image,
                    ["/bin/bash", "-euc", script],
                    remove=True,
                    user="root",
                    volumes={store: {"bind": "/store", "mode": "rw" if writable else "ro"}},
                    tmpfs={"/work": "size=3g"},
                    environment={
                        "CHECKOUT_DIR": "/checkouts",
                        "WORK_DIR": "/work",
                        "OUTPUT_DIR": "/output",
                        "STUDY_PREFIX": "/studies/benchmark/",
                        "ENVIRONMENT_FILE": "/environment",
                        "DEPENDENCIES_DIR": "/store",
                        "INSTALLED": "yes",
                    },
                )
                return time.monotonic() - began

            seconds(MADE_UP.format(packages=packages, files=files, bytes=size), writable=True)
            yield compare(
                "build.take_dependencies",
                "s",
                lambda: seconds(f"{CHECKOUT} && /bin/bash /build.sh dependencies"),
                lambda: seconds("cp -a /store/node_modules /work/node_modules"),
                runs=QUICK_RUNS if quick else RUNS,
                peer_name="cp -a",
                note=f"{packages * files:,} files, {packages * files * size / 1e6:,.0f} MB into memory, in a container",
            )


@contextmanager
def _volume(client: docker.DockerClient) -> Generator[str]:
    volume = client.volumes.create(f"lookit-benchmark-{secrets.token_hex(4)}")
    try:
        yield str(volume.name)
    finally:
        volume.remove(force=True)


@dataclass(slots=True)
class Builds:
    """A builder whose image is there, and a folder for what it builds."""

    builder: DockerBuilder
    folder: Path
    count: int = 0

    @property
    def output(self) -> Path:
        """What the newest build has made."""
        return self.folder / str(self.count)

    def seconds(self, *, trusted: bool, prefix: str = "/studies/benchmark/") -> float:
        """Build the player, and tell how long that took."""
        self.count += 1
        order = BuildOrder(
            checkout=PLAYER,
            prefix=prefix,
            environment={},
            output=self.output,
            trusted=trusted,
            labels={"repository": "lookit/example-frameplayer"},
        )
        began = time.monotonic()
        self.builder.build(order, lambda _line: None)
        return time.monotonic() - began


@contextmanager
def bench() -> Generator[Builds | None]:
    """A builder with nothing kept from earlier; None, with a word to the terminal, where there is no engine."""
    try:
        engine = start_engine()
    except EngineMissing as error:
        print(f"  left out, for want of a Docker engine: {error}", file=sys.stderr)
        yield None
        return
    builder = DockerBuilder(DEPLOYMENT, engine_url=engine.url, registry=engine.registry)
    builder.prepare(lambda _line: None, PLAYER)
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            _forget(engine, in_an_hour)
            yield Builds(builder, Path(folder))
        finally:
            _forget(engine, in_an_hour)


def _forget(engine: Engine, moment: datetime) -> None:
    # A builder whose builds take no time, so that nothing can be in the making.
    builder = DockerBuilder(DEPLOYMENT, engine_url=engine.url, time_limit=timedelta(0))
    builder.clean_images(moment, lambda _labels: False, dry_run=False)
    for _ in range(2):  # names of stores first, then what they named
        builder.clean_stores(moment, dry_run=False)
