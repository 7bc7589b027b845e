"""The archive ledger on both databases: who gets a request, what its end leaves behind, who comes too late."""

from __future__ import annotations

import shlex
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage

import pytest
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from domain.db import database_now
from domain.errors import InvalidRequest, LeaseLost, PermissionDenied
from domain.mail.compose import Composer, Download, Links
from domain.mail.outbox import Delivery, MailWithdrawn, deliver
from domain.models import (
    ArchiveContent,
    ArchiveKind,
    ArchiveRequest,
    BuildKind,
    ConsentRuling,
    OutboxMail,
    RequestStatus,
    Response,
    State,
    Study,
    StudyGrant,
    User,
    Video,
)
from domain.models.accounts import RolePermission
from domain.permissions.codes import Permission
from domain.requests.archive_links import ArchiveLinks
from domain.requests.archives import (
    NAMED_IN_A_LOG,
    NAMED_IN_A_MAIL,
    ArchiveClaim,
    ArchiveFacts,
    ArchiveLedger,
    MissingVideo,
)
from domain.requests.failure import Failure, Retry
from domain.videos.selection import Source, basis_of, require_basis, select_videos
from tests.support.footage import Footage
from tests.support.mail import FakeTransport
from tests.support.site import Site
from tests.support.statements import statements_of

MINUTE = timedelta(minutes=1)
CONSENT, ALL = ArchiveKind.CONSENT, ArchiveKind.ALL
RETRY = Retry()
FAILURE = Failure("stream", "storage_error", "the bucket cannot be reached")
QUEUED, RUNNING = RequestStatus.QUEUED, RequestStatus.RUNNING
FAILED, CANCELLED, SUCCEEDED = RequestStatus.FAILED, RequestStatus.CANCELLED, RequestStatus.SUCCEEDED


@pytest.fixture
def footage(site: Site) -> Footage:
    """One accepted response of a family with one video, which is consent footage too."""
    footage = Footage(site)
    footage.video(footage.response("accepted"), is_consent=True)
    return footage


@pytest.fixture
def ledger(site: Site, footage: Footage) -> ArchiveLedger:
    return ArchiveLedger(site.sessions)


def row_of(site: Site, request_id: int) -> ArchiveRequest:
    with site.sessions.begin() as session:
        return session.get_one(ArchiveRequest, request_id)


def due(ledger: ArchiveLedger) -> list[int]:
    """The requests that wait and whose time has come."""
    is_due = (ArchiveRequest.status == QUEUED, ArchiveRequest.next_attempt_at <= database_now())
    with ledger.sessions.begin() as session:
        return list(session.scalars(select(ArchiveRequest.id).where(*is_due).order_by(ArchiveRequest.id)))


def claim(site: Site, ledger: ArchiveLedger, lease: timedelta = MINUTE, name_contains: str = "") -> ArchiveClaim:
    request_id = ledger.request(site.study_id, site.study_admin, ALL, name_contains)
    return ledger.claim(request_id, "run-1", lease)


def facts_of(
    site: Site,
    sources: frozenset[Source] = frozenset({Source.FAMILIES}),
    missing: int = 0,
    kind: ArchiveKind = ALL,
    name_contains: str = "",
) -> ArchiveFacts:
    """An archive of what there is now of these sources."""
    with site.sessions.begin() as session:
        everyone, study = session.get_one(User, site.superuser), session.get_one(Study, site.study_id)
        selection = select_videos(session, everyone, study, kind, name_contains)
    return ArchiveFacts(
        archive_key="u/u_d_all.zip",
        archive_bytes=5_000_000_000,
        missing=tuple(MissingVideo(f"v{number}.mp4", "not in the bucket") for number in range(missing)),
        without_permission=2,
        without_consent=3,
        basis=basis_of(video for video in selection.videos if video.source in sources),
        was_there=False,
    )


def end_leases(site: Site) -> None:
    running = update(ArchiveRequest).where(ArchiveRequest.status == RUNNING)
    with site.sessions.begin() as session:
        session.execute(running.values(lease_expires_at=database_now(-MINUTE)))


def let_time_pass(site: Site) -> None:
    with site.sessions.begin() as session:
        session.execute(update(ArchiveRequest).values(next_attempt_at=database_now(-MINUTE)))
        session.execute(update(OutboxMail).values(next_attempt_at=database_now(-MINUTE)))


# -- asking and claiming ------------------------------------------------------------------------------------------


def test_a_claim_holds_the_request_and_leaves_the_study_alone(site: Site, ledger: ArchiveLedger) -> None:
    site.set_state(State.ACTIVE)
    claimed = claim(site, ledger, name_contains="frame")
    assert (claimed.kind, claimed.name_contains, claimed.requested_by) == (ALL, "frame", "Study Admin")
    assert (claimed.attempt, claimed.fencing_token, claimed.study_uuid) == (1, 1, site.study().uuid)
    row = row_of(site, claimed.request_id)
    assert (row.status, row.run_id, row.attempt) == ("running", "run-1", 1)
    assert row.lease_expires_at is not None
    assert row.lease_expires_at > datetime.now(UTC)
    assert (site.study().state, site.study().fencing_token) == (State.ACTIVE, 0)
    assert ledger.running(expired_only=False) == [claimed]
    assert ledger.running(expired_only=True) == []


def test_archives_of_one_study_are_made_at_once(site: Site, ledger: ArchiveLedger) -> None:
    first = claim(site, ledger)
    second = claim(site, ledger)
    third = ledger.claim(ledger.request(site.study_id, site.superuser, ALL), "run-3", MINUTE)
    assert ledger.running(expired_only=False) == [first, second, third]


