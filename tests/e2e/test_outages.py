"""A real Dagster around which things fail for a while: the mail server is away, the disk is full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from email import message_from_bytes

import pytest
from sqlalchemy import update

from domain.mail.outbox import FIRST_RETRY
from domain.models import MailStatus, OutboxMail, State
from tests.e2e.conftest import free_port
from tests.support.live import CODE, DAEMON, Live, live
from tests.support.small_disk import SmallDisk, small_disk
from tests.support.smtp_server import HOST, Mailboxes, smtp_server

NOTHING_IS_DUE = "no mail is due; 0 wait for another attempt"


@dataclass(frozen=True)
class Surroundings:
    """What may fail: `mailboxes` has the port at which a server is expected, and nobody listens yet."""

    running: Live
    mailboxes: Mailboxes


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    mailboxes = Mailboxes(port=free_port())
    settings = {
        "LOOKIT_SMTP_HOST": HOST,
        "LOOKIT_SMTP_PORT": str(mailboxes.port),
        "LOOKIT_SMTP_SECURITY": "none",
        "LOOKIT_FREE_DISK_MB": "1",
    }
    with live(tmp_path_factory.mktemp("outages") / "home", port=free_port(), **settings) as running:
        running.start(CODE, DAEMON)
        yield Surroundings(running, mailboxes)


@pytest.fixture
def disk(around: Surroundings) -> Iterator[SmallDisk]:
    with small_disk(around.running.home / "ember_build", size_mb=4) as mounted:
        yield mounted


def next_attempt_now(running: Live) -> None:
    """Let the time of the waiting mails' next attempt have come."""
    waiting = update(OutboxMail).where(OutboxMail.status == MailStatus.WAITING)
    with running.site.sessions.begin() as session:
        session.execute(waiting.values(next_attempt_at=OutboxMail.created_at))


def test_a_full_disk_costs_attempts_and_not_the_build(around: Surroundings, disk: SmallDisk) -> None:
    """Full before the first attempt and in the middle of the second; the third has room."""
    running = around.running
    disk.fill()
    running.hold("build")
    request_id = running.request(running.site.another_study("Disk full", State.APPROVED))
    running.wait(lambda: len(running.site.request(request_id).failed_attempts) == 1, 60, "it did not fail")
    disk.make_room()
    running.wait_until_held()
    disk.fill()
    running.hold("claim")  # of the third attempt
    running.wait(lambda: len(running.site.request(request_id).failed_attempts) == 2, 60, "it did not fail")
    running.wait_until_held()
    disk.make_room()
    running.let_go()
    request = running.wait_for(request_id, "succeeded", "failed")
    assert (request.status, request.attempt) == ("succeeded", 3), running.told(request_id)
    before, during = request.failed_attempts
    assert (before["step"], before["code"]) == ("checkout", "platform_error")
    assert "1 MB are missing" in before["error"]
    assert (during["step"], during["code"]) == ("build", "platform_error")
    assert "The disk is full" in during["error"]
    running.assert_ended_once(request_id, "succeeded")
    running.wait(lambda: running.leftovers() == [], 30, "files are left")


def test_mails_wait_for_their_server_and_each_arrives_once(around: Surroundings) -> None:
    running = around.running
    request_id = running.request()
    running.wait_for(request_id, "succeeded")
    running.assert_ended_once(request_id, "succeeded")
    mine = [mail.id for mail in running.site.mails() if mail.event.startswith(f"build_request:{request_id}:")]

    def tried() -> list[OutboxMail]:
        return [mail for mail in running.site.mails() if mail.id in mine and mail.last_error]

    running.wait(lambda: len(tried()) == len(mine), 60, "nobody tried to deliver")
    for mail in tried():
        assert (mail.status, mail.attempts) == ("waiting", 1)
        assert "cannot be used" in (mail.last_error or "")
        assert mail.next_attempt_at - mail.created_at >= FIRST_RETRY > timedelta()
    with smtp_server(around.mailboxes):
        next_attempt_now(running)
        running.wait(lambda: {mail.status for mail in running.site.mails()} == {"sent"}, 60, "they were not delivered")
        running.wait(lambda: running.last_tick_of("outbox") == NOTHING_IS_DUE, 60, "the outbox did not come to rest")
    arrived = Counter(message_from_bytes(message)["Message-ID"] for message in around.mailboxes.messages)
    assert set(arrived.values()) == {1}
    assert len(arrived) == len(running.site.mails())
    assert {mail.attempts for mail in running.site.mails() if mail.id in mine} == {2}
