"""The settings: the environment, read and validated once. Every setting is described in docs/configuration.md.

Variables carry the prefix LOOKIT_; what the environment does not say may stand in `settings.env` in LOOKIT_HOME.
"""

from __future__ import annotations

import hashlib
import os
import re
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv import dotenv_values
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from domain.errors import InvalidRequest
from domain.escaping import deliverable_address
from domain.models.responses import BUCKET_LENGTH
from domain.requests.failure import Retry
from lookit_ops.production_guards import origin, production_faults
from lookit_ops.redaction import Redactor

PREFIX = "LOOKIT_"
DEFAULT_HOME = Path(".lookit")
OFFICIAL_PLAYER = "https://github.com/lookit/ember-lookit-frameplayer"


def _split(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _empty_is_nothing(value: object) -> object:
    return None if value == "" else value


CommaSeparated = Annotated[list[str], NoDecode, BeforeValidator(_split)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LONGEST_BUILD = 3000
"""Seconds. Dagster ends a run of `build_experiment` after 3600, which also has to fetch, to check and to upload."""
LONGEST_LEASE = 3600
"""Seconds: a longer lease would hold the study of a dead worker for longer than any build takes."""
MEMORY_BESIDE_FILES_MB = 500
"""What a build's processes need at the least, in MB."""
DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg")
"""What the URL of a database may begin with; a bare `postgresql` means psycopg 3."""
QUERY_SECRETS = ("password", "sslpassword")
"""The parameters in the query of PostgreSQL's URLs that hold a secret."""
_NETWORK = re.compile(
    r"[A-Za-z0-9._-]+(/\d{1,3})?(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](/\d{1,3})?(:\d{1,5})?|[0-9A-Fa-f:.]+(/\d{1,3})?"
)
_PER_STUDY = re.compile(r"https?://\{uuid\}\.[^{}/]+(/[^{}]*)?")
Folder = Annotated[Path | None, BeforeValidator(_empty_is_nothing)]  # an empty variable is not the folder "."
File = Annotated[Path | None, BeforeValidator(_empty_is_nothing)]
_GCS_BUCKET = re.compile(r"gs://(?P<name>[a-z0-9][a-z0-9._-]{1,220}[a-z0-9])")
_S3_BUCKET = re.compile(r"s3://(?P<name>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])")


class Settings(BaseSettings):
    """The operator's settings; the defaults are those of a development machine with nothing but this project."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    home: Path = Field(DEFAULT_HOME, description="Folder of everything that is kept on this machine.")
    environment: Literal["development", "staging", "production"] = Field(
        "development", description="Which environment this is; each bucket says whose it is, and another's is refused."
    )
    time_zone: str = Field("UTC", description="Time zone of the nightly schedules, by its IANA name.")
    database_url: str = Field(
        "",
        repr=False,
        description="SQLAlchemy URL of the database, SQLite or PostgreSQL; empty: a SQLite file in the home.",
    )
    dagster_database_url: str = Field(
        "",
        repr=False,
        description="URL of a PostgreSQL database for Dagster's runs; empty: files in Dagster's home.",
    )
    bucket: str = Field(
        "", description="Bucket of built studies in Google Cloud Storage, as in `gs://name`; empty: a folder."
    )
    bucket_folder: Folder = Field(
        None, description="Folder that is the bucket of built studies; empty: `buckets/{environment}` in the home."
    )
    gcs_credentials_file: File = Field(
        None, description="Key of a service account of Google Cloud; empty: the application default credentials."
    )
    gcs_endpoint: str = Field("", description="Base URL of another server that speaks Google's JSON API.")
    videos_bucket: str = Field(
        "", description="Bucket of study videos in Amazon S3, as in `s3://name`; empty: a folder."
    )
    videos_folder: Folder = Field(
        None, description="Folder that is the bucket of study videos; empty: `videos/{environment}` in the home."
    )
    videos_other_buckets: CommaSeparated = Field(
        [],
        description="Other buckets that have videos, as in `s3://one,s3://two`, with the same credentials; a folder by"
        " its absolute path.",
    )
    videos_region: str = Field("", description="Region of the videos' bucket in Amazon S3, such as `us-east-1`.")
    videos_endpoint: str = Field("", description="Base URL of another server that speaks S3.")
    videos_access_key_id: SecretStr | None = Field(
        None, description="Access key for the videos' bucket; empty: what Amazon's library finds on this machine."
    )
    videos_secret_access_key: SecretStr | None = Field(None, description="Secret key that belongs to it.")
    archives_bucket: str = Field(
        "", description="Bucket of video archives in Google Cloud Storage, as in `gs://name`; empty: a folder."
    )
    archives_folder: Folder = Field(
        None, description="Folder that is the bucket of archives; empty: `archives/{environment}` in the home."
    )
    archives_url: str = Field(
        "http://localhost:8003/", description="Base URL of the links to archives that are in a folder."
    )
    github_api_url: str = Field("https://api.github.com", description="Base URL of GitHub's API.")
    github_web_url: str = Field(
        "https://github.com", description="Base URL of GitHub's pages, which serve the archives."
    )
    github_token: SecretStr | None = Field(
        None, description="Token for GitHub: private players, and a higher rate limit."
    )
    player_repo_url: str = Field(OFFICIAL_PLAYER, description="Frame player of the studies that name none.")
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
    free_disk_mb: int = Field(
        5000, ge=0, description="MB that must be free on the disks of the home and of the engine before a build starts."
    )
    lease: Seconds = Field(
        120,
        le=LONGEST_LEASE,
        description="Seconds that a build or archive stays claimed without a sign of life (one every two).",
    )
    builds_at_once: int = Field(2, ge=1, description="How many builds may run at the same time.")
    archives_kept_days: float = Field(
        30, gt=0, le=3650, description="Days after which archives of videos are removed; they can be made again."
    )
    archives_at_once: int = Field(2, ge=1, description="How many archives of videos may be made at the same time.")
    attempts: int = Field(
        3, ge=1, le=20, description="How often work that fails by the platform's fault is tried in all."
    )
    retry_after: Seconds = Field(
        60, description="Seconds before the second attempt; each further wait is twice as long."
    )
    platform_url: str = Field(
        "http://localhost:8000/", description="Base URL of the web application, for links in mails."
    )
    studies_url: str = Field("http://localhost:8001/", description="Base URL where families meet deployed studies.")
    previews_url: str = Field(
        "http://{uuid}.localhost:8002/",
        description="Base URL of previews, on an origin of its own; with `{uuid}` in the host, one for each study.",
    )
    mail_sender: str = Field("lookit@localhost.localdomain", description="Address from which mails are sent.")
    mail_folder: Folder = Field(
        None,
        description="Folder that gets mails as .eml files while there is no SMTP server; empty: `mail` in the home.",
    )
    smtp_host: str = Field("", description="SMTP server; empty: mails go into the folder.")
    smtp_port: int = Field(587, gt=0, lt=65536, description="Port of the SMTP server.")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="How the SMTP connection is secured."
    )
    smtp_user: str = Field("", description="Account on the SMTP server; empty: no login.")
    smtp_password: SecretStr | None = Field(None, description="Password of that account.")
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

    @field_validator("platform_url", "studies_url", "previews_url", "archives_url")
    @classmethod
    def _base_ends_with_a_slash(cls, value: str, info: ValidationInfo) -> str:
        _check_web_address(value)
        if {"{", "}"} & set(value) and not (info.field_name == "previews_url" and _PER_STUDY.fullmatch(value)):
            raise ValueError(
                "may hold no braces but {uuid} in LOOKIT_PREVIEWS_URL, once, as the first label of the host, as in"
                " https://{uuid}.previews.example/"
            )
        return value if value.endswith("/") else value + "/"

    @field_validator("home", mode="before")
    @classmethod
    def _home_is_somewhere(cls, value: object) -> object:
        return value or DEFAULT_HOME

    @field_validator("home", "bucket_folder", "mail_folder", "videos_folder", "archives_folder")
    @classmethod
    def _is_a_folder_or_nothing_yet(cls, value: Path | None) -> Path | None:
        if value is not None and _without_tilde(value).exists() and not _without_tilde(value).is_dir():
            raise ValueError("must be a folder, and there is a file of that name")
        return value

    @field_validator("bucket", "archives_bucket")
    @classmethod
    def _is_google_bucket(cls, value: str) -> str:
        if value and not _GCS_BUCKET.fullmatch(value):
            raise ValueError(
                "must be the address of a bucket in Google Cloud Storage such as gs://name, without a path; a folder"
                " is set by the setting whose name ends in _FOLDER"
            )
        return value

    @field_validator("videos_bucket")
    @classmethod
    def _is_amazon_bucket(cls, value: str) -> str:
        if value and not _S3_BUCKET.fullmatch(value):
            raise ValueError("must be the address of a bucket in Amazon S3 such as s3://name, without a path")
        return value

    @field_validator("videos_other_buckets")
    @classmethod
    def _are_buckets_of_videos(cls, value: list[str]) -> list[str]:
        # As rows of videos name them: two spellings of one folder would be two buckets there.
        named = [os.path.normpath(address) if address.startswith("/") else address for address in value]
        for address in named:
            if not (_S3_BUCKET.fullmatch(address) or address.startswith("/")) or named.count(address) > 1:
                raise ValueError(
                    "must be addresses of buckets in Amazon S3 such as s3://name, or absolute paths of folders, each"
                    f" once; {address!r} is not"
                )
            if len(address) > BUCKET_LENGTH:
                raise ValueError(f"must be of at most {BUCKET_LENGTH} characters each; {address!r} has {len(address)}")
        return named

    @field_validator("gcs_credentials_file")
    @classmethod
    def _is_a_file(cls, value: Path | None) -> Path | None:
        if value is not None and not _without_tilde(value).is_file():
            raise ValueError("must be the JSON file of a service account's key, and there is no such file")
        return value

    @field_validator("gcs_endpoint", "videos_endpoint")
    @classmethod
    def _is_web_address_or_the_clouds_own(cls, value: str) -> str:
        if value:
            _check_web_address(value)
        return value.rstrip("/")

    @field_validator("time_zone")
    @classmethod
    def _is_time_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("must be the name of a time zone such as Europe/Berlin or UTC") from None
        return value

    @field_validator("database_url")
    @classmethod
    def _is_database(cls, value: str) -> str:
        try:
            driver = make_url(value).drivername if value else "sqlite"
        except (ArgumentError, ValueError):
            driver = ""
        if driver not in DRIVERS:
            raise ValueError(
                "must be the URL of a SQLite or PostgreSQL database, sqlite:///… or postgresql://…,"
                " with no other driver than psycopg"
            )
        return value

    @field_validator("dagster_database_url")
    @classmethod
    def _is_postgresql(cls, value: str) -> str:
        try:
            backend = make_url(value).get_backend_name() if value else "postgresql"
        except (ArgumentError, ValueError):
            backend = ""
        if backend != "postgresql":
            raise ValueError("must be the URL of a PostgreSQL database, postgresql://user:password@host/name, or empty")
        return value

    @field_validator("github_api_url", "github_web_url", "player_repo_url")
    @classmethod
    def _is_web_address(cls, value: str) -> str:
        _check_web_address(value)
        return value.rstrip("/")

    @field_validator("build_registry")
    @classmethod
    def _is_registry(cls, value: str) -> str:
        if value:
            _check_web_address(value)
        if "@" in urlsplit(value).netloc:
            raise ValueError("must hold no password: every build sees it")
        return value.rstrip("/")

    @field_validator("build_ca_file")
    @classmethod
    def _has_certificates(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        value = _without_tilde(value)
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
    def _a_build_has_memory_for_its_files(self) -> Settings:
        needed = self.build_work_mb + self.build_temporary_mb + self.build_output_mb + MEMORY_BESIDE_FILES_MB
        if self.build_memory_mb < needed:
            raise ValueError(
                f"{PREFIX}BUILD_MEMORY_MB is {self.build_memory_mb}, but a build's files are kept in memory too"
                f" ({PREFIX}BUILD_WORK_MB, _TEMPORARY_MB and _OUTPUT_MB) and {MEMORY_BESIDE_FILES_MB} MB are needed"
                f" beside them: give it {needed} or more"
            )
        return self

    @field_validator("mail_sender")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            deliverable_address(value)
        except InvalidRequest:
            raise ValueError("must be one e-mail address, in ASCII before the @") from None
        return value

    @model_validator(mode="after")
    def _each_bucket_is_in_one_place(self) -> Settings:
        for name, bucket, folder in (
            (("BUCKET", "BUCKET_FOLDER"), self.bucket, self.bucket_folder),
            (("VIDEOS_BUCKET", "VIDEOS_FOLDER"), self.videos_bucket, self.videos_folder),
            (("ARCHIVES_BUCKET", "ARCHIVES_FOLDER"), self.archives_bucket, self.archives_folder),
        ):
            if bucket and folder is not None:
                raise ValueError(f"{PREFIX}{name[0]} ({bucket}) and {PREFIX}{name[1]} ({folder}) are both set; set one")
        first = self.videos_bucket or str(self.local_videos)
        if first in self.videos_other_buckets:
            raise ValueError(f"{PREFIX}VIDEOS_OTHER_BUCKETS names {first}, which is the first bucket of videos already")
        if (self.videos_access_key_id is None) != (self.videos_secret_access_key is None):
            raise ValueError(
                f"{PREFIX}VIDEOS_ACCESS_KEY_ID and {PREFIX}VIDEOS_SECRET_ACCESS_KEY belong together; set both or none"
            )
        return self

    @model_validator(mode="after")
    def _previews_have_an_origin_of_their_own(self) -> Settings:
        if origin(self.previews_url) == origin(self.studies_url):
            raise ValueError(
                f"{PREFIX}PREVIEWS_URL must differ from {PREFIX}STUDIES_URL in scheme, host or port, and"
                f" {self.previews_url!r} does not from {self.studies_url!r}: both serve /studies/{{uuid}}/, and what"
                " one of them stores in a browser the other could read"
            )
        return self

    @model_validator(mode="after")
    def _is_fit_for_production(self) -> Settings:
        if self.environment != "production":
            return self
        names = ("platform_url", "studies_url", "previews_url", *(() if self.archives_bucket else ("archives_url",)))
        faults = production_faults(
            {f"{PREFIX}{name}".upper(): getattr(self, name) for name in names},
            previews=f"{PREFIX}PREVIEWS_URL",
            apart_from=(f"{PREFIX}PLATFORM_URL",),
            smtp_host=self.smtp_host,
            mail_sender=self.mail_sender,
        )
        if faults:
            raise ValueError("\n  ".join(faults))
        return self

    @cached_property
    def home_folder(self) -> Path:
        """The home as an absolute path: a run may have another working folder."""
        return self.home.expanduser().resolve()

    @property
    def database(self) -> str:
        """The URL of the database."""
        return self.database_url or f"sqlite:///{self.home_folder / 'lookit.db'}"

    @property
    def database_file(self) -> Path | None:
        """The file of the database, if it is SQLite in a file."""
        url = make_url(self.database)
        if url.get_backend_name() != "sqlite" or not url.database or url.database.startswith((":", "file:")):
            return None
        return Path(url.database)

    @property
    def gcs_bucket(self) -> str | None:
        """The name of the bucket in Google Cloud Storage; None if the bucket is a folder."""
        return self.bucket.removeprefix("gs://") or None

    @property
    def local_bucket(self) -> Path:
        """The folder that is the bucket. Raises InvalidRequest if the bucket is no folder."""
        if self.gcs_bucket:
            raise InvalidRequest(f"the bucket of built studies is {self.bucket}, not a folder of this machine")
        folder = self.bucket_folder or self.home_folder / "buckets" / self.environment
        return folder.expanduser().resolve()

    @property
    def s3_videos(self) -> str | None:
        """The name of the videos' bucket in Amazon S3; None if it is a folder."""
        return self.videos_bucket.removeprefix("s3://") or None

    @property
    def local_videos(self) -> Path:
        """The folder that is the videos' bucket, where there is no S3."""
        return (self.videos_folder or self.home_folder / "videos" / self.environment).expanduser().resolve()

    @property
    def gcs_archives(self) -> str | None:
        """The name of the archives' bucket in Google Cloud Storage; None if it is a folder."""
        return self.archives_bucket.removeprefix("gs://") or None

    @property
    def local_archives(self) -> Path:
        """The folder that is the archives' bucket, where there is no Google Cloud Storage."""
        return (self.archives_folder or self.home_folder / "archives" / self.environment).expanduser().resolve()

    @property
    def mails(self) -> Path:
        """The folder for mails."""
        return (self.mail_folder or self.home_folder / "mail").expanduser().resolve()

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

    @property
    def lease_duration(self) -> timedelta:
        """How long a claim lasts without a heartbeat."""
        return timedelta(seconds=self.lease)

    @property
    def retry_by(self) -> Retry:
        """How often what fails by our fault is tried, and when."""
        return Retry(self.attempts, timedelta(seconds=self.retry_after))

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

    def secrets(self) -> list[str]:
        """Every secret value, for redaction; the passwords within the database's URL among them."""
        values = [value.get_secret_value() for value in self.__dict__.values() if isinstance(value, SecretStr)]
        for url in map(make_url, filter(None, (self.database, self.dagster_database_url))):
            values.append(url.password or "")
            values += [value for name in QUERY_SECRETS for value in url.normalized_query.get(name, ())]
        return [value for value in values if value]


def _without_tilde(folder: Path) -> Path:
    """The folder with `~` and `~user` replaced by the home that is meant. Raises ValueError if nobody is called so."""
    try:
        return folder.expanduser()
    except RuntimeError:
        raise ValueError(f"must not begin with {folder.parts[0]}: this machine knows no home of that name") from None


def _check_web_address(value: str) -> None:
    """Refuse what cannot be listened on, or what paths cannot be put behind. Raises ValueError."""
    if not value.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    if any(not letter.isprintable() or letter.isspace() for letter in value):
        raise ValueError("must hold neither blanks nor control characters")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError("must name a host, and a port from 1 to 65535 if any") from None
    if not parts.hostname or port == 0:
        raise ValueError("must name a host, and a port from 1 to 65535 if any")
    if parts.query or parts.fragment:
        raise ValueError("must end with a path, neither with ?… nor with #…")


def load_settings() -> Settings:
    """Read the settings. Raises InvalidRequest that names each variable that is wrong, and how."""
    home = Path(os.environ.get(f"{PREFIX}HOME") or DEFAULT_HOME)
    try:
        file = _without_tilde(home) / "settings.env"
    except ValueError as error:
        raise InvalidRequest(f"{PREFIX}HOME {error}, not '{home}'") from None
    given = {name.upper() for name in [*os.environ, *_names_in(file)] if name.upper().startswith(PREFIX)}
    if unknown := sorted(given - {f"{PREFIX}{name}".upper() for name in Settings.model_fields}):
        raise InvalidRequest(f"no setting is called {', '.join(unknown)}; docs/configuration.md lists them all")
    try:
        return Settings(_env_file=file)
    except ValidationError as error:
        wrong = [
            f"{PREFIX}{str(item['loc'][0]).upper()}: {item['msg']}, not {_without_login(item['input'])!r}"
            if item["loc"]
            else str(item["msg"])
            for item in error.errors(include_url=False)
        ]
        text = "\n  ".join(wrong).replace("Value error, ", "")
        raise InvalidRequest(f"these settings are wrong (docs/configuration.md):\n  {Redactor([])(text)}") from None


def _without_login(given: object) -> object:
    """What was given, but of a URL neither user nor password: whatever is wrong with it may be in them."""
    scheme, separator, rest = str(given).partition("://")
    return f"{scheme}://…@{rest.rpartition('@')[2]}" if separator and "@" in rest else given


def _names_in(file: Path) -> list[str]:
    """The names that the file sets; none if there is no file. Raises InvalidRequest if it cannot be read as text."""
    try:
        return list(dotenv_values(file))
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{file} is not text in UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}):"
            " save it in that encoding"
        ) from None
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}; check who may read it") from None
