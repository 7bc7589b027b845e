"""Services that hang instead of failing: every sensor goes on ticking, and what does not need the service succeeds.

`make soak` lets each hang for five minutes and prints what the operator's guide shows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise

import dagster as dg
import pytest
from sqlalchemy import update

from domain.db import database_now
from domain.models import BuildKind, MailStatus, OutboxMail, State, Study, User
from lookit_ops.definitions import defs
from lookit_ops.demo.github_server import GitHubServer
from tests.e2e.conftest import free_port
from tests.support.docker_engine import find_engine
from tests.support.gcs_servers import BUCKET
from tests.support.live import CODE, DAEMON, Live, live
from tests.support.site import transition_as_read
from tests.support.smtp_server import HOST, Mailboxes, smtp_server
from tests.support.stalling_proxy import StallingProxy
from tests.support.strict_gcs import StrictGcs

SERVICES = ("bucket", "engine", "mail server", "GitHub")
SENSORS = {
    sensor.name: sensor.minimum_interval_seconds or 30 for sensor in defs.sensors or [] if hasattr(sensor, "name")
}
BUSY_SECONDS = 120
"""How long a busy machine may take to begin a run; the service hangs until then."""
SLACK_SECONDS = 25
"""No benchmark: a sensor that waits for the service would wait for its whole outage."""


@dataclass
class Outages:
    """A real Dagster, and a proxy before each service that it needs."""

    running: Live
    proxies: dict[str, StallingProxy]

    @contextmanager
    def of(self, service: str) -> Iterator[None]:
        """Let the service accept connections and keep silent."""
        self.proxies[service].stall()
        try:
            yield
        finally:
            self.proxies[service].go_on()


@pytest.fixture(scope="module")
def outages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outages]:
    with ExitStack() as stack:
        gcs = stack.enter_context(StrictGcs(BUCKET))
        smtp = stack.enter_context(smtp_server(Mailboxes()))
        engine = find_engine().url

        def proxy_to(service: tuple[str, int] | str) -> StallingProxy:
            return stack.enter_context(StallingProxy(service))

        proxies = {
            "bucket": proxy_to((HOST, int(gcs.url.rpartition(":")[2]))),
            "engine": proxy_to(_address_of(engine)),
            "mail server": proxy_to((HOST, smtp.port)),
        }

        def address_of(server: GitHubServer) -> str:
            if "GitHub" not in proxies:
                proxies["GitHub"] = proxy_to((HOST, int(server.url.rpartition(":")[2])))
            return f"http://{HOST}:{proxies['GitHub'].port}"

        settings = {
            "LOOKIT_BUCKET": f"gs://{BUCKET}",
            "LOOKIT_GCS_ENDPOINT": f"http://{HOST}:{proxies['bucket'].port}",
            "LOOKIT_DOCKER_ENGINE": f"tcp://{HOST}:{proxies['engine'].port}",
            "LOOKIT_SMTP_HOST": HOST,
            "LOOKIT_SMTP_PORT": str(proxies["mail server"].port),
            "LOOKIT_SMTP_SECURITY": "none",
            "LOOKIT_BUILDS_AT_ONCE": "12",  # dead builds are tried again, and wait for the service, too
            "LOOKIT_ATTEMPTS": "10",  # a client gives up after its timeout, and another attempt begins
        }
        home = tmp_path_factory.mktemp("hanging") / "home"
        running = stack.enter_context(live(home, port=free_port(), address_of=address_of, **settings))
        running.start(CODE, DAEMON)
        running.wait(lambda: ticks_of(running, "watch", 0), 90, "no sensor ticks")
        yield Outages(running, proxies)


def _address_of(engine_url: str) -> tuple[str, int] | str:
    if engine_url.startswith("unix://"):
        return engine_url.removeprefix("unix://")
    host, _, port = engine_url.rpartition("/")[2].rpartition(":")
    return host, int(port)


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


def give_everything_something_to_do(running: Live, service: str) -> int:
    """A dead build, a request that waits, a mail, a list to write, a page to take down; returns the waiting request."""
    dead = running.request(running.site.another_study(f"Dead while {service} hangs", State.APPROVED))
    running.services.ledger.claim(dead, "a run that died", running.services.settings.lease_duration)
    running.site.end_leases()
    study_id = running.site.another_study(f"Moved while {service} hangs", State.SUBMITTED)
    with running.site.sessions.begin() as session:
        study, admin = session.get_one(Study, study_id), session.get_one(User, running.site.site_admin)
        transition_as_read(session, study, "approve", admin)
    return running.request(study_id, BuildKind.PREVIEW)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("seconds", [25, pytest.param(300, marks=pytest.mark.soak)])
def test_while_a_service_hangs_every_sensor_ticks_and_the_rest_succeeds(
    outages: Outages, service: str, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    running = outages.running
    began = time.time()
    with outages.of(service):
        request_id = give_everything_something_to_do(running, service)
        if service == "mail server":  # a build needs everything but that
            running.wait_for(request_id, "succeeded", seconds=max(seconds, BUSY_SECONDS))
        else:  # it is claimed, and waits with a heartbeat
            running.wait(
                lambda: running.status(request_id) == "running",
                max(seconds, BUSY_SECONDS),
                lambda: running.told(request_id),
            )
        time.sleep(max(0.0, began + seconds - time.time()))
        if service != "mail server":
            assert running.status(request_id) in ("running", "queued"), running.told(request_id)
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


def test_mails_wait_for_a_server_that_hangs(outages: Outages) -> None:
    running = outages.running

    def tried() -> list[OutboxMail]:
        return [mail for mail in running.site.mails() if mail.attempts and mail.status == MailStatus.WAITING]

    with outages.of("mail server"):
        request_id = running.request(running.site.another_study("With mails", State.APPROVED))
        running.wait_for(request_id, "succeeded", seconds=90)
        running.wait(tried, 120, "no run has tried to deliver")
    ids = {mail.id for mail in tried()}
    with running.site.sessions.begin() as session:  # it would be tried again in minutes
        session.execute(update(OutboxMail).where(OutboxMail.id.in_(ids)).values(next_attempt_at=database_now()))
    sent = {mail.id for mail in running.site.mails() if mail.status == MailStatus.SENT}
    running.wait(lambda: ids <= {mail.id for mail in running.site.mails() if mail.status == MailStatus.SENT}, 90, "no")
    assert not ids & sent
