"""Settings of the installation as a whole: its home, its environment, its databases."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from lookit_ops.settings.values import PREFIX, File, is_a_folder_or_nothing_yet, without_tilde

DEFAULT_HOME = Path(".lookit")
DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg")
"""What the URL of a database may begin with; a bare `postgresql` means psycopg 3."""
Home = Annotated[Path, BeforeValidator(lambda value: value or DEFAULT_HOME), AfterValidator(is_a_folder_or_nothing_yet)]


class GeneralSettings(BaseSettings):
    """Where this installation is, and what it is for."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    home: Home = Field(DEFAULT_HOME, description="Folder of everything that is kept on this machine.")
    environment: Literal["development", "staging", "production"] = Field(
        "development", description="Which environment this is; each bucket says whose it is, and another's is refused."
    )
    time_zone: str = Field("UTC", description="Time zone of the nightly schedules, by its IANA name.")
    workflow_file: File = Field(
        None, description="YAML file with the workflow of studies; empty: the one that ships with the project."
    )
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

    @field_validator("workflow_file")
    @classmethod
    def _is_a_file(cls, value: Path | None) -> Path | None:
        if value is not None and not without_tilde(value).is_file():
            raise ValueError("must be a YAML file with the workflow, and there is no such file")
        return None if value is None else without_tilde(value).absolute()

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
