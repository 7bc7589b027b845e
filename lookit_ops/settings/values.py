"""Types of values that several settings share: folders, addresses, lists, and what is refused of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

PREFIX = "LOOKIT_"
"""What the environment variables of all settings begin with."""
_PER_STUDY = re.compile(r"https?://\{uuid\}\.[^{}/]+(/[^{}]*)?")


def _split(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _empty_is_nothing(value: object) -> object:
    return None if value == "" else value


def without_tilde(folder: Path) -> Path:
    """Return the folder with `~` and `~user` replaced by the home that is meant. Raises ValueError if there is none."""
    try:
        return folder.expanduser()
    except RuntimeError:
        raise ValueError(f"must not begin with {folder.parts[0]}: this machine knows no home of that name") from None


def check_web_address(value: str) -> None:
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


def is_a_folder_or_nothing_yet(value: Path | None) -> Path | None:
    if value is not None and without_tilde(value).exists() and not without_tilde(value).is_dir():
        raise ValueError("must be a folder, and there is a file of that name")
    return value


def _is_web_address(value: str) -> str:
    check_web_address(value)
    return value.rstrip("/")


def _is_web_address_or_empty(value: str) -> str:
    if value:
        check_web_address(value)
    return value.rstrip("/")


_BRACES = (
    "may hold no braces but {uuid} in LOOKIT_PREVIEWS_URL, once, as the first label of the host, as in"
    " https://{uuid}.previews.example/"
)


def _is_base_url(value: str) -> str:
    check_web_address(value)
    if {"{", "}"} & set(value):
        raise ValueError(_BRACES)
    return value if value.endswith("/") else value + "/"


def _is_previews_url(value: str) -> str:
    if not _PER_STUDY.fullmatch(value):
        return _is_base_url(value)
    check_web_address(value)
    return value if value.endswith("/") else value + "/"


CommaSeparated = Annotated[list[str], NoDecode, BeforeValidator(_split)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
File = Annotated[Path | None, BeforeValidator(_empty_is_nothing)]
Folder = Annotated[Path | None, BeforeValidator(_empty_is_nothing), AfterValidator(is_a_folder_or_nothing_yet)]
"""An empty variable is not the folder "."."""
WebAddress = Annotated[str, AfterValidator(_is_web_address)]
"""A base URL, kept without a slash at its end."""
Endpoint = Annotated[str, AfterValidator(_is_web_address_or_empty)]
"""A base URL of a service, or empty for the service's own."""
BaseUrl = Annotated[str, AfterValidator(_is_base_url)]
"""A base URL, kept with a slash at its end."""
PreviewsUrl = Annotated[str, AfterValidator(_is_previews_url)]
"""Likewise; its host may begin with `{uuid}`."""
