"""The wiring: settings become a database, a bucket, a GitHub, a builder, a way of mail. Only here is chosen."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from sqlalchemy import Engine

from domain.db import Sessions, engine_for, reading, sessions_for
from domain.errors import InvalidRequest
from domain.mail.compose import Links
from domain.mail.outbox import Transport
from domain.models import ArchiveRequest, BuildRequest
from domain.requests.archive_links import ArchiveLinks
from domain.requests.archives import ArchiveLedger
from domain.requests.builds import BuildLedger
from domain.requests.queue import RequestQueue
from domain.studies.workflow import use_workflow
from ember_build.builder import Builder
from ember_build.disk import MB, require_room
from lookit_ops.redaction import Redactor
from lookit_ops.settings import Settings
from lookit_ops.storage.archives import ArchiveBucket
from lookit_ops.storage.experiments import ExperimentBucket
from lookit_ops.storage.local.archives import LocalArchiveBucket
from lookit_ops.storage.local.experiments import LocalExperimentBucket
from lookit_ops.storage.local.videos import LocalVideoBucket
from lookit_ops.storage.video_buckets import VideoBuckets
from lookit_ops.storage.videos import VideoBucket


class Closing(Protocol):
    """What holds connections."""

    def close(self) -> None: ...


ClosingT = TypeVar("ClosingT", bound=Closing)

if TYPE_CHECKING:  # imported where they are made: most commands do without
    from ember_build.docker.builder import DockerBuilder
    from ember_build.source.checkouts import Checkouts
    from ember_build.source.github import GitHub
    from lookit_ops.trust import TrustPolicy


@dataclass(frozen=True)
class Services:
    """Everything outside, made from the settings at its first use. A test passes its own parts by subclassing.

    The process goes by the settings' workflow from the start. Raises InvalidRequest if its file is malformed.
    """

    settings: Settings

    def __post_init__(self) -> None:
        if self.settings.workflow_file is not None:
            use_workflow(self.settings.workflow_file)

    @cached_property
    def engine(self) -> Engine:
        """The database. Raises InvalidRequest if its file is not there: SQLite would make an empty one."""
        file = self.settings.database_file
        if file is not None and not file.exists():
            raise InvalidRequest(
                f"there is no database {file} (LOOKIT_HOME is {self.settings.home_folder}): check LOOKIT_HOME and"
                " LOOKIT_DATABASE_URL, or make it with `lookit-ops db upgrade`"
            )
        return engine_for(self.settings.database)

    def upgrade_database(self) -> None:
        """Make the database, or bring it up to date. Raises OSError where its file cannot be."""
        from domain.migrations import upgrade

        file = self.settings.database_file
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        upgrade(self.engine)

    @cached_property
    def sessions(self) -> Sessions:
        """Sessions on the database."""
        return sessions_for(self.engine)

    @cached_property
    def reading(self) -> Sessions:
        """Sessions that read only, and so wait for no program that writes."""
        return sessions_for(reading(self.engine))

    @cached_property
    def ledger(self) -> BuildLedger:
        """The build ledger."""
        return BuildLedger(self.sessions, self.settings.retry_by)

    @cached_property
    def build_queue(self) -> RequestQueue:
        """The build requests that wait."""
        return RequestQueue(self.sessions, BuildRequest)

    @cached_property
    def archive_queue(self) -> RequestQueue:
        """The archive requests that wait."""
        return RequestQueue(self.sessions, ArchiveRequest)

    @cached_property
    def bucket(self) -> ExperimentBucket:
        """The bucket of built studies. Raises WrongEnvironment if it is another environment's, StorageError."""
        bucket = self._open_bucket()
        try:
            bucket.claim_environment(self.settings.environment)
        except BaseException:
            bucket.close()
            raise
        return bucket

    def _open_bucket(self) -> ExperimentBucket:
        name = self.settings.gcs_bucket
        if name is None:
            return LocalExperimentBucket(self.settings.local_bucket)
        from lookit_ops.storage.gcs.client import GcsAccess
        from lookit_ops.storage.gcs.experiments import (
            GcsExperimentBucket,  # Google's library takes more than a second to load
        )

        return GcsExperimentBucket(name, GcsAccess(self.settings.gcs_credentials_file, self.settings.gcs_endpoint))

    @cached_property
    def archive_ledger(self) -> ArchiveLedger:
        """The archive ledger."""
        return ArchiveLedger(self.sessions, self.settings.retry_by)

    @cached_property
    def archive_links(self) -> ArchiveLinks:
        """Who may have a link to an archive."""
        return ArchiveLinks(self.archive_ledger)

    @cached_property
    def videos(self) -> VideoBuckets:
        """The buckets of study videos."""
        settings = self.settings
        first = settings.videos_bucket or str(settings.local_videos)
        others = {address: self._video_bucket(address) for address in settings.videos_other_buckets}
        return VideoBuckets(self._video_bucket(first), others)

    def _video_bucket(self, address: str) -> VideoBucket:
        settings = self.settings
        if not address.startswith("s3://"):
            return LocalVideoBucket(Path(address))
        from lookit_ops.storage.s3 import S3Access, S3VideoBucket  # loads Amazon's library

        access = S3Access(
            region=settings.videos_region,
            endpoint=settings.videos_endpoint,
            access_key_id=settings.videos_access_key_id,
            secret_access_key=settings.videos_secret_access_key,
        )
        return self._closing(S3VideoBucket(address.removeprefix("s3://"), access))

    @cached_property
    def archives(self) -> ArchiveBucket:
        """The bucket of archives. Raises WrongEnvironment if it is another environment's."""
        bucket = self._archives()
        bucket.claim_environment(self.settings.environment)
        return bucket

    def _archives(self) -> ArchiveBucket:
        settings = self.settings
        if settings.gcs_archives is None:
            return LocalArchiveBucket(settings.local_archives, settings.archives_url)
        from lookit_ops.storage.gcs.archives import GcsArchiveBucket  # loads Google's library
        from lookit_ops.storage.gcs.client import GcsAccess

        access = GcsAccess(credentials_file=settings.gcs_credentials_file, endpoint=settings.gcs_endpoint)
        return self._closing(GcsArchiveBucket(settings.gcs_archives, access))

    @cached_property
    def github(self) -> GitHub:
        """The GitHub that players come from."""
        from ember_build.source.github import GitHub
        from lookit_ops.trust import repositories_of

        token = self.settings.github_token
        return GitHub(
            self.settings.github_api_url,
            self.settings.github_web_url,
            token=token.get_secret_value() if token else None,
            private_repositories=frozenset(
                repository.full_name.lower()
                for repository in repositories_of(
                    [*self.settings.trusted_repositories, *self.settings.private_repositories],
                    self.settings.github_web_url,
                )
            ),
            refuse_invalid_sha=self.settings.refuse_invalid_sha,
        )

    @cached_property
    def trust(self) -> TrustPolicy:
        """Which players the operator trusts."""
        from lookit_ops.trust import TrustPolicy, repositories_of

        settings = self.settings
        trusted = tuple(repositories_of(settings.trusted_repositories, settings.github_web_url))
        return TrustPolicy(self.github, settings.github_web_url, settings.player_repo_url, trusted)

    @cached_property
    def checkouts(self) -> Checkouts:
        """The folder of checkouts."""
        from ember_build.source.checkouts import ArchiveLimits, Checkouts

        limits = ArchiveLimits(archive_bytes=self.settings.archive_limit_mb * 1_000_000)
        return Checkouts(self.settings.home_folder / "ember_build" / "checkouts", self.github, limits)

    @cached_property
    def builder(self) -> Builder:
        """What builds: in containers, or without for development. Raises InvalidRequest for that elsewhere."""
        if self.settings.builder == "docker":
            return self.docker_builder
        if self.settings.environment != "development":
            raise InvalidRequest(
                "the local builder runs a player's code without a container and works in development only, not in"
                f" {self.settings.environment} (LOOKIT_ENVIRONMENT); set LOOKIT_BUILDER=docker"
            )
        from ember_build.local.builder import LocalBuilder

        time_limit = timedelta(seconds=self.settings.build_time_limit)
        return LocalBuilder(
            self.settings.home_folder / "ember_build",
            time_limit=time_limit,
            max_output_bytes=self.settings.build_log_mb * MB,
            ca_file=self.settings.build_ca_file,
        )

    @cached_property
    def docker_builder(self) -> DockerBuilder:
        """What builds in containers."""
        return _docker_builder(self.settings)

    def require_room(self) -> None:
        """Make sure that a build's files find room in the home. Raises BuildPlatformError, saying what is missing."""
        # Where they are written, a disk of its own may be mounted; the database and the folders need room, too.
        for folder in (self.settings.home_folder, self.settings.home_folder / "ember_build"):
            require_room(folder, self.settings.free_disk_mb)

    @cached_property
    def redact(self) -> Redactor:
        """Masks this platform's secrets in any text."""
        return Redactor(self.settings.secrets())

    @cached_property
    def links(self) -> Links:
        """Where the pages are that mails and runs point to."""
        settings = self.settings
        return Links(platform=settings.platform_url, studies=settings.studies_url, previews=settings.previews_url)

    @cached_property
    def transport(self) -> Transport:
        """The way of mails: an SMTP server, or a folder."""
        from lookit_ops.storage.smtp import MailFolder, SmtpTransport

        settings = self.settings
        if not settings.smtp_host:
            return MailFolder(settings.mails)
        return SmtpTransport(
            settings.smtp_host,
            settings.smtp_port,
            settings.smtp_security,
            settings.smtp_user,
            settings.smtp_password,
        )

    @cached_property
    def _open(self) -> ExitStack:
        """What is to be closed with the platform."""
        return ExitStack()

    def _closing(self, part: ClosingT) -> ClosingT:
        self._open.callback(part.close)
        return part

    def close(self) -> None:
        """Close the connections to the database and the buckets, if there ever were any."""
        self._open.close()
        if "bucket" in self.__dict__:
            self.bucket.close()
        if "engine" in self.__dict__:
            self.engine.dispose()


def _docker_builder(settings: Settings) -> DockerBuilder:
    from ember_build.docker.builder import DockerBuilder  # the engine's client takes a second to import
    from ember_build.docker.confinement import Limits

    return DockerBuilder(
        settings.deployment,
        engine_url=settings.docker_engine or None,
        limits=Limits(
            memory_mb=settings.build_memory_mb,
            work_mb=settings.build_work_mb,
            temporary_mb=settings.build_temporary_mb,
            output_mb=settings.build_output_mb,
            cpus=settings.build_cpus,
            processes=settings.build_processes,
            files=settings.build_files,
            output_files=settings.build_output_files,
            open_files=settings.build_open_files,
        ),
        time_limit=timedelta(seconds=settings.build_time_limit),
        max_output_bytes=settings.build_log_mb * MB,
        open_networks=settings.build_open_networks,
        registry=settings.build_registry or None,
        ca_file=settings.build_ca_file,
        free_disk_mb=settings.free_disk_mb,
    )
