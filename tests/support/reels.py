"""A platform for tests of archives: real database, real Dagster job, videos and archives wherever a test wants them."""

from __future__ import annotations

import csv
import io
import random
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
from sqlalchemy import Engine, update

from domain.models import ArchiveKind, ArchiveRequest, RequestStatus
from domain.requests.archives import ArchiveLedger
from lookit_ops.jobs.build_zipfile_of_videos import build_zipfile_of_videos
from lookit_ops.mail_delivery import deliver_mails
from lookit_ops.resources import archive_run_resource
from lookit_ops.services import Services
from lookit_ops.settings import Settings
from lookit_ops.storage.archives import ArchiveBucket
from lookit_ops.storage.video_buckets import VideoBuckets
from lookit_ops.storage.videos import VideoBucket
from tests.support.footage import Footage
from tests.support.site import Site


@dataclass(frozen=True)
class ReelsServices(Services):
    """The platform with the test's database, and with buckets that a test may have replaced."""

    database_engine: Engine
    videos_instead: VideoBucket | None = None
    archives_instead: ArchiveBucket | None = None

    @cached_property
    def engine(self) -> Engine:
        return self.database_engine

    @cached_property
    def videos(self) -> VideoBuckets:
        return VideoBuckets(self.videos_instead) if self.videos_instead else Services.videos.func(self)

    def _archives(self) -> ArchiveBucket:
        return self.archives_instead or super()._archives()


def contents_of(number: int, size_bytes: int) -> bytes:
    """Bytes that cannot be compressed, the same for the same number."""
    return random.Random(number).randbytes(size_bytes)  # noqa: S311 - reproducible, not secret


@dataclass
class Reels:
    """One platform, the site in its database, footage in its bucket, and the job that zips it."""

    root: Path
    site: Site
    engine: Engine
    settings: dict[str, Any] = field(default_factory=dict)
    videos_bucket: VideoBucket | None = None
    archives_bucket: ArchiveBucket | None = None
    delivers: bool = True
    """Whether mails leave after each run, as the sensor sends them."""
    written: dict[str, bytes] = field(default_factory=dict)
    """What the folder of videos holds, by key."""

    @cached_property
    def services(self) -> ReelsServices:
        settings = Settings(**{"home": self.root / "home", **self.settings})
        return ReelsServices(settings, self.engine, self.videos_bucket, self.archives_bucket)

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.ephemeral()

    @property
    def footage(self) -> Footage:
        return Footage(self.site)

    @property
    def ledger(self) -> ArchiveLedger:
        return self.services.archive_ledger

    def close(self) -> None:
        if "instance" in self.__dict__:
            self.instance.dispose()

    def film(self, count: int = 3, size_bytes: int = 10_000, ruling: str = "accepted") -> list[str]:
        """Videos of one response, in the database and in the folder; returns their keys."""
        response = self.footage.response(ruling)
        keys = []
        for number in range(count):
            key = self.footage.video(response, f"{number}-frame")
            self.put(key, contents_of(len(self.written), size_bytes + number))
            keys.append(key)
        return keys

    def put(self, key: str, contents: bytes) -> None:
        """A video in the folder."""
        path = self.services.settings.local_videos / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
        self.written[key] = contents

    def request(self, kind: ArchiveKind = ArchiveKind.ALL, name_contains: str = "") -> int:
        return self.ledger.request(self.site.study_id, self.site.study_admin, kind, name_contains)

    def run(self, **config: Any) -> dg.ExecuteInProcessResult:
        """Run the job with the claim's config, as the Launchpad would; errors end the run, not the test."""
        definitions = dg.Definitions(
            jobs=[build_zipfile_of_videos],
            resources={
                "services": dg.ResourceDefinition.hardcoded_resource(self.services),
                "archive_run": archive_run_resource,
                "io_manager": dg.mem_io_manager,
            },
        )
        run = definitions.resolve_job_def("build_zipfile_of_videos").execute_in_process(
            run_config={
                "ops": {"claim": {"config": config}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            instance=self.instance,
            raise_on_error=False,
        )
        if self.delivers:
            deliver_mails(self.services)
        return run

    def archive(self, kind: ArchiveKind = ArchiveKind.ALL) -> ArchiveRequest:
        """Ask for an archive and make it; the request as it is then."""
        request_id = self.request(kind)
        self.run(request_id=request_id)
        return self.row(request_id)

    def row(self, request_id: int) -> ArchiveRequest:
        with self.site.sessions.begin() as session:
            return session.get_one(ArchiveRequest, request_id)

    def end_leases(self) -> None:
        """Let the leases of all running archives have ended, as time would."""
        running = update(ArchiveRequest).where(ArchiveRequest.status == RequestStatus.RUNNING)
        with self.site.sessions.begin() as session:
            session.execute(running.values(lease_expires_at=ArchiveRequest.claimed_at))

    def visible(self) -> list[str]:
        """The keys of what is in the bucket of archives, parts among them."""
        return [file.key for file in self.services.archives.files()]


def opened(archive: bytes) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """The members of a zip, checked, and the rows of its manifest."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        assert file.testzip() is None
        names = file.namelist()
        assert len(names) == len(set(names))
        members = {name: file.read(name) for name in names}
    rows = list(csv.DictReader(io.StringIO(members.pop("MANIFEST.csv").decode(), newline="")))
    return members, rows
