"""Services that hang instead of failing: every sensor goes on ticking, and what does not need the service succeeds.

`make slow` lets each hang for five minutes and prints what the operator's guide shows.
"""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest

from domain.models import BuildKind, MailStatus, OutboxMail, State, Study, User
from lookit_ops.definitions import defs
from tests.e2e.conftest import free_port
from tests.support.live import CODE, DAEMON, Live, live
from tests.support.site import transition_as_read
from tests.support.smtp_server import HOST

SERVICES = ("bucket", "engine", "mail server", "GitHub")
SENSORS = {
    sensor.name: sensor.minimum_interval_seconds or 30 for sensor in defs.sensors or [] if hasattr(sensor, "name")
}
SLACK_SECONDS = 25
"""No benchmark: a sensor that waits for the service would wait for its whole outage."""


class SilentServer:
    """Accepts every connection, and never says a word."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self._held: list[socket.socket] = []
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self._held.append(self._listener.accept()[0])
            except OSError:
                return


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    silent = SilentServer()
    settings = {
        "LOOKIT_SMTP_HOST": HOST,
        "LOOKIT_SMTP_PORT": str(silent.port),
        "LOOKIT_SMTP_SECURITY": "none",
        "LOOKIT_BUILDS_AT_ONCE": "12",  # dead builds are tried again, and wait for the service, too
    }
    with live(tmp_path_factory.mktemp("hanging") / "home", port=free_port(), **settings) as started:
        started.start(CODE, DAEMON)
        started.wait(lambda: ticks_of(started, "watch", 0), 90, "no sensor ticks")
        yield started


def ticks_of(running: Live, sensor: str, since: float) -> list[float]:
    """When the sensor has ticked, oldest first, in seconds since 1970."""
    with dg.DagsterInstance.get() as instance:
        states = [state for state in instance.all_instigator_state() if state.instigator_name == sensor]
        return sorted(
            tick.timestamp
            for state in states
            for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=500)
            if tick.timestamp >= since
        )


@contextmanager
def hanging(running: Live, service: str) -> Iterator[None]:
    """Let the service hang; the mail server always does."""
    flag: Path = running.home / f"{service}-hangs"
    flag.touch()
    try:
        yield
    finally:
        flag.unlink()


def give_everything_something_to_do(running: Live, service: str) -> int:
    """A dead build, a request that waits, a mail, a list to write, a page to take down; returns the waiting request."""
    dead = running.request(running.site.another_study(f"Dead while {service} hangs", State.APPROVED))
    running.platform.ledger.claim(dead, "a run that died", running.platform.settings.lease_duration)
    running.site.end_leases()
    study_id = running.site.another_study(f"Moved while {service} hangs", State.SUBMITTED)
    with running.site.sessions.begin() as session:
        study, admin = session.get_one(Study, study_id), session.get_one(User, running.site.site_admin)
        transition_as_read(session, study, "approve", admin)
    return running.request(study_id, BuildKind.PREVIEW)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("seconds", [45, pytest.param(300, marks=pytest.mark.slow)])
def test_while_a_service_hangs_every_sensor_ticks_and_the_rest_succeeds(
    running: Live, service: str, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.time()
    with hanging(running, service):
        request_id = give_everything_something_to_do(running, service)
        if service == "mail server":  # a build needs everything but that
            running.wait_for(request_id, "succeeded", seconds=seconds)
        else:  # it is claimed, and waits with a heartbeat
            running.wait(lambda: running.status(request_id) == "running", seconds, lambda: running.told(request_id))
        time.sleep(max(0.0, began + seconds - time.time()))
        if service != "mail server":
            assert running.status(request_id) == "running", running.told(request_id)
            assert running.site.request(request_id).failed_attempts == []
        ended = time.time()
    table = []
    for sensor, interval in sorted(SENSORS.items()):
        ticks = [began, *ticks_of(running, sensor, began), ended]
        gaps = [later - earlier for earlier, later in pairwise(ticks)]
        table.append((sensor, interval, statistics.median(gaps), max(gaps)))
        assert max(gaps) < interval + SLACK_SECONDS, (service, sensor, gaps)
    running.wait_for(request_id, "succeeded", seconds=120)
    with capsys.disabled():
        for sensor, interval, median, longest in table if seconds > 100 else ():
            print(f"| {service} | `{sensor}` | {interval} | {median:.0f} | {longest:.0f} |")  # noqa: T201


def test_mails_wait_for_a_server_that_hangs(running: Live) -> None:
    def tried() -> list[OutboxMail]:
        return [mail for mail in running.site.mails() if mail.attempts]

    running.wait(tried, 90, "no run has tried to deliver")
    assert {mail.status for mail in running.site.mails()} == {MailStatus.WAITING}
