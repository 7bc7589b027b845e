"""A demonstration, run once as a newcomer would run it, and a browser to look at what it left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser

from domain.db import sessions_for
from domain.models import State
from lookit_ops.services import Services
from lookit_ops.settings import Settings
from tests.support.browser import chromium
from tests.support.live import CODE, DAEMON, Live, live

COMMAND = str(Path(sys.executable).with_name("lookit-ops"))
ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Demonstration:
    """The home that `lookit-ops demo` filled, and its commands."""

    home: Path
    status: int
    said: str
    environment: dict[str, str]

    @property
    def services(self) -> Services:
        return Services(Settings(home=self.home, _env_file=self.home / "settings.env"))

    def sessions(self):
        return sessions_for(self.services.engine)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `lookit-ops` as a user would."""
        return subprocess.run(
            [COMMAND, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd=ROOT,
        )

    @contextmanager
    def dev(self) -> Iterator[str]:
        """`lookit-ops dev` while the block runs; yields the address of Dagster's UI."""
        port = free_port()
        log = self.home / "dev.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [COMMAND, "dev", "--port", str(port)], env=self.environment, stdout=output, stderr=output, cwd=ROOT
            )
            try:
                address = f"http://127.0.0.1:{port}"
                wait_for(f"{address}/server_info", process, log)
                yield address
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=60)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path, seconds: int = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if requests.get(address, timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.5)
    raise AssertionError(f"{address} did not answer within {seconds} s:\n{log.read_text()}")


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Demonstration:
    home = tmp_path_factory.mktemp("demonstration")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LOOKIT_", "DAGSTER_"))}
    environment = {
        **inherited,
        "LOOKIT_HOME": str(home),
        "LOOKIT_STUDIES_URL": f"http://127.0.0.1:{free_port()}/",
        "LOOKIT_PREVIEWS_URL": f"http://127.0.0.1:{free_port()}/",
    }
    shown = Demonstration(home, 0, "", environment).command("demo", "--repository-port", str(free_port()))
    return Demonstration(home, shown.returncode, shown.stdout + shown.stderr, environment)


@pytest.fixture  # not for longer than a test: Playwright's event loop is in the way of whoever else wants one
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A Dagster that runs; each test leaves it running."""
    with live(tmp_path_factory.mktemp("live") / "home", port=free_port(), LOOKIT_BUILDS_AT_ONCE="4") as living:
        living.start(CODE, DAEMON)
        yield living


def a_study(running: Live, name: str) -> int:
    return running.site.another_study(name, State.APPROVED)
