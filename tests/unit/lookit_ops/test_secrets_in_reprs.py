"""No object that is made from the settings shows a secret in its repr, which ends up in logs and tracebacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ember_build.builder import BuildOrder
from lookit_ops.redaction import Redactor
from lookit_ops.services import Services
from lookit_ops.settings import Settings
from lookit_ops.storage.s3 import S3Access

OURS = ("lookit_ops", "ember_build", "domain")


def secret_fields() -> list[str]:
    return [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    values: dict[str, Any] = {name: f"geheim-{name}" for name in secret_fields()}
    return Settings(
        _env_file=None,
        home=tmp_path,
        database_url="postgresql://lookit:geheim-database@localhost/lookit",
        dagster_database_url="postgresql://dagster:geheim-dagster@localhost/dagster?password=geheim-query",
        smtp_host="mail.example.org",
        videos_bucket="s3://videos",
        builder="docker",
        **values,
    )


def reachable(thing: object, depth: int = 4) -> Iterator[object]:
    yield thing
    if isinstance(thing, Redactor):
        return  # what it masks it must know; its own repr tells nothing
    if depth == 0 or not type(thing).__module__.startswith(OURS):
        return
    inside = dict(getattr(thing, "__dict__", {}))
    if dataclasses.is_dataclass(thing):
        inside |= {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    hidden = (
        {field.name for field in dataclasses.fields(thing) if not field.repr}
        if dataclasses.is_dataclass(thing)
        else set()
    )
    for name, value in inside.items():
        if name not in hidden and not (isinstance(thing, Settings) and isinstance(value, str)):
            yield from reachable(value, depth - 1)


def test_no_repr_of_the_platform_or_its_parts_shows_a_secret(settings: Settings) -> None:
    assert len(settings.secrets()) == len(secret_fields()) + 3
    services = Services(settings)
    made = [name for name, part in vars(Services).items() if isinstance(part, cached_property)]
    for name in made:
        getattr(services, name)
    seen = 0
    for thing in reachable(services):
        seen += 1
        assert "geheim" not in repr(thing), type(thing)
        assert "geheim" not in str(thing), type(thing)
    assert seen > 3 * len(made)
    services.close()


def test_access_to_videos_hides_its_keys() -> None:
    access = S3Access(access_key_id=SecretStr("geheim-id"), secret_access_key=SecretStr("geheim-key"))
    assert "geheim" not in f"{access!r} {access}"


def test_an_order_hides_the_players_values() -> None:
    order = BuildOrder(Path("a"), "/studies/x/", {"S3_SECRET_ACCESS_KEY": "geheim"}, Path("b"))
    assert "geheim" not in f"{order!r} {order}"