def test_a_study_that_is_being_built_can_be_asked_for_its_videos(site: Site, ledger: ArchiveLedger) -> None:
    site.ledger.claim(site.ledger.request(site.study_id, site.study_admin, BuildKind.PREVIEW), "run", MINUTE)
    claimed = claim(site, ledger)
    ledger.finish(claimed, facts_of(site), {})
    (log,) = site.logs()
    assert (log.state_before, log.state_after, site.study().state) == ("previewing", "previewing", "previewing")


def test_who_asks_again_takes_the_place_of_their_own_waiting_request_only(site: Site, ledger: ArchiveLedger) -> None:
    mine = ledger.request(site.study_id, site.study_admin, ALL)
    others = [
        ledger.request(site.study_id, site.study_admin, CONSENT),
        ledger.request(site.study_id, site.study_admin, ALL, "frame"),
        ledger.request(site.study_id, site.superuser, ALL),
    ]
    again = ledger.request(site.study_id, site.study_admin, ALL)
    row = row_of(site, mine)
    assert (row.status, row.error_code, row.finished_at is None) == ("cancelled", "replaced", False)
    assert due(ledger) == [*others, again]
    assert (site.logs(), site.mails()) == ([], [])


def test_who_asks_while_it_runs_waits_behind_it(site: Site, ledger: ArchiveLedger) -> None:
    claimed = claim(site, ledger)
    again = ledger.request(site.study_id, site.study_admin, ALL)
    assert due(ledger) == [again]
    assert row_of(site, claimed.request_id).status == RUNNING


def test_a_launch_asks_and_claims_in_one(site: Site, ledger: ArchiveLedger) -> None:
    waiting = ledger.request(site.study_id, site.study_admin, ALL)
    claimed = ledger.launch(site.study_id, site.study_admin, ALL, "run-9", MINUTE, origin="by an operator")
    row = row_of(site, claimed.request_id)
    assert (row.status, row.run_id, row.origin) == ("running", "run-9", "by an operator")
    assert row_of(site, waiting).error_code == "replaced"
    with pytest.raises(PermissionDenied):
        ledger.launch(site.study_id, site.stranger, ALL, "run-10", MINUTE)
    assert due(ledger) == []


