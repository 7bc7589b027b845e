"""`lookit-ops` within this process, on the site's database."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lookit_ops.cli.main import main
from tests.support.site import Site


@dataclass(frozen=True)
class Shown:
    """What a command printed, and its status."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(site: Site, run_on_database: Callable[..., Shown]) -> Callable[..., Shown]:
    """Run `lookit-ops` on the site's database."""
    return run_on_database


@pytest.fixture
def run_on_database(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Shown]:
    """Run `lookit-ops` on the test's database, which holds what the test puts there."""
    monkeypatch.setenv("LOOKIT_DATABASE_URL", database_url)
    monkeypatch.setenv("LOOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Shown:
        monkeypatch.setattr(sys, "argv", ["lookit-ops", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Shown(int(ended.value.code or 0), out, err)

    return call
