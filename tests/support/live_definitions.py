"""The real definitions for a real Dagster, with a short build, and gates at which a step can be held.

A step whose name stands in the file `hold` of the home writes its process into the file `held`, and waits until
`hold` is gone. Archives have steps of their own, so that a build passes where an archive is to be held.
While a file `storage-gone` is there, the bucket answers nothing.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg

from domain.requests.archives import ArchiveLedger
from domain.requests.builds import BuildLedger
from ember_build.builder import Builder
from ember_build.docker.engine import connect
from ember_build.local.builder import LocalBuilder
from ember_build.local.toolchain import Toolchain
from ember_build.source.github import GitHub
from lookit_ops.definitions import definitions
from lookit_ops.services import Services
from lookit_ops.settings import load_settings
from lookit_ops.storage.archives import ArchiveBucket, StoredPart
from lookit_ops.storage.errors import StorageError
from lookit_ops.storage.experiments import ExperimentBucket
from lookit_ops.storage.local.experiments import LocalExperimentBucket

STEPS = ("claim", "checkout", "image", "build", "upload", "page")
SECOND_PART = "000001"


class Gate:
    """Stands around a part: each call of a method waits where its step is to be held, before or after it."""

    def __init__(self, services: Services, real: Any, before: dict[str, str], after: dict[str, str]) -> None:
        self._platform, self._real = services, real
        self._before, self._after = before, after

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._real, name)
        if not callable(member):
            return member

        def call(*arguments: Any, **named: Any) -> Any:
            self._pass(self._before.get(name))
            answer = member(*arguments, **named)
            self._pass(self._after.get(name))
            return answer

        return call

    def _pass(self, step: str | None) -> None:
        if step:
            _wait_at(step, self._platform.settings.home_folder)


def _wait_at(step: str, home: Path) -> None:
    hold = home / "hold"
    while hold.exists() and hold.read_text() == step:
        (home / "held.new").write_text(str(os.getpid()))
        (home / "held.new").replace(home / "held")
        time.sleep(0.05)


class GatedEngine(Gate):
    """The builder. Where an engine is set, it must answer before each call, as for a build in containers."""

    def _pass(self, step: str | None) -> None:
        super()._pass(step)
        if url := self._platform.settings.docker_engine:
            connect(url).close()


class GatedBucket(Gate):
    """The bucket, which may also be away."""

    def _pass(self, step: str | None) -> None:
        super()._pass(step)
        if (self._platform.settings.home_folder / "storage-gone").exists():
            raise StorageError("the storage is gone")


class GatedFolder(LocalExperimentBucket):
    """The folder, where a file of the player can be held in the middle: its bytes are there, its name is not."""

    @contextmanager
    def _arriving(self, source: Path | bytes) -> Iterator[Path]:
        with super()._arriving(source) as arrived:
            if isinstance(source, Path) and source.parent.name == "assets":
                _wait_at("put", load_settings().home_folder)
            yield arrived


class GatedArchives(Gate):
    """The bucket of archives, where the second of an archive's parts can be held in its middle."""

    def put_part(self, key: str, blocks: Iterator[bytes], size_bytes: int) -> StoredPart:
        return self._real.put_part(key, self._held(blocks) if key.endswith(SECOND_PART) else blocks, size_bytes)

    def _held(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        for block in blocks:
            yield block
            self._pass("archive part")


class GatedGitHub(GitHub):
    """The GitHub client, which the job copies with other settings, so that it cannot stand behind a gate."""

    def resolve(self, *arguments: Any, **named: Any) -> Any:
        _wait_at("checkout", load_settings().home_folder)
        return super().resolve(*arguments, **named)


class LiveServices(Services):
    """The platform with a short build and gates."""

    @cached_property
    def builder(self) -> Builder:
        home = self.settings.home_folder
        real = LocalBuilder(
            home / "ember_build",
            timedelta(seconds=self.settings.build_time_limit),
            script=home / "build.sh",
            toolchain=Toolchain(key="short", bin=home / "tools"),
            grace=timedelta(seconds=0.5),
        )
        return GatedEngine(self, real, {"prepare": "image", "build": "build"}, {})  # type: ignore[return-value]

    @cached_property
    def bucket(self) -> ExperimentBucket:
        bucket = GatedBucket(self, self._open_bucket(), {"put": "upload", "write_page": "page"}, {})
        bucket.claim_environment(self.settings.environment)
        return bucket  # type: ignore[return-value]

    def _open_bucket(self) -> ExperimentBucket:
        return super()._open_bucket() if self.settings.gcs_bucket else GatedFolder(self.settings.local_bucket)

    @cached_property
    def github(self) -> GitHub:
        settings = self.settings
        return GatedGitHub(settings.github_api_url, settings.github_web_url, attempts=2, sleep=lambda _seconds: None)

    @cached_property
    def ledger(self) -> BuildLedger:
        before = {"claim": "start", "launch": "start", "finish": "finish"}
        return Gate(self, super().ledger, before, {"claim": "claim", "launch": "claim"})  # type: ignore[return-value]

    @cached_property
    def archive_ledger(self) -> ArchiveLedger:
        return Gate(self, super().archive_ledger, {}, {"claim": "archive claim"})  # type: ignore[return-value]

    def _archives(self) -> ArchiveBucket:
        return GatedArchives(self, super()._archives(), {}, {"compose": "archive joined"})  # type: ignore[return-value]


@dg.resource
def live_platform(_context: dg.InitResourceContext) -> Iterator[Services]:
    services = LiveServices(load_settings())
    yield services
    services.close()


defs = definitions(live_platform)