@pytest.mark.parametrize(
    ("who", "kind", "part", "error", "sentence"),
    [
        ("stranger", ALL, "", PermissionDenied, r"stranger@example\.org lacks studies\.view_study_responses"),
        ("inactive", ALL, "", PermissionDenied, "inactive"),
        ("designer", CONSENT, "", PermissionDenied, r"or studies\.code_study_consent \(videos of families\)"),
        ("study_admin", ALL, "no-such-frame", InvalidRequest, "no videos whose name contains 'no-such-frame'"),
        ("study_admin", ALL, "a\x00", InvalidRequest, "no object name can hold"),
    ],
)
def test_who_may_have_nothing_cannot_ask(
    site: Site, ledger: ArchiveLedger, who: str, kind: ArchiveKind, part: str, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        ledger.request(site.study_id, getattr(site, who), kind, part)
    with site.sessions.begin() as session:
        assert session.scalars(select(ArchiveRequest)).all() == []


def test_a_permission_lost_while_the_request_waited_ends_it_without_log_or_mail(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    request_id = ledger.request(site.study_id, site.study_admin, ALL)
    footage.take_away_from(site.study_admin)
    with pytest.raises(PermissionDenied):
        ledger.claim(request_id, "run-1", MINUTE)
    row = row_of(site, request_id)
    assert (row.status, row.error_code, row.attempt) == ("failed", "permission_denied", 0)
    assert "studies.view_study_responses" in str(row.error)
    assert (site.logs(), site.mails()) == ([], [])


def test_a_consent_lost_while_the_request_waited_ends_it_without_log_or_mail(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    request_id = ledger.request(site.study_id, site.study_admin, ALL)
    with site.sessions.begin() as session:
        session.execute(update(ConsentRuling).values(ruling="rejected"))
    with pytest.raises(InvalidRequest, match="newest consent ruling"):
        ledger.claim(request_id, "run-1", MINUTE)
    assert (row_of(site, request_id).status, row_of(site, request_id).error_code) == ("failed", "invalid_request")
    assert (site.logs(), site.mails()) == ([], [])


def test_a_request_can_be_refused_while_it_waits_and_not_later(site: Site, ledger: ArchiveLedger) -> None:
    request_id = ledger.request(site.study_id, site.study_admin, ALL)
    ledger.refuse(request_id, "wrong_environment", "the bucket is another's")
    assert (row_of(site, request_id).status, row_of(site, request_id).error) == ("failed", "the bucket is another's")
    claimed = claim(site, ledger)
    ledger.refuse(claimed.request_id, "wrong_environment", "too late")
    assert row_of(site, claimed.request_id).status == RUNNING


@pytest.mark.parametrize("request_id", [4711, 0, -1, 2**63, 10**20])
def test_an_unknown_request_is_refused(site: Site, ledger: ArchiveLedger, request_id: int) -> None:
    unknown = f"no archive request {request_id}"
    with pytest.raises(InvalidRequest, match=unknown):
        ledger.claim(request_id, "run-1", MINUTE)
    with pytest.raises(InvalidRequest, match=unknown):
        ledger.cancel(request_id, site.study_admin)
    with pytest.raises(InvalidRequest, match=unknown):
        ArchiveLinks(ledger).link(request_id, site.study_admin)
    ledger.refuse(request_id, "platform_error", "nothing is refused")
    assert ledger.cancel_submitted(request_id, 1, "somebody") is False
    assert ledger.not_started(request_id, 1, FAILURE, "run-1") is None


def test_a_request_is_claimed_once(site: Site, ledger: ArchiveLedger) -> None:
    claimed = claim(site, ledger)
    with pytest.raises(LeaseLost, match="no longer waits: it is running in run run-1"):
        ledger.claim(claimed.request_id, "run-2", MINUTE)
    ledger.finish(claimed, facts_of(site), {})
    with pytest.raises(LeaseLost, match="it is succeeded"):
        ledger.claim(claimed.request_id, "run-2", MINUTE)
    with pytest.raises(InvalidRequest, match="no archive request 4711"):
        ledger.claim(4711, "run-2", MINUTE)


def claimers_of(site: Site, ledger: ArchiveLedger, rounds: int = 10, at_once: int = 4) -> list[Counter[str]]:
    outcomes = []
    for number in range(rounds):
        request_id = ledger.request(site.study_id, site.study_admin, ALL, f"fram{'e' * (number % 2)}")
        together = threading.Barrier(at_once)

        def take(run: int, request_id: int = request_id, together: threading.Barrier = together) -> str:
            together.wait()
            try:
                ledger.claim(request_id, f"run-{run}", MINUTE)
            except LeaseLost:
                return "lost"
            return "won"

        with ThreadPoolExecutor(at_once) as threads:
            outcomes.append(Counter(threads.map(take, range(at_once))))
    return outcomes


def test_of_many_who_claim_at_the_same_moment_one_wins(site: Site, ledger: ArchiveLedger) -> None:
    assert claimers_of(site, ledger) == [Counter(won=1, lost=3)] * 10


def test_of_many_who_ask_for_the_same_at_the_same_moment_one_waits(site: Site, ledger: ArchiveLedger) -> None:
    for _ in range(5):
        together = threading.Barrier(4)

        def ask(_: int, together: threading.Barrier = together) -> str:
            together.wait()
            try:
                ledger.request(site.study_id, site.study_admin, ALL)
            except InvalidRequest as refusal:
                assert "at the same moment" in str(refusal)  # noqa: PT017
            return "answered"

        with ThreadPoolExecutor(4) as threads:
            assert len(list(threads.map(ask, range(4)))) == 4
        assert len(due(ledger)) == 1


# -- success ------------------------------------------------------------------------------------------------------


def test_a_finished_archive_leaves_one_log_one_mail_and_its_facts(site: Site, ledger: ArchiveLedger) -> None:
    claimed = claim(site, ledger, name_contains="frame")
    ledger.finish(claimed, facts_of(site, missing=1), {"seconds": 4.2})
    row = row_of(site, claimed.request_id)
    assert (row.status, row.archive_key, row.archive_bytes) == ("succeeded", "u/u_d_all.zip", 5_000_000_000)
    assert (row.video_count, row.missing_count, row.excluded_count) == (1, 1, 5)
    assert (row.holds_families, row.holds_previews) == (True, False)
    (log,) = site.logs()
    assert (log.action, log.user_id, log.state_before, log.state_after) == (
        "video_archive",
        site.study_admin,
        "approved",
        "approved",
    )
    assert log.extra == {
        "outcome": "succeeded",
        "kind": "all",
        "name_contains": "frame",
        "request_id": claimed.request_id,
        "run_id": "run-1",
        "attempt": 1,
        "origin": "",
        "archive_key": "u/u_d_all.zip",
        "archive_bytes": 5_000_000_000,
        "video_count": 1,
        "missing_count": 1,
        "without_permission": 2,
        "without_consent": 3,
        "was_there": False,
        "missing": [{"object_key": "v0.mp4", "reason": "not in the bucket"}],
        "seconds": 4.2,
    }
    (mail,) = site.mails()
    assert (mail.template, mail.recipient_id, mail.study_id) == ("archive_ready", site.study_admin, site.study_id)
    assert mail.context["archive"] == {
        "request_id": claimed.request_id,
        "key": "u/u_d_all.zip",
        "requester_id": site.study_admin,
    }
    assert (mail.context["study"]["uuid"], mail.context["kind"]) == (str(site.study().uuid), "all")
    assert "http" not in str(mail.context)


def test_of_many_missing_videos_the_first_are_named(site: Site, ledger: ArchiveLedger) -> None:
    ledger.finish(claim(site, ledger), facts_of(site, missing=5000), {})
    (log,), (mail,) = site.logs(), site.mails()
    assert (log.extra["missing_count"], len(log.extra["missing"])) == (5000, NAMED_IN_A_LOG)
    assert (mail.context["missing_count"], len(mail.context["missing"])) == (5000, NAMED_IN_A_MAIL)


def test_whoever_ends_a_request_second_changes_nothing(site: Site, ledger: ArchiveLedger) -> None:
    claimed = claim(site, ledger)
    ledger.finish(claimed, facts_of(site), {})
    for late in (
        lambda: ledger.finish(claimed, facts_of(site), {}),
        lambda: ledger.fail(claimed, FAILURE, {}),
        lambda: ledger.retry(claimed, FAILURE, {}),
        lambda: ledger.cancelled(claimed, "Somebody", {}),
        lambda: ledger.expire(claimed, {}),
        lambda: ledger.heartbeat(claimed, MINUTE),
    ):
        with pytest.raises(LeaseLost):
            late()
    assert row_of(site, claimed.request_id).status == SUCCEEDED
    assert len(site.logs()) == len(site.mails()) == 1


def test_a_person_whose_account_was_closed_gets_no_mail(site: Site, ledger: ArchiveLedger) -> None:
    claimed = claim(site, ledger)
    with site.sessions.begin() as session:
        session.get_one(User, site.study_admin).is_active = False
    ledger.finish(claimed, facts_of(site), {})
    assert site.mails() == []
    assert len(site.logs()) == 1


def test_the_database_keeps_a_success_without_an_archive_out(site: Site, ledger: ArchiveLedger) -> None:
    claimed = claim(site, ledger)
    with pytest.raises(IntegrityError, match="succeeded_names_its_archive"), site.sessions.begin() as session:
        session.execute(
            update(ArchiveRequest)
            .where(ArchiveRequest.id == claimed.request_id)
            .values(status=SUCCEEDED, finished_at=database_now(), lease_expires_at=None)
        )


# -- failure ------------------------------------------------------------------------------------------------------


def test_a_failed_archive_leaves_one_log_and_one_mail(site: Site, ledger: ArchiveLedger) -> None:
    claimed = claim(site, ledger)
    ledger.fail(claimed, Failure("listing", "name_taken", "the archive cannot be made"), {"log": ["x"]})
    row = row_of(site, claimed.request_id)
    assert (row.status, row.error_code, row.error) == ("failed", "name_taken", "the archive cannot be made")
    (log,), (mail,) = site.logs(), site.mails()
    assert (log.extra["outcome"], log.extra["step"], log.extra["log"]) == ("failed", "listing", ["x"])
    assert (mail.template, mail.recipient_id) == ("archive_failed", site.study_admin)


def test_the_platforms_fault_puts_it_back_and_the_waits_grow(site: Site, ledger: ArchiveLedger) -> None:
    claimed = claim(site, ledger)
    tolerance = timedelta(seconds=30)
    for attempt in range(1, RETRY.attempts):
        assert claimed.attempt == attempt
        assert ledger.retry(claimed, FAILURE, {}) is QUEUED
        row = row_of(site, claimed.request_id)
        assert (row.status, row.error_code, row.error, row.run_id) == ("queued", "storage_error", None, None)
        wait = row.next_attempt_at - datetime.now(UTC)
        assert abs(wait - RETRY.first_wait * 2 ** (attempt - 1)) < tolerance
        assert [failed["code"] for failed in row.failed_attempts] == ["storage_error"] * attempt
        assert due(ledger) == []
        let_time_pass(site)
        assert due(ledger) == [claimed.request_id]
        again = ledger.claim(claimed.request_id, f"run-{attempt + 1}", MINUTE)
        assert again.fencing_token > claimed.fencing_token
        assert row_of(site, claimed.request_id).error_code is None
        with pytest.raises(LeaseLost):
            ledger.finish(claimed, facts_of(site), {})
        claimed = again
    assert (site.logs(), site.mails()) == ([], [])
    assert ledger.retry(claimed, FAILURE, {"log": ["last"]}) is FAILED
    row = row_of(site, claimed.request_id)
    assert (row.status, row.error_code, row.attempt) == ("failed", "storage_error", RETRY.attempts)
    assert row.error == f"tried {RETRY.attempts} times; the last time: the bucket cannot be reached"
    (log,), (mail,) = site.logs(), site.mails()
    assert (log.extra["attempt"], log.extra["log"], mail.template) == (RETRY.attempts, ["last"], "archive_failed")
    let_time_pass(site)
    assert due(ledger) == []


def test_a_request_that_kills_each_of_its_workers_ends(site: Site, ledger: ArchiveLedger) -> None:
    request_id = ledger.request(site.study_id, site.study_admin, ALL)
    statuses = []
    for attempt in range(RETRY.attempts):
        claimed = ledger.claim(request_id, f"run-{attempt}", MINUTE)
        end_leases(site)
        assert ledger.running(expired_only=True) == [claimed]
        statuses.append(ledger.expire(claimed, {}))
        with pytest.raises(LeaseLost):
            ledger.expire(claimed, {})
    assert statuses == [QUEUED] * (RETRY.attempts - 1) + [FAILED]
    assert row_of(site, request_id).error_code == "worker_died"
    assert [log.extra["outcome"] for log in site.logs()] == ["failed"]
    assert [mail.template for mail in site.mails()] == ["archive_failed"]


def test_a_heartbeat_keeps_a_lease_from_expiring(site: Site, ledger: ArchiveLedger) -> None:
    claimed = claim(site, ledger, lease=-MINUTE)
    assert ledger.running(expired_only=True) == [claimed]
    assert not ledger.heartbeat(claimed, MINUTE).cancel_requested
    assert ledger.running(expired_only=True) == []
    with pytest.raises(LeaseLost):
        ledger.expire(claimed, {})
    assert row_of(site, claimed.request_id).status == RUNNING


def test_a_worker_that_wakes_after_its_lease_comes_too_late(site: Site, ledger: ArchiveLedger) -> None:
    late = claim(site, ledger, lease=-MINUTE)
    ledger.expire(late, {})
    current = ledger.claim(late.request_id, "run-2", MINUTE)
    for act in (
        lambda: ledger.finish(late, facts_of(site), {}),
        lambda: ledger.retry(late, FAILURE, {}),
        lambda: ledger.heartbeat(late, MINUTE),
    ):
        with pytest.raises(LeaseLost):
            act()
    ledger.finish(current, facts_of(site), {})
    assert len(site.logs()) == len(site.mails()) == 1


@pytest.mark.parametrize("how", ["retry", "expire"])
def test_what_would_wait_again_makes_room_for_a_newer_request_that_waits(
    site: Site, ledger: ArchiveLedger, how: str
) -> None:
    claimed = claim(site, ledger)
    newer = ledger.request(site.study_id, site.study_admin, ALL)
    end_leases(site)
    assert (ledger.retry(claimed, FAILURE, {}) if how == "retry" else ledger.expire(claimed, {})) is CANCELLED
    row = row_of(site, claimed.request_id)
    assert (row.status, row.error_code) == ("cancelled", "replaced")
    assert due(ledger) == [newer]
    (log,) = site.logs()
    assert (log.action, log.extra["outcome"], log.extra["request_id"]) == (
        "video_archive",
        "replaced",
        claimed.request_id,
    )
    assert len(log.extra["failed_attempts"]) == 1
    assert site.mails() == [], "who asked has asked again, and is told of that one"


def test_what_is_replaced_while_it_waits_for_another_attempt_has_its_log(site: Site, ledger: ArchiveLedger) -> None:
    claimed = claim(site, ledger)
    assert ledger.retry(claimed, FAILURE, {}) is QUEUED
    newer = ledger.request(site.study_id, site.study_admin, ALL)
    assert row_of(site, claimed.request_id).error_code == "replaced"
    (log,) = site.logs()
    assert (log.extra["outcome"], log.extra["request_id"], log.extra["attempt"]) == ("replaced", claimed.request_id, 1)
    assert [attempt["code"] for attempt in log.extra["failed_attempts"]] == [FAILURE.code]
    assert site.mails() == []
    ledger.launch(site.study_id, site.study_admin, ALL, "run-2", MINUTE)
    assert row_of(site, newer).error_code == "replaced"
    assert len(site.logs()) == 1, "nobody had begun on that one"


def test_who_cancels_their_own_waiting_request_is_answered_and_not_mailed(site: Site, ledger: ArchiveLedger) -> None:
    request_id = ledger.request(site.study_id, site.study_admin, ALL)
    assert ledger.cancel(request_id, site.study_admin) is CANCELLED
    row = row_of(site, request_id)
    assert (row.status, row.error_code, row.cancelled_by_id) == ("cancelled", "cancelled", site.study_admin)
    (log,) = site.logs()
    assert (log.extra["outcome"], log.extra["cancelled_by"]) == ("cancelled", "Study Admin")
    assert site.mails() == []
    with pytest.raises(InvalidRequest, match="already ended: it is cancelled"):
        ledger.cancel(request_id, site.study_admin)


def test_whose_waiting_request_another_cancels_is_told(site: Site, ledger: ArchiveLedger) -> None:
    request_id = ledger.request(site.study_id, site.study_admin, ALL)
    assert ledger.cancel(request_id, site.designer) is CANCELLED
    (mail,) = site.mails()
    assert (mail.template, mail.recipient_id, mail.context["cancelled_by"]) == (
        "archive_cancelled",
        site.study_admin,
        "Designer",
    )


def test_cancelling_a_running_request_reaches_the_worker_with_its_next_heartbeat(
    site: Site, ledger: ArchiveLedger
) -> None:
    claimed = claim(site, ledger)
    assert ledger.canceller(claimed) is None
    assert ledger.cancel(claimed.request_id, site.study_admin) is RUNNING
    assert ledger.heartbeat(claimed, MINUTE).cancel_requested
    assert ledger.canceller(claimed) == "Study Admin"
    assert (site.logs(), site.mails()) == ([], [])
    ledger.cancelled(claimed, "Study Admin", {})
    (log,), (mail,) = site.logs(), site.mails()
    assert (log.extra["cancelled_by"], mail.template) == ("Study Admin", "archive_cancelled")


@pytest.mark.parametrize("how", ["retry", "expire"])
def test_what_was_cancelled_does_not_wait_again(site: Site, ledger: ArchiveLedger, how: str) -> None:
    claimed = claim(site, ledger)
    ledger.cancel(claimed.request_id, site.designer)
    end_leases(site)
    assert (ledger.retry(claimed, FAILURE, {}) if how == "retry" else ledger.expire(claimed, {})) is CANCELLED
    row = row_of(site, claimed.request_id)
    assert (row.status, row.error_code) == ("cancelled", "cancelled")
    (log,), (mail,) = site.logs(), site.mails()
    assert (log.extra["cancelled_by"], mail.template) == ("Designer", "archive_cancelled")


def test_who_neither_asked_nor_may_change_the_study_cannot_cancel(site: Site, ledger: ArchiveLedger) -> None:
    request_id = ledger.request(site.study_id, site.study_admin, ALL)
    for who in (site.stranger, site.lab_member, site.inactive):
        with pytest.raises(PermissionDenied):
            ledger.cancel(request_id, who)
    assert row_of(site, request_id).status == QUEUED


# -- the link -----------------------------------------------------------------------------------------------------


def finished(site: Site, ledger: ArchiveLedger, user_id: int, sources: frozenset[Source] | None = None) -> ArchiveClaim:
    claimed = ledger.claim(ledger.request(site.study_id, user_id, ALL), "run-1", MINUTE)
    ledger.finish(claimed, facts_of(site, sources or frozenset({Source.FAMILIES})), {})
    return claimed


def deliver_links(site: Site, ledger: ArchiveLedger, transport: FakeTransport) -> Delivery:
    """Deliver as a worker does: the link is made of what the ledger offers."""

    def download(mail: OutboxMail) -> Download:
        offer = ArchiveLinks(ledger).offer_of_mail(mail)
        url = f"https://bucket.test/{offer.archive_key}?name={offer.file_name}"
        return Download(url, 30 * MINUTE, datetime.now(UTC) + 30 * MINUTE)

    links = Links("http://platform.test/", "http://studies.test/", "http://previews.test/")
    compose = Composer("lookit@example.org", links, downloads=download)
    return deliver(site.sessions, transport, compose, on_withdrawal=ArchiveLinks(ledger).record_withdrawal)


def text_of(message: EmailMessage) -> str:
    body = message.get_body(("plain",))
    assert body is not None
    return body.get_content()


def test_the_mail_brings_a_link_made_when_it_is_sent(site: Site, ledger: ArchiveLedger) -> None:
    finished(site, ledger, site.study_admin)
    transport = FakeTransport()
    assert deliver_links(site, ledger, transport) == Delivery(sent=1, delayed=0, failed=0)
    (message,) = transport.sent
    name = f"Apples_and_oranges_all_videos_{datetime.now(UTC).date()}.zip"
    assert f"https://bucket.test/u/u_d_all.zip?name={name}" in text_of(message)


def test_a_mail_whose_reader_lost_the_permission_is_withdrawn_and_the_log_says_so_once(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    claimed = finished(site, ledger, site.study_admin)
    footage.take_away_from(site.study_admin)
    transport = FakeTransport()
    assert deliver_links(site, ledger, transport) == Delivery(sent=0, delayed=0, failed=0, withdrawn=1)
    let_time_pass(site)
    deliver_links(site, ledger, transport)
    assert transport.tried == []
    (mail,) = site.mails()
    assert mail.status == "withdrawn"
    assert "studies.view_study_responses" in str(mail.last_error)
    _, log = site.logs()
    assert (log.action, log.user_id, log.extra["outcome"]) == ("video_archive", site.study_admin, "withdrawn")
    assert (log.extra["request_id"], log.extra["error"]) == (claimed.request_id, mail.last_error)


def test_it_is_the_permission_for_what_the_archive_holds_that_counts(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    footage.video(footage.response("accepted", is_preview=True))
    families = footage.person_with(Permission.VIEW_STUDY_RESPONSES)
    both = footage.person_with(Permission.VIEW_STUDY_RESPONSES, Permission.VIEW_STUDY_PREVIEW_DATA)
    mixed = finished(site, ledger, both, frozenset(Source))
    assert ArchiveLinks(ledger).link(mixed.request_id, both).archive_key == "u/u_d_all.zip"
    with pytest.raises(PermissionDenied, match="view_study_preview_data"):
        ArchiveLinks(ledger).link(mixed.request_id, families)
    ArchiveLinks(ledger).link(finished(site, ledger, both).request_id, families)


def delete_video(site: Site, key: str) -> None:
    """As a family may ask for: the row goes, and the response with its rulings if nothing else is left of it."""
    with site.sessions.begin() as session:
        response_id = session.scalars(delete(Video).where(Video.object_key == key).returning(Video.response_id)).one()
        if not session.scalars(select(Video.id).where(Video.response_id == response_id)).all():
            session.execute(delete(Response).where(Response.id == response_id))


def mark_gone(site: Site, key: str, gone_at: datetime | None) -> None:
    with site.sessions.begin() as session:
        session.execute(update(Video).where(Video.object_key == key).values(gone_at=gone_at))


CHANGES: dict[str, tuple[str, Callable[[Footage, int, str], None]]] = {
    "rejected": ("ruling: 1", lambda footage, response, _: footage.rule(response, "rejected")),
    "pending again": ("ruling: 1", lambda footage, response, _: footage.rule(response, "pending")),
    "deleted": ("deleted or moved: 1", lambda footage, _, key: delete_video(footage.site, key)),
    "gone": ("bucket of videos: 1", lambda footage, _, key: mark_gone(footage.site, key, datetime.now(UTC))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_who_may_still_see_such_videos_is_told_why_there_is_no_link_and_how_to_ask_again(
    site: Site, ledger: ArchiveLedger, footage: Footage, change: str
) -> None:
    response = footage.response("accepted")
    key = footage.video(response)
    claimed = finished(site, ledger, site.study_admin)
    sentence, happen = CHANGES[change]
    happen(footage, response, key)
    transport = FakeTransport()
    assert deliver_links(site, ledger, transport).withdrawn == 1
    with pytest.raises(InvalidRequest, match=sentence):
        ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)
    assert deliver_links(site, ledger, transport) == Delivery(sent=1, delayed=0, failed=0)
    (message,) = transport.sent
    assert (message["To"].addresses[0].addr_spec, "ask again" in message["Subject"]) == (
        "study_admin@example.org",
        True,
    )
    text = text_of(message)
    assert sentence in text
    assert f"lookit-ops videos zip {site.study().uuid} --as study_admin@example.org --kind all" in text
    assert "bucket.test" not in text
    assert [log.extra["outcome"] for log in site.logs()] == ["succeeded", "withdrawn"]
    let_time_pass(site)
    assert deliver_links(site, ledger, transport) == Delivery(sent=0, delayed=0, failed=0)


def test_the_command_that_asks_again_can_be_pasted_whatever_part_of_the_names_was_meant(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    part = "-x 'y\\"
    key = footage.video(footage.response("accepted"), key=f"a{part}b")
    claimed = ledger.claim(ledger.request(site.study_id, site.study_admin, ALL, part), "run-1", MINUTE)
    ledger.finish(claimed, facts_of(site, name_contains=part), {})
    mark_gone(site, key, datetime.now(UTC))
    deliver_links(site, ledger, FakeTransport())
    words = shlex.split(site.mails()[-1].context["again"])
    asked = ["zip", str(site.study().uuid), "--as", "study_admin@example.org", "--kind", "all"]
    assert words == ["lookit-ops", "videos", *asked, f"--name-contains={part}"]


def test_of_a_changed_archive_who_lost_the_permission_hears_nothing(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    key = footage.video(footage.response("accepted", is_preview=True))
    both = footage.person_with(Permission.VIEW_STUDY_RESPONSES, Permission.VIEW_STUDY_PREVIEW_DATA)
    claimed = finished(site, ledger, both, frozenset(Source))
    delete_video(site, key)
    with site.sessions.begin() as session:
        gone = RolePermission.code == Permission.VIEW_STUDY_PREVIEW_DATA.value
        mine = RolePermission.role_id.in_(select(StudyGrant.role_id).where(StudyGrant.user_id == both))
        session.execute(delete(RolePermission).where(gone, mine))
    with pytest.raises(PermissionDenied, match=r"view_study_preview_data \(videos of previews\)"):
        ArchiveLinks(ledger).link(claimed.request_id, both)
    assert deliver_links(site, ledger, FakeTransport()).withdrawn == 1
    assert [mail.template for mail in site.mails()] == ["archive_ready"]


def test_a_response_that_turns_out_to_be_a_familys_needs_the_permission_for_families(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    response = footage.response("accepted", is_preview=True)
    footage.video(response)
    tester = footage.person_with(Permission.VIEW_STUDY_PREVIEW_DATA)
    claimed = finished(site, ledger, tester, frozenset({Source.PREVIEWS}))
    ArchiveLinks(ledger).link(claimed.request_id, tester)
    with site.sessions.begin() as session:
        session.execute(update(Response).where(Response.id == response).values(is_preview=False))
    with pytest.raises(PermissionDenied, match=r"view_study_responses \(videos of families\)"):
        ArchiveLinks(ledger).link(claimed.request_id, tester)


def test_what_becomes_of_videos_that_are_not_in_it_stops_no_link(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    others = [
        footage.response("accepted"),  # with a video of another frame
        footage.response("accepted"),  # without any
        footage.response("accepted", is_preview=True),
        footage.response("accepted", study_id=site.another_study("Other")),
    ]
    keys = [footage.video(response, "2-other") for response in others if response != others[1]]
    claimed = ledger.claim(ledger.request(site.study_id, site.study_admin, ALL, "1-frame"), "run-1", MINUTE)
    ledger.finish(claimed, facts_of(site, name_contains="1-frame"), {})
    for response in others:
        footage.rule(response, "rejected")
    mark_gone(site, keys[0], datetime.now(UTC))
    delete_video(site, keys[1])
    ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)
    assert deliver_links(site, ledger, FakeTransport()).sent == 1


def test_what_is_as_it_was_is_given_out_again(site: Site, ledger: ArchiveLedger, footage: Footage) -> None:
    response = footage.response("rejected", "accepted")
    key = footage.video(response)
    claimed = finished(site, ledger, site.study_admin)
    footage.rule(response, "accepted")
    ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)
    footage.rule(response, "rejected")
    mark_gone(site, key, datetime.now(UTC))
    with pytest.raises(InvalidRequest):
        ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)
    footage.rule(response, "accepted")
    mark_gone(site, key, None)
    ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)


def test_a_ruling_that_was_committed_late_counts_whatever_its_id(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    """PostgreSQL gives out ids before the commit: the rejection has a lower id than one that was seen before it."""
    response = footage.response("accepted")
    footage.video(response)
    other = footage.response()
    with site.sessions.begin() as session:
        late = (session.scalar(select(func.max(ConsentRuling.id))) or 0) + 1
        session.execute(insert(ConsentRuling).values(id=late + 1, response_id=other, ruling="pending"))
    claimed = finished(site, ledger, site.study_admin)
    with site.sessions.begin() as session:
        session.execute(insert(ConsentRuling).values(id=late, response_id=response, ruling="rejected"))
    with pytest.raises(InvalidRequest, match="ruling: 1"):
        ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)


def test_consent_footage_is_linked_whatever_was_ruled_and_not_after_it_was_deleted(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    response = footage.response()
    key = footage.video(response, is_consent=True)
    claimed = ledger.claim(ledger.request(site.study_id, site.study_admin, CONSENT), "run-1", MINUTE)
    ledger.finish(claimed, facts_of(site, kind=CONSENT), {})
    footage.rule(response, "rejected")
    ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)
    delete_video(site, key)
    with pytest.raises(InvalidRequest, match="deleted or moved: 1"):
        ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)


def test_a_later_video_with_the_id_of_a_deleted_one_is_not_taken_for_it(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    response = footage.response("accepted")
    key = footage.video(response)
    claimed = finished(site, ledger, site.study_admin)
    was = footage.videos()[key]
    delete_video(site, key)
    with site.sessions.begin() as session:
        session.execute(insert(Response).values(id=response, study_id=site.study_id))
        session.execute(insert(ConsentRuling).values(response_id=response, ruling="accepted"))
        session.execute(
            insert(Video).values(
                id=was.id,
                response_id=response,
                study_id=site.study_id,
                object_key="another",
                frame_id="1-frame",
                recorded_at=was.recorded_at,
            )
        )
    with pytest.raises(InvalidRequest, match="deleted or moved: 1"):
        ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)


@pytest.mark.parametrize("where", ["another response", "another study"])
def test_a_video_that_is_another_response_s_now_is_not_the_one_that_was_let_out(
    site: Site, ledger: ArchiveLedger, footage: Footage, where: str
) -> None:
    key = footage.video(footage.response("accepted"))
    claimed = finished(site, ledger, site.study_admin)
    study_id = site.another_study("Other") if where == "another study" else site.study_id
    moved = {"study_id": study_id}
    if where == "another response":
        moved["response_id"] = footage.response("accepted")
    with site.sessions.begin() as session:
        session.execute(update(Video).where(Video.object_key == key).values(**moved))
    with pytest.raises(InvalidRequest, match="deleted or moved: 1"):
        ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)


def test_each_request_knows_what_is_in_its_archive_even_one_that_was_there(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    first = finished(site, ledger, site.study_admin)
    footage.video(footage.response("accepted"))
    second = finished(site, ledger, site.superuser)
    with site.sessions.begin() as session:
        held = select(ArchiveContent.archive_request_id, func.count()).group_by(ArchiveContent.archive_request_id)
        assert dict(iter(session.execute(held))) == {first.request_id: 1, second.request_id: 2}


def test_an_archive_whose_contents_are_not_on_record_is_given_to_nobody(site: Site, ledger: ArchiveLedger) -> None:
    claimed = finished(site, ledger, site.study_admin)
    with site.sessions.begin() as session:
        session.execute(delete(ArchiveContent))
    with pytest.raises(InvalidRequest, match="is not on record, or no longer"):
        ArchiveLinks(ledger).link(claimed.request_id, site.superuser)
    with pytest.raises(PermissionDenied):
        ArchiveLinks(ledger).link(claimed.request_id, site.stranger)
    assert deliver_links(site, ledger, FakeTransport()).withdrawn == 1
    assert [mail.template for mail in site.mails()] == ["archive_ready", "archive_withdrawn"]


def test_who_comes_too_late_writes_down_no_contents(site: Site, ledger: ArchiveLedger) -> None:
    claimed = claim(site, ledger)
    ledger.fail(claimed, FAILURE, {})
    with pytest.raises(LeaseLost):
        ledger.finish(claimed, facts_of(site), {})
    with site.sessions.begin() as session:
        assert session.scalars(select(ArchiveContent)).all() == []


def test_what_was_in_an_archive_is_forgotten_with_it(site: Site, ledger: ArchiveLedger) -> None:
    claimed = finished(site, ledger, site.study_admin)
    assert ArchiveLinks(ledger).forget_contents([], MINUTE) == 0
    assert ArchiveLinks(ledger).forget_contents(["u/u_d_all.zip"], -MINUTE) == 0
    ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)
    assert ArchiveLinks(ledger).forget_contents(["another.zip"], -MINUTE) == 1
    with pytest.raises(InvalidRequest, match="ask for the archive again"):
        ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)


def test_the_contents_of_twenty_thousand_videos_are_written_and_looked_at_in_about_a_second(
    site: Site, ledger: ArchiveLedger, footage: Footage
) -> None:
    footage.many(4000, 5)
    claimed, facts = claim(site, ledger), facts_of(site)
    start = time.perf_counter()
    ledger.finish(claimed, facts, {})
    written = time.perf_counter()
    with site.sessions.begin() as session, statements_of(session) as statements:
        require_basis(
            session,
            session.get_one(User, site.study_admin),
            session.get_one(Study, site.study_id),
            session.get_one(ArchiveRequest, claimed.request_id),
        )
    looked = time.perf_counter()
    assert facts.video_count > 20_000
    assert sum("FROM archive_content" in statement for statement in statements) == 1
    assert len(statements) <= 8
    assert (written - start < 5, looked - written < 5) == (True, True)  # about one on a machine of its own


def test_a_mail_is_withdrawn_from_a_closed_account(site: Site, ledger: ArchiveLedger) -> None:
    finished(site, ledger, site.study_admin)
    with site.sessions.begin() as session:
        session.get_one(User, site.study_admin).is_active = False
    with pytest.raises(MailWithdrawn, match="inactive"):
        ArchiveLinks(ledger).offer_of_mail(site.mails()[0])


def test_a_mail_about_something_else_leaves_no_log(site: Site, ledger: ArchiveLedger) -> None:
    ledger.fail(claim(site, ledger), FAILURE, {})
    with site.sessions.begin() as session:
        ArchiveLinks(ledger).record_withdrawal(session, session.scalars(select(OutboxMail)).one(), "why")
    assert len(site.logs()) == 1


def test_a_later_link_is_recorded_with_who_and_what(site: Site, ledger: ArchiveLedger) -> None:
    claimed = finished(site, ledger, site.study_admin)
    offer = ArchiveLinks(ledger).link(claimed.request_id, site.superuser, origin="on the command line")
    assert (offer.study_uuid, offer.kind, offer.archive_key) == (site.study().uuid, ALL, "u/u_d_all.zip")
    assert offer.file_name == f"Apples_and_oranges_all_videos_{datetime.now(UTC).date()}.zip"
    _, log = site.logs()
    assert (log.action, log.user_id) == ("video_link", site.superuser)
    assert log.extra == {
        "request_id": claimed.request_id,
        "kind": "all",
        "name_contains": "",
        "origin": "on the command line",
        "archive_key": "u/u_d_all.zip",
        "archive_bytes": 5_000_000_000,
        "video_count": 1,
    }


def test_where_no_archive_was_made_there_is_no_link(site: Site, ledger: ArchiveLedger) -> None:
    claimed = claim(site, ledger)
    with pytest.raises(InvalidRequest, match="is running: there is no archive"):
        ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)
    ledger.fail(claimed, FAILURE, {})
    with pytest.raises(InvalidRequest, match="is failed: there is no archive"):
        ArchiveLinks(ledger).link(claimed.request_id, site.study_admin)
    assert [log.action for log in site.logs()] == ["video_archive"]


def test_who_may_not_have_it_gets_no_link_and_leaves_no_log(site: Site, ledger: ArchiveLedger) -> None:
    claimed = finished(site, ledger, site.study_admin)
    with pytest.raises(PermissionDenied):
        ArchiveLinks(ledger).link(claimed.request_id, site.stranger)
    assert len(site.logs()) == 1
