"""The wiring: settings become a database, a bucket, a GitHub, a builder, a way of mail. Only here is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from domain.builds.ledger import BuildLedger
from domain.db import Sessions, engine_for, sessions_for
from domain.errors import InvalidRequest
from domain.mail.compose import Composer, Links
from domain.mail.outbox import Delivery, Transport, deliver
from domain.models import ArchiveRequest, BuildRequest
from domain.queue import RequestQueue
from ember_build.builder import Builder
from ember_build.checkouts import ArchiveLimits, Checkouts
from ember_build.errors import InvalidPlayer
from ember_build.github import GitHub, Repository, ResolvedCommit
from ember_build.local import LocalBuilder
from ember_build.room import MB, require_room
from lookit_ops.redaction import Redactor
from lookit_ops.settings import Settings
from lookit_ops.smtp import MailFolder, SmtpTransport
from lookit_ops.storage.experiments import ExperimentBucket
from lookit_ops.storage.local import LocalExperimentBucket

if TYPE_CHECKING:
    from ember_build.docker_builder import DockerBuilder


@dataclass(frozen=True)
class Platform:
    """Everything outside, made from the settings at its first use. A test passes its own parts by subclassing."""

    settings: Settings

    @cached_property
    def engine(self) -> Engine:
        """The database."""
        if self.settings.database.startswith("sqlite:///"):
            self.settings.home_folder.mkdir(parents=True, exist_ok=True)
        return engine_for(self.settings.database)

    @cached_property
    def sessions(self) -> Sessions:
        """Sessions on the database."""
        return sessions_for(self.engine)

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
        from lookit_ops.storage.gcs import GcsExperimentBucket  # Google's library takes more than a second to load
        from lookit_ops.storage.gcs_client import GcsAccess

        return GcsExperimentBucket(name, GcsAccess(self.settings.gcs_credentials_file, self.settings.gcs_endpoint))

    @cached_property
    def github(self) -> GitHub:
        """The GitHub that players come from."""
        token = self.settings.github_token
        return GitHub(
            self.settings.github_api_url,
            self.settings.github_web_url,
            token=token.get_secret_value() if token else None,
            refuse_invalid_sha=self.settings.refuse_invalid_sha,
        )

    @cached_property
    def checkouts(self) -> Checkouts:
        """The folder of checkouts."""
        limits = ArchiveLimits(archive_bytes=self.settings.archive_limit_mb * 1_000_000)
        return Checkouts(self.settings.home_folder / "ember_build" / "checkouts", self.github, limits)

    @cached_property
    def builder(self) -> Builder:
        """What builds: in containers, or without for development. Raises InvalidRequest for that in production."""
        if self.settings.builder == "docker":
            return self.docker_builder
        if self.settings.environment == "production":
            raise InvalidRequest(
                "the local builder runs a player's code without a container and refuses to work in production"
                " (LOOKIT_ENVIRONMENT=production); set LOOKIT_BUILDER=docker"
            )
        time_limit = timedelta(seconds=self.settings.build_time_limit)
        return LocalBuilder(
            self.settings.home_folder / "ember_build",
            time_limit=time_limit,
            max_output_bytes=self.settings.build_log_mb * MB,
        )

    @cached_property
    def docker_builder(self) -> DockerBuilder:
        """What builds in containers."""
        from ember_build.confinement import Limits
        from ember_build.docker_builder import DockerBuilder  # the engine's client takes a second to import

        settings = self.settings
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
            free_disk_mb=settings.free_disk_mb,
        )

    def require_room(self) -> None:
        """Make sure that a build's files find room in the home. Raises BuildPlatformError, saying what is missing."""
        require_room(self.settings.home_folder, self.settings.free_disk_mb)

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
        settings = self.settings
        if not settings.smtp_host:
            return MailFolder(settings.mails)
        password = settings.smtp_password.get_secret_value() if settings.smtp_password else ""
        return SmtpTransport(
            settings.smtp_host, settings.smtp_port, settings.smtp_security, settings.smtp_user, password
        )

    def repository(self, player_repo_url: str | None) -> Repository:
        """The player's repository: the study's, or the settings' default. Raises InvalidPlayer."""
        return Repository.parse(player_repo_url or self.settings.player_repo_url, self.settings.github_web_url)

    def trusts(self, repository: Repository) -> bool:
        """Whether the operator trusts the repository. What is built is a commit: ask `trusts_commit` for that.

        Like GitHub's own names, they are compared without regard to upper and lower case.
        """
        wanted = repository.full_name.lower()
        return any(trusted.full_name.lower() == wanted for trusted in self._trusted_repositories())

    def trusts_commit(self, commit: ResolvedCommit) -> bool:
        """Whether the commit gets secrets and the local builder: its repository is trusted, and let it in.

        GitHub serves a commit of anybody's fork under the repository's own name, so only those count that the
        repository's default branch contains. Raises BuildPlatformError if GitHub cannot tell.
        """
        return self.trusts(commit.repository) and self.github.is_on_default_branch(commit)

    def _trusted_repositories(self) -> Iterator[Repository]:
        for url in self.settings.trusted_repositories:
            # An address of another GitHub than the configured one names nothing that could be built here.
            with suppress(InvalidPlayer):
                yield Repository.parse(url, self.settings.github_web_url)

    def close(self) -> None:
        """Close the connections to the database and the bucket, if there ever were any."""
        if "bucket" in self.__dict__:
            self.bucket.close()
        if "engine" in self.__dict__:
            self.engine.dispose()

    def deliver_mails(self, limit: int = 200) -> Delivery:
        """Deliver the mails that are due, at most so many."""
        return deliver(self.sessions, self.transport, Composer(self.settings.mail_sender, self.links), limit=limit)
