"""Settings of builds: GitHub, trusted players, the engine, limits, and the values that a player may see."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from sqlalchemy.engine import make_url

from lookit_ops.settings.general import GeneralSettings
from lookit_ops.settings.values import (
    PREFIX,
    CommaSeparated,
    File,
    Seconds,
    WebAddress,
    check_web_address,
    without_tilde,
)

OFFICIAL_PLAYER = "https://github.com/lookit/ember-lookit-frameplayer"
LONGEST_BUILD = 3000
"""Seconds. Dagster ends a run of `build_experiment` after 3600, which also has to fetch, to check and to upload."""
MEMORY_BESIDE_FILES_MB = 500
"""What a build's processes need at the least, in MB."""
_NETWORK = re.compile(
    r"[A-Za-z0-9._-]+(/\d{1,3})?(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](/\d{1,3})?(:\d{1,5})?|[0-9A-Fa-f:.]+(/\d{1,3})?"
)


class BuildSettings(GeneralSettings):
    """What is built, where, and within which limits."""

    github_api_url: WebAddress = Field("https://api.github.com", description="Base URL of GitHub's API.")
    github_web_url: WebAddress = Field(
        "https://github.com", description="Base URL of GitHub's pages, which serve the archives."
    )
    github_token: SecretStr | None = Field(
        None, description="Token for GitHub: private players, and a higher rate limit."
    )
    player_repo_url: WebAddress = Field(OFFICIAL_PLAYER, description="Frame player of the studies that name none.")
    trusted_repositories: CommaSeparated = Field(
        default=[OFFICIAL_PLAYER],
        description="Repositories, separated by commas, that get the secrets and may be built without a container.",
    )
    private_repositories: CommaSeparated = Field(
        default=[],
        description="Private repositories, separated by commas, that may be built besides the trusted ones; families"
        " get what is built of them.",
    )
    refuse_invalid_sha: bool = Field(
        default=False,
        description="Fail a build whose SHA is invalid, instead of building the default branch and saying so.",
    )
    archive_limit_mb: int = Field(500, gt=0, description="Largest archive of a player that is downloaded, in MB.")
    build_time_limit: Seconds = Field(
        1800,
        le=LONGEST_BUILD,
        description="Seconds after which a build is stopped; at most 3000, to fit into the hour of a run.",
    )
    builder: Literal["local", "docker"] = Field(
        "local",
        description="`docker`: builds run in containers. `local`: without, for trusted repositories in development.",
    )
    docker_engine: str = Field(
        "", description="Address of the Docker engine; empty: DOCKER_HOST, or the usual socket of this machine."
    )
    docker_deployment: str = Field(
        "",
        pattern=r"^([a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?)?$",
        description="Name that keeps apart what several installations have on one engine; empty: made of environment"
        " and database.",
    )
    build_open_networks: CommaSeparated = Field(
        default=[],
        description="Networks, addresses or names that builds may reach besides public ones, while they fetch.",
    )
    build_registry: str = Field(
        "", description="Base URL of the npm registry that builds in Docker fetch from; empty: the clients' own."
    )
    build_ca_file: File = Field(
        None, description="PEM file with certificate authorities that builds trust besides the usual ones."
    )
    build_memory_mb: int = Field(7000, gt=0, description="Memory of one build in MB, its files included.")
    build_work_mb: int = Field(3000, gt=0, description="Room for the player and its node_modules, in MB of memory.")
    build_temporary_mb: int = Field(2500, gt=0, description="Room for temporary files, in MB of memory.")
    build_output_mb: int = Field(300, gt=0, description="Largest bundle, in MB of memory.")
    build_output_files: int = Field(20_000, gt=0, description="Most files of a bundle.")
    build_files: int = Field(500_000, gt=0, description="Most files of each of a build's folders.")
    build_open_files: int = Field(16_384, gt=0, description="Most files that a process of a build may have open.")
    build_processes: int = Field(1024, gt=0, description="Most processes and threads of a build.")
    build_cpus: float = Field(2.0, gt=0, allow_inf_nan=False, description="Processors that a build may use.")
    build_log_mb: int = Field(
        10, gt=0, description="Output of a build that is kept, in MB; twenty times as much ends it."
    )
    stamp_builds: bool = Field(
        False,
        description="Make bundles from proved templates instead of building each study in full.",
    )
    stamp_audit_share: float = Field(
        0.02, ge=0, le=1, description="Share of the builds that could be stamped and are built in full, as a check."
    )
    free_disk_mb: int = Field(
        5000, ge=0, description="MB that must be free on the disks of the home and of the engine before a build starts."
    )
    player_sentry_dsn: str = Field("", description="SENTRY_DSN for players: public, ends up in the bundle.")
    player_pipe_account_hash: str = Field("", description="PIPE_ACCOUNT_HASH for players: public.")
    player_pipe_environment: str = Field("", description="PIPE_ENVIRONMENT for players: public.")
    player_s3_region: str = Field("", description="S3_REGION for players: public.")
    player_s3_bucket: str = Field("", description="S3_BUCKET for players: public.")
    player_s3_access_key_id: SecretStr | None = Field(
        None, description="S3_ACCESS_KEY_ID, for players of trusted repositories only."
    )
    player_s3_secret_access_key: SecretStr | None = Field(
        None, description="S3_SECRET_ACCESS_KEY, for players of trusted repositories only."
    )

    @field_validator("build_registry")
    @classmethod
    def _is_registry(cls, value: str) -> str:
        if value:
            check_web_address(value)
        if "@" in urlsplit(value).netloc:
            raise ValueError("must hold no password: every build sees it")
        return value.rstrip("/")

    @field_validator("build_ca_file")
    @classmethod
    def _has_certificates(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        value = without_tilde(value)
        try:
            contents = value.read_bytes()
        except OSError as error:
            raise ValueError(f"{value} cannot be read ({error.strerror})") from None
        if b"-----BEGIN CERTIFICATE-----" not in contents:
            raise ValueError(f"{value} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")
        return value

    @field_validator("docker_engine")
    @classmethod
    def _is_engine(cls, value: str) -> str:
        if value and not value.startswith(("unix:///", "tcp://", "ssh://", "http://", "https://")):
            raise ValueError("must begin with unix:///, tcp://, ssh://, http:// or https://")
        return value

    @field_validator("build_open_networks")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        for entry in value:
            if not _NETWORK.fullmatch(entry):
                raise ValueError(
                    f"{entry!r} must be a name, an address or a network (10.0.0.0/24), with :port or for 80 and 443;"
                    " an IPv6 address with a port stands in brackets"
                )
        return value

    @model_validator(mode="after")
    def _a_build_has_memory_for_its_files(self) -> Self:
        needed = self.build_work_mb + self.build_temporary_mb + self.build_output_mb + MEMORY_BESIDE_FILES_MB
        if self.build_memory_mb < needed:
            raise ValueError(
                f"{PREFIX}BUILD_MEMORY_MB is {self.build_memory_mb}, but a build's files are kept in memory too"
                f" ({PREFIX}BUILD_WORK_MB, _TEMPORARY_MB and _OUTPUT_MB) and {MEMORY_BESIDE_FILES_MB} MB are needed"
                f" beside them: give it {needed} or more"
            )
        return self

    @property
    def deployment(self) -> str:
        """The name of this installation on a Docker engine.

        Whoever shares a database shares a name, and nobody else: what belongs to no running request of the database is
        removed from the engine, so two databases must never have one name.
        """
        if self.docker_deployment:
            return self.docker_deployment
        url = make_url(self.database)
        # Without whatever may change: driver, account, parameters.
        digest = hashlib.sha256(f"{url.host}\n{url.port}\n{url.database}".encode()).hexdigest()
        return f"{self.environment}-{digest[:8]}"

    def player_environment(self, *, trusted: bool) -> dict[str, str]:
        """What a build may see of the settings: the allow-list, with secrets for trusted repositories only."""
        public = {
            "SENTRY_DSN": self.player_sentry_dsn,
            "PIPE_ACCOUNT_HASH": self.player_pipe_account_hash,
            "PIPE_ENVIRONMENT": self.player_pipe_environment,
            "S3_REGION": self.player_s3_region,
            "S3_BUCKET": self.player_s3_bucket,
        }
        secret = {
            "S3_ACCESS_KEY_ID": self.player_s3_access_key_id,
            "S3_SECRET_ACCESS_KEY": self.player_s3_secret_access_key,
        }
        given = {name: value.get_secret_value() for name, value in secret.items() if value} if trusted else {}
        return {name: value for name, value in (public | given).items() if value}
