"""The operator's settings: environment variables `LOOKIT_…`, and the file settings.env in the home.

One class for each subject, put together by inheritance: each setting is one flat variable, as operators know them, and
each module is about one subject.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from dotenv import dotenv_values
from pydantic import SecretStr, ValidationError, model_validator
from sqlalchemy.engine import make_url

from domain.errors import InvalidRequest
from lookit_ops.redaction import Redactor
from lookit_ops.settings.addresses import AddressSettings
from lookit_ops.settings.buckets import BucketSettings
from lookit_ops.settings.builds import OFFICIAL_PLAYER, BuildSettings
from lookit_ops.settings.general import DEFAULT_HOME
from lookit_ops.settings.production import production_faults
from lookit_ops.settings.requests import RequestSettings
from lookit_ops.settings.values import PREFIX, without_tilde

__all__ = ["OFFICIAL_PLAYER", "PREFIX", "Settings", "load_settings"]

QUERY_SECRETS = ("password", "sslpassword")
"""The parameters in the query of PostgreSQL's URLs that hold a secret."""


class Settings(AddressSettings, RequestSettings, BuildSettings, BucketSettings):
    """All of them; the defaults are those of a development machine with nothing but this project."""

    @model_validator(mode="after")
    def _is_fit_for_production(self) -> Self:
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

    def secrets(self) -> list[str]:
        """Every secret value, for redaction; the passwords within the database's URL among them."""
        values = [value.get_secret_value() for value in self.__dict__.values() if isinstance(value, SecretStr)]
        for url in map(make_url, filter(None, (self.database, self.dagster_database_url))):
            values.append(url.password or "")
            values += [value for name in QUERY_SECRETS for value in url.normalized_query.get(name, ())]
        return [value for value in values if value]


def load_settings() -> Settings:
    """Read the settings. Raises InvalidRequest that names each variable that is wrong, and how."""
    home = Path(os.environ.get(f"{PREFIX}HOME") or DEFAULT_HOME)
    try:
        file = without_tilde(home) / "settings.env"
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
