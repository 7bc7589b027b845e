"""The outbox on both databases: each mail leaves once, retried with patience, whatever becomes of the others."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.message import EmailMessage
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError, OperationalError

from domain.db import database_now
from domain.errors import InvalidRequest
from domain.mail.audience import Audience
from domain.mail.compose import Composer, Links
from domain.mail.outbox import (
    FIRST_RETRY,
    LONGEST_RETRY,
    MAX_ATTEMPTS,
    Delivery,
    MailDelayed,
    MailWithdrawn,
    deliver,
    enqueue,
    outbox_state,
    try_again,
)
from domain.models import MailStatus, OutboxMail, Study, StudyGrant, User
from domain.permissions.roles import grant_on_study
from tests.support.mail import FakeTransport
from tests.support.site import Site

COMPOSE = Composer(
    "lookit@example.org", Links("http://platform.test/", "http://studies.test/", "http://previews.test/")
)


def ask_to_tell(site: Site, *who: str, event: str = "study_log:1", **changes: Any) -> None:
    with site.sessions.begin() as session:
        study = session.get_one(Study, site.study_id)
        context = {
            "study": {"name": study.name, "uuid": str(study.uuid)},
            "headline": "approved",
            "sentence": "Your study has been approved.",
            "state_before": "submitted",
            "state_after": "approved",
            "moved_by": "Site Admin",
            "comment": "",
        }
        enqueue(
            session,
            event=event,
            recipients=[session.get_one(User, getattr(site, name)) for name in who],
            study=study,
            **{"template": "study_moved", "context": context, **changes},
        )


def deliver_to(site: Site, transport: FakeTransport, limit: int = 100) -> Delivery:
    return deliver(site.sessions, transport, COMPOSE, limit=limit)


def let_time_pass(site: Site) -> None:
    """Make every waiting mail due."""
    with site.sessions.begin() as session:
        session.execute(update(OutboxMail).values(next_attempt_at=database_now(timedelta(seconds=-1))))


def wait_of(site: Site) -> timedelta:
    """How long from now the only mail waits."""
    with site.sessions.begin() as session:
        now = session.scalar(database_now().select())
        return session.scalars(select(OutboxMail.next_attempt_at)).one() - now


def statuses(site: Site) -> dict[str, str]:
    return {mail.recipient.email.partition("@")[0]: mail.status for mail in site.mails()}


def test_mails_are_delivered_once_oldest_first(site: Site) -> None:
    ask_to_tell(site, "study_admin", "designer")
    transport = FakeTransport()
    assert deliver_to(site, transport) == Delivery(sent=2, delayed=0, failed=0)
    assert [message["To"].addresses[0].addr_spec for message in transport.sent] == [
        "study_admin@example.org",
        "designer@example.org",
    ]
    for mail in site.mails():
        assert (mail.status, mail.attempts, mail.last_error) == ("sent", 1, None)
        assert mail.sent_at is not None
    assert deliver_to(site, transport) == Delivery(sent=0, delayed=0, failed=0)
    assert len(transport.sent) == 2


def test_a_round_takes_no_more_than_its_limit(site: Site) -> None:
    ask_to_tell(site, "study_admin", "designer", "site_admin")
    assert deliver_to(site, FakeTransport(), limit=2).sent == 2
    assert deliver_to(site, FakeTransport(), limit=2).sent == 1


def test_one_refused_address_does_not_stop_the_others(site: Site) -> None:
    ask_to_tell(site, "study_admin", "designer", "site_admin")
    transport = FakeTransport(refuses={"study_admin@example.org"}, delays={"designer@example.org"})
    assert deliver_to(site, transport) == Delivery(sent=1, delayed=1, failed=1)
    assert statuses(site) == {"study_admin": "failed", "designer": "waiting", "site_admin": "sent"}
    refused = site.mails()[0]
    assert "no such mailbox" in str(refused.last_error)
    assert refused.sent_at is None
    let_time_pass(site)
    deliver_to(site, FakeTransport())
    assert statuses(site)["study_admin"] == "failed"  # refused for good: never tried again


def test_a_delayed_mail_is_tried_again_when_its_time_has_come_and_not_before(site: Site) -> None:
    ask_to_tell(site, "designer")
    transport = FakeTransport(is_down=True)
    assert deliver_to(site, transport) == Delivery(sent=0, delayed=1, failed=0)
    (mail,) = site.mails()
    assert (mail.status, mail.attempts, mail.last_error, mail.sent_at) == ("waiting", 1, "the server is down", None)
    transport.is_down = False
    assert deliver_to(site, transport) == Delivery(sent=0, delayed=0, failed=0)
    let_time_pass(site)
    assert deliver_to(site, transport) == Delivery(sent=1, delayed=0, failed=0)
    (mail,) = site.mails()
    assert (mail.status, mail.attempts, mail.last_error) == ("sent", 2, None)
    assert len(set(transport.tried)) == 1
    assert transport.tried[0] == f"<outbox-{mail.uuid}@example.org>"


def test_the_waits_grow_up_to_a_longest_one_and_end_with_the_last_attempt(site: Site) -> None:
    ask_to_tell(site, "designer")
    transport = FakeTransport(is_down=True)
    tolerance, waited = timedelta(seconds=30), timedelta()
    for attempt in range(1, MAX_ATTEMPTS):
        assert deliver_to(site, transport).delayed == 1
        wanted = min(FIRST_RETRY * 2 ** (attempt - 1), LONGEST_RETRY)
        assert wanted - tolerance < wait_of(site) <= wanted
        let_time_pass(site)
        waited += wanted
    assert wanted == LONGEST_RETRY
    assert timedelta(days=3) <= waited < timedelta(days=3.5), "a server may be away for a weekend"
    assert deliver_to(site, transport) == Delivery(sent=0, delayed=0, failed=1)
    (mail,) = site.mails()
    assert (mail.status, mail.attempts, mail.last_error) == ("failed", MAX_ATTEMPTS, "the server is down")
    let_time_pass(site)
    assert deliver_to(site, FakeTransport()) == Delivery(sent=0, delayed=0, failed=0)
    assert len(set(transport.tried)) == 1


def test_failed_mails_are_put_back_all_or_one_as_if_never_tried(site: Site) -> None:
    ask_to_tell(site, "designer", "study_admin", "site_admin")
    ask_to_tell(site, "lab_member", event="study_log:2")
    refuse = {"designer@example.org", "study_admin@example.org"}
    deliver_to(site, FakeTransport(refuses=refuse, delays={"lab_member@example.org"}))
    first, second = site.mails()[:2]
    assert try_again(site.sessions, second.id) == [second.id]
    assert try_again(site.sessions) == [first.id]
    assert try_again(site.sessions) == []
    assert [(mail.status, mail.attempts) for mail in site.mails()] == [
        ("waiting", 0),
        ("waiting", 0),
        ("sent", 1),
        ("waiting", 1),
    ]
    assert deliver_to(site, FakeTransport()).sent == 2, "they are due now; the delayed one still waits for its time"


@pytest.mark.parametrize("mail_id", [0, -1, 4711, 2**63, 10**20])
def test_a_mail_that_is_none_is_not_tried_again(site: Site, mail_id: int) -> None:
    with pytest.raises(InvalidRequest, match=f"there is no mail {mail_id}"):
        try_again(site.sessions, mail_id)


def test_a_mail_that_has_not_failed_is_not_tried_again(site: Site) -> None:
    ask_to_tell(site, "designer")
    (mail,) = site.mails()
    with pytest.raises(InvalidRequest, match="is waiting: only one that has failed"):
        try_again(site.sessions, mail.id)
    deliver_to(site, FakeTransport())
    with pytest.raises(InvalidRequest, match="is sent: only one that has failed"):
        try_again(site.sessions, mail.id)


def test_two_who_deliver_at_once_deliver_each_mail_once(site: Site) -> None:
    people = ("study_admin", "designer", "site_admin", "lab_member", "superuser")
    for number in range(4):
        ask_to_tell(site, *people, event=f"study_log:{number}")
    transport = FakeTransport()
    together = threading.Barrier(4)

    def deliver_with_the_others(_: int) -> int:
        together.wait()
        return deliver_to(site, transport).sent

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(deliver_with_the_others, range(4))) == 20
    assert set(transport.recipients.values()) == {4}
    assert len(set(transport.tried)) == len(transport.tried) == 20


def test_nobody_takes_a_mail_that_another_is_about_to_deliver(site: Site) -> None:
    ask_to_tell(site, "designer")
    second = FakeTransport()

    class Slow(FakeTransport):
        def send(self, message: EmailMessage) -> None:
            assert deliver_to(site, second) == Delivery(sent=0, delayed=0, failed=0)
            super().send(message)

    assert deliver_to(site, Slow()).sent == 1
    assert second.tried == []


def test_a_mail_whose_deliverer_died_is_tried_again_with_the_same_message_id(site: Site) -> None:
    ask_to_tell(site, "designer")

    class Killed(BaseException):
        pass

    class Deadly(FakeTransport):
        def send(self, message: EmailMessage) -> None:
            super().send(message)
            raise Killed

    first, second = Deadly(), FakeTransport()
    with pytest.raises(Killed):
        deliver_to(site, first)
    assert site.mails()[0].status == MailStatus.WAITING
    assert deliver_to(site, second).sent == 0  # the dead one may still be at it
    let_time_pass(site)
    assert deliver_to(site, second).sent == 1
    assert first.tried == second.tried


def test_who_comes_back_too_late_does_not_undo_what_another_did(site: Site) -> None:
    ask_to_tell(site, "designer")
    second = FakeTransport()

    class TooLate(FakeTransport):
        def send(self, message: EmailMessage) -> None:
            let_time_pass(site)
            assert deliver_to(site, second).sent == 1
            super().send(message)

    deliver_to(site, TooLate(is_down=True))
    assert statuses(site) == {"designer": "sent"}


def test_a_late_refusal_does_not_settle_the_attempt_of_another(site: Site) -> None:
    ask_to_tell(site, "designer")

    class InTime(FakeTransport):
        def send(self, message: EmailMessage) -> None:
            late_is_done.wait(timeout=30)
            super().send(message)

    class TooLate(FakeTransport):
        def send(self, message: EmailMessage) -> None:
            let_time_pass(site)
            other.start()
            while site.mails()[0].attempts < 2:
                other.join(timeout=0.01)
            super().send(message)

    late_is_done, in_time = threading.Event(), InTime()
    other = threading.Thread(target=deliver_to, args=(site, in_time))
    deliver_to(site, TooLate(refuses={"designer@example.org"}))
    late_is_done.set()
    other.join(timeout=30)
    assert statuses(site) == {"designer": "sent"}
    assert len(in_time.sent) == 1


def test_nobody_is_told_twice_of_one_event(site: Site) -> None:
    ask_to_tell(site, "designer", "study_admin")
    with pytest.raises(IntegrityError):
        ask_to_tell(site, "designer")
    with pytest.raises(IntegrityError):
        ask_to_tell(site, "site_admin", "site_admin", event="study_log:2")
    assert statuses(site) == {"designer": "waiting", "study_admin": "waiting"}
    deliver_to(site, FakeTransport())
    with pytest.raises(IntegrityError):
        ask_to_tell(site, "designer")  # not even after it was sent


def test_mails_vanish_with_the_transaction_that_they_tell_of(site: Site) -> None:
    with site.sessions() as session:
        study, user = session.get_one(Study, site.study_id), session.get_one(User, site.designer)
        enqueue(session, event="study_log:1", template="study_moved", context={}, recipients=[user], study=study)
        session.rollback()
    assert site.mails() == []


@pytest.mark.parametrize(
    ("broken", "error"),
    [({"template": "no_such_template"}, "TemplateNotFound"), ({"context": {"study": {}}}, "UndefinedError")],
)
def test_a_mail_that_cannot_be_rendered_fails_alone(site: Site, broken: dict[str, Any], error: str) -> None:
    ask_to_tell(site, "designer", event="study_log:1", **broken)
    ask_to_tell(site, "study_admin", event="study_log:2")
    assert deliver_to(site, FakeTransport()) == Delivery(sent=1, delayed=0, failed=1)
    assert statuses(site) == {"designer": "failed", "study_admin": "sent"}
    assert error in str(site.mails()[0].last_error)


def test_a_database_that_is_away_while_a_mail_is_made_only_delays_it(site: Site) -> None:
    ask_to_tell(site, "designer", event="study_log:1")

    def compose(_mail: OutboxMail) -> EmailMessage:
        raise OperationalError("SELECT", {}, sqlite3.OperationalError("database is locked"))

    assert deliver(site.sessions, FakeTransport(), compose) == Delivery(sent=0, delayed=1, failed=0)
    assert "database is locked" in str(site.mails()[0].last_error)


def test_what_failed_counts_from_when_it_failed_and_not_from_when_it_was_enqueued(site: Site) -> None:
    ask_to_tell(site, "designer", "study_admin", event="study_log:1")
    with site.sessions.begin() as session:
        session.execute(update(OutboxMail).values(created_at=database_now(-timedelta(days=3))))
        is_last = update(OutboxMail).where(OutboxMail.recipient_id == site.designer)
        session.execute(is_last.values(attempts=MAX_ATTEMPTS - 1))
    transport = FakeTransport()
    transport.is_down = True
    assert deliver_to(site, transport) == Delivery(sent=0, delayed=1, failed=1)
    assert outbox_state(site.sessions, timedelta(minutes=1)).failed == 1
    with site.sessions.begin() as session:
        failed = update(OutboxMail).where(OutboxMail.status == MailStatus.FAILED)
        session.execute(failed.values(next_attempt_at=database_now(-timedelta(minutes=2))))
    assert outbox_state(site.sessions, timedelta(minutes=1)).failed == 0


def test_a_person_with_an_address_that_is_none_fails_alone(site: Site) -> None:
    with site.sessions.begin() as session:
        session.get_one(User, site.designer).email = "two words@example.org\nBcc: all@example.org"
    ask_to_tell(site, "designer", "study_admin")
    transport = FakeTransport()
    assert deliver_to(site, transport) == Delivery(sent=1, delayed=0, failed=1)
    assert transport.recipients == {"study_admin@example.org": 1}


def withdraw_for(*addresses: str) -> Any:
    """Composes every mail but those to these addresses, whose offer is theirs no longer."""

    def compose(mail: OutboxMail) -> EmailMessage:
        if mail.recipient.email in addresses:
            raise MailWithdrawn("the permission is gone")
        return COMPOSE(mail)

    return compose


def test_a_withdrawn_mail_is_neither_sent_nor_tried_again_and_says_why(site: Site) -> None:
    ask_to_tell(site, "designer", "study_admin")
    transport = FakeTransport()
    compose = withdraw_for("designer@example.org")
    assert deliver(site.sessions, transport, compose) == Delivery(sent=1, delayed=0, failed=0, withdrawn=1)
    assert statuses(site) == {"designer": "withdrawn", "study_admin": "sent"}
    withdrawn = site.mails()[0]
    assert (withdrawn.attempts, withdrawn.last_error, withdrawn.sent_at) == (1, "the permission is gone", None)
    let_time_pass(site)
    assert deliver_to(site, transport) == Delivery(sent=0, delayed=0, failed=0)
    assert transport.recipients == {"study_admin@example.org": 1}


def test_a_withdrawal_is_recorded_once_in_its_own_transaction(site: Site) -> None:
    ask_to_tell(site, "designer", "study_admin")
    recorded = []

    def on_withdrawal(session: Any, mail: OutboxMail, reason: str) -> None:
        now = session.scalar(select(OutboxMail.status).where(OutboxMail.id == mail.id))
        recorded.append((mail.recipient.email, now, reason))

    compose = withdraw_for("designer@example.org")
    for _ in range(2):
        deliver(site.sessions, FakeTransport(), compose, on_withdrawal=on_withdrawal)
        let_time_pass(site)
    assert recorded == [("designer@example.org", "withdrawn", "the permission is gone")]


def test_who_withdraws_too_late_records_nothing(site: Site) -> None:
    ask_to_tell(site, "designer")
    recorded = []

    def compose(mail: OutboxMail) -> EmailMessage:
        let_time_pass(site)
        assert deliver_to(site, FakeTransport()).sent == 1
        raise MailWithdrawn("the permission is gone")

    deliver(site.sessions, FakeTransport(), compose, on_withdrawal=lambda *facts: recorded.append(facts))
    assert statuses(site) == {"designer": "sent"}
    assert recorded == []


def test_a_mail_that_cannot_be_composed_now_is_delayed(site: Site) -> None:
    ask_to_tell(site, "designer")

    def compose(mail: OutboxMail) -> EmailMessage:
        raise MailDelayed("the bucket cannot be reached")

    assert deliver(site.sessions, FakeTransport(), compose).delayed == 1
    assert statuses(site) == {"designer": "waiting"}


# -- mail for people who have left -------------------------------------------------------------------------------------


def lose(site: Site, who: str) -> None:
    with site.sessions.begin() as session:
        session.execute(delete(StudyGrant).where(StudyGrant.user_id == getattr(site, who)))


def test_mail_for_an_account_that_was_closed_since_is_withdrawn(site: Site) -> None:
    ask_to_tell(site, "study_admin", "site_admin")
    with site.sessions.begin() as session:
        session.get_one(User, site.study_admin).is_active = False
    transport = FakeTransport()
    assert deliver_to(site, transport) == Delivery(sent=1, delayed=0, failed=0, withdrawn=1)
    assert statuses(site) == {"study_admin": "withdrawn", "site_admin": "sent"}
    assert "study_admin@example.org is closed" in str(site.mails()[0].last_error)


@pytest.mark.parametrize("audience", [Audience.STUDY_ADMINS, Audience.RESEARCHERS])
def test_mail_for_a_role_that_was_lost_since_is_withdrawn_though_another_is_held(
    site: Site, audience: Audience
) -> None:
    ask_to_tell(site, "study_admin", audiences=(audience,))
    lose(site, "study_admin")
    with site.sessions.begin() as session:
        study = session.get_one(Study, site.study_id)
        grant_on_study(session, session.get_one(User, site.study_admin), study, "preview")
    assert deliver_to(site, FakeTransport()) == Delivery(sent=0, delayed=0, failed=0, withdrawn=1)
    assert "has lost the role" in str(site.mails()[0].last_error)


def test_mail_for_having_asked_is_delivered_while_any_role_is_held(site: Site) -> None:
    asked_by = site.user(site.designer)
    ask_to_tell(site, "designer", audiences=(Audience.STUDY_ADMINS,), asked_by=asked_by)
    assert deliver_to(site, FakeTransport()).sent == 1
    ask_to_tell(site, "designer", audiences=(Audience.STUDY_ADMINS,), asked_by=asked_by, event="study_log:2")
    lose(site, "designer")
    assert deliver_to(site, FakeTransport()).withdrawn == 1
    assert "holds no role any more" in str(site.mails()[1].last_error)


def test_a_mail_of_before_the_upgrade_goes_to_whom_any_role_is_left(site: Site) -> None:
    ask_to_tell(site, "designer", "study_admin")
    with site.sessions.begin() as session:
        for mail in session.scalars(select(OutboxMail)):
            mail.context = {name: value for name, value in mail.context.items() if name != "sent_to"}
    lose(site, "designer")
    assert deliver_to(site, FakeTransport()) == Delivery(sent=1, delayed=0, failed=0, withdrawn=1)
