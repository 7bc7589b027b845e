"""The queue on both databases: who is next, how many at once, which run is on its way, what is tried again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from domain.db import database_now
from domain.errors import LeaseLost, QueueIsFull, StudyIsLocked, TransitionNotAllowed
from domain.models import ArchiveKind, ArchiveRequest, BuildKind, BuildRequest, RequestStatus, State
from domain.requests.archives import ArchiveLedger
from domain.requests.build_claim import BuildClaim
from domain.requests.builds import BuildLedger
from domain.requests.failure import LONGEST_NAMED_WAIT, MOST_NAMED_WAITS, Failure, Retry, last_error
from domain.requests.queue import RequestQueue
from tests.support.footage import Footage
from tests.support.leases import end_for_dead_worker
from tests.support.site import Site

MINUTE = timedelta(minutes=1)
PREVIEW, DEPLOYMENT = BuildKind.PREVIEW, BuildKind.DEPLOYMENT
CUT_OFF = Failure("upload", "storage_error", "the bucket did not answer")


@pytest.fixture
def queue(site: Site) -> RequestQueue:
    return RequestQueue(site.sessions, BuildRequest)


@pytest.fixture
def ledger(site: Site) -> BuildLedger:
    return BuildLedger(site.sessions, Retry(attempts=3, first_wait=MINUTE))


def ask(site: Site, count: int, kind: BuildKind = PREVIEW) -> list[int]:
    """As many requests, each of a study of its own."""
    studies = [site.another_study(f"Study {number}", State.APPROVED) for number in range(count)]
    return [site.ledger.request(study, site.study_admin, kind) for study in studies]


def submit(queue: RequestQueue, *, at_once: int = 10, **more) -> list[int]:
    return [submission.request_id for submission in queue.submit(limit=10, at_once=at_once, **more)]


def wind(site: Site, **columns) -> None:
    """Let the times of all that waits have been so long ago."""
    moved = {name: database_now(-ago) for name, ago in columns.items()}
    with site.sessions.begin() as session:
        session.execute(update(BuildRequest).where(BuildRequest.status == RequestStatus.QUEUED).values(moved))


# -- who is next ------------------------------------------------------------------------------------------------------


def test_the_oldest_are_submitted_first_each_once_and_no_more_than_there_is_room(
    site: Site, queue: RequestQueue
) -> None:
    first, second, third, fourth = ask(site, 4)
    assert submit(queue, at_once=2) == [first, second]
    assert submit(queue, at_once=2) == []
    assert submit(queue, at_once=3) == [third]
    site.ledger.claim(first, "run-1", MINUTE)
    assert submit(queue, at_once=3) == [], "one runs and two are about to"
    assert queue.state().due == 1
    assert submit(queue) == [fourth]


def test_a_study_is_built_once_at_a_time(site: Site, queue: RequestQueue) -> None:
    preview = site.ledger.request(site.study_id, site.study_admin, PREVIEW)
    deployment = site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT)
    assert submit(queue) == [preview]
    assert submit(queue) == [], "the preview is about to begin"
    claim = site.ledger.claim(preview, "run-1", MINUTE)
    assert submit(queue) == [], "the study is locked"
    site.ledger.finish(claim, {})
    assert submit(queue) == [deployment]


def test_a_run_that_does_not_come_is_asked_for_again_unless_it_is_still_coming(site: Site, queue: RequestQueue) -> None:
    (request_id,) = ask(site, 1)
    (first,) = queue.submit(limit=1, at_once=1)
    assert (first.number, first.attempt) == (1, 1)
    wind(site, submitted_at=timedelta(minutes=3))
    assert queue.overdue() == [request_id]
    queue.still_coming(request_id)
    assert (queue.overdue(), submit(queue)) == ([], [])
    wind(site, submitted_at=timedelta(minutes=3))
    (second,) = queue.submit(limit=1, at_once=1)
    assert (second.number, second.attempt) == (2, 1)


def test_only_those_that_have_their_end_are_said_to_have_ended(
    site: Site, queue: RequestQueue, ledger: BuildLedger
) -> None:
    waits, runs, cancelled, succeeded = asked = ask(site, 4)
    ledger.cancel(cancelled, site.study_admin)
    ledger.finish(ledger.claim(succeeded, "run-1", MINUTE), {})
    ledger.claim(runs, "run-2", MINUTE)
    assert queue.ended(asked) == {cancelled, succeeded}
    assert queue.ended([waits]) == queue.ended([]) == set()


def test_places_count_from_the_front_and_those_that_wait_for_a_later_attempt_come_last(
    site: Site, queue: RequestQueue, ledger: BuildLedger
) -> None:
    first, second, third = ask(site, 3)
    assert queue.places() == {first: 1, second: 2, third: 3}
    ledger.retry(ledger.claim(first, "run-1", MINUTE), CUT_OFF, {})
    assert queue.places() == {second: 1, third: 2, first: 3}
    state = queue.state()
    assert (state.due, state.later, state.running, state.submitted) == (2, 1, 0, 0)
    assert state.oldest_due_at == site.request(second).next_attempt_at


def test_archives_queue_the_same_way_and_lock_no_study(site: Site) -> None:
    footage = Footage(site)
    footage.video(footage.response("accepted"), is_consent=True)
    archives = ArchiveLedger(site.sessions)
    queue = RequestQueue(site.sessions, ArchiveRequest)
    asked = [archives.request(site.study_id, site.study_admin, kind) for kind in (ArchiveKind.ALL, ArchiveKind.CONSENT)]
    assert submit(queue, at_once=1) == asked[:1]
    assert submit(queue) == asked[1:]


def test_no_more_than_so_many_are_claimed_and_the_rest_goes_on_waiting(site: Site) -> None:
    first, second, third = ask(site, 3)
    claim = site.ledger.claim(first, "run-1", MINUTE, at_once=2)
    site.ledger.claim(second, "run-2", MINUTE, at_once=2)
    with pytest.raises(QueueIsFull, match="2 are running"):
        site.ledger.claim(third, "run-3", MINUTE, at_once=2)
    with pytest.raises(QueueIsFull):
        site.ledger.launch(site.study_id, site.study_admin, PREVIEW, "run-4", MINUTE, at_once=2)
    assert site.request(third).status == RequestStatus.QUEUED
    site.ledger.finish(claim, {})
    assert site.ledger.claim(third, "run-3", MINUTE, at_once=2).request_id == third


# -- the platform's faults --------------------------------------------------------------------------------------------


def claimed(site: Site, ledger: BuildLedger, request_id: int) -> BuildClaim:
    wind(site, next_attempt_at=MINUTE)
    return ledger.claim(request_id, "a run", MINUTE)


def test_a_build_that_fails_by_our_fault_waits_again_and_the_study_is_free(
    site: Site, queue: RequestQueue, ledger: BuildLedger
) -> None:
    request_id = site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT)
    queue.submit(limit=1, at_once=1)
    claim = ledger.claim(request_id, "run-1", MINUTE)
    assert ledger.retry(claim, CUT_OFF, {}) == RequestStatus.QUEUED
    request = site.request(request_id)
    assert (request.status, request.run_id, request.submitted_at) == ("queued", None, None)
    assert (request.error_code, request.error) == ("storage_error", None)
    assert request.next_attempt_at > request.requested_at + timedelta(seconds=50)
    assert (site.study().state, site.logs(), site.mails()) == (State.APPROVED, [], [])
    assert submit(queue) == [], "not before its time"
    wind(site, next_attempt_at=MINUTE)
    (submission,) = queue.submit(limit=1, at_once=1)
    assert (submission.attempt, submission.number) == (2, 2)
    with pytest.raises(LeaseLost):
        ledger.finish(claim, {})


def test_after_the_last_attempt_there_is_one_log_that_tells_of_all_and_one_mail_each(
    site: Site, ledger: BuildLedger
) -> None:
    request_id = site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT)
    for _ in range(2):
        assert ledger.retry(claimed(site, ledger, request_id), CUT_OFF, {}) == RequestStatus.QUEUED
    assert ledger.retry(claimed(site, ledger, request_id), CUT_OFF, {"log": "the last"}) == RequestStatus.FAILED
    request = site.request(request_id)
    assert request.error == "tried 3 times; the last time: the bucket did not answer"
    (log,) = site.logs()
    assert [failed["attempt"] for failed in log.extra["failed_attempts"]] == [1, 2, 3]
    assert (log.extra["log"], log.extra["attempt"], log.extra["outcome"]) == ("the last", 3, "failed")
    assert [mail.template for mail in site.mails()] == ["build_failed"] * 2


def test_a_build_that_succeeds_at_the_second_attempt_says_what_went_wrong_before(
    site: Site, ledger: BuildLedger
) -> None:
    request_id = site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT)
    ledger.retry(claimed(site, ledger, request_id), CUT_OFF, {})
    ledger.finish(claimed(site, ledger, request_id), {})
    (log,) = site.logs()
    assert (log.extra["outcome"], log.extra["attempt"]) == ("succeeded", 2)
    assert [failed["code"] for failed in log.extra["failed_attempts"]] == ["storage_error"]
    assert site.request(request_id).error_code is None
    assert {mail.template for mail in site.mails()} == {"build_succeeded"}


@pytest.mark.parametrize("kind", ["build", "archive"])
def test_a_time_that_a_service_names_is_waited_for_and_the_attempt_does_not_count(site: Site, kind: str) -> None:
    retry = Retry(attempts=2, first_wait=MINUTE)
    model: type[BuildRequest | ArchiveRequest]
    if kind == "build":
        ledger, model = BuildLedger(site.sessions, retry), BuildRequest
        request_id = ledger.request(site.study_id, site.study_admin, DEPLOYMENT)
    else:
        ledger, model = ArchiveLedger(site.sessions, retry), ArchiveRequest
        footage = Footage(site)
        footage.video(footage.response("accepted"))
        request_id = ledger.request(site.study_id, site.study_admin, ArchiveKind.ALL)

    def fail(failure: Failure) -> RequestStatus:
        return ledger.retry(ledger.claim(request_id, "a run", MINUTE), failure, {})

    for number in range(3):
        named = datetime.now(UTC) + timedelta(minutes=40 + number)
        assert fail(Failure("checkout", "platform_error", "a limit", named)) == RequestStatus.QUEUED
        with site.sessions.begin() as session:
            request = session.get_one(model, request_id)
            assert abs(request.next_attempt_at - named) < timedelta(seconds=10)
            assert datetime.fromisoformat(request.failed_attempts[-1]["retry_at"]) == named.replace(microsecond=0)
            assert last_error(request) == "a limit"
    assert fail(CUT_OFF) == RequestStatus.QUEUED, "the first that counts"
    with site.sessions.begin() as session:
        waits = session.get_one(model, request_id).next_attempt_at - datetime.now(UTC)
    assert timedelta(seconds=50) < waits < timedelta(seconds=70), "as long as after a first attempt"
    assert fail(CUT_OFF) == RequestStatus.FAILED
    with site.sessions.begin() as session:
        request = session.get_one(model, request_id)
        assert (request.attempt, last_error(request)) == (5, f"tried 5 times; the last time: {CUT_OFF.message}")


def test_a_service_that_names_times_for_ever_ends_a_request_all_the_same() -> None:
    retry, failed = Retry(attempts=2), []
    in_a_year = Failure("checkout", "platform_error", "a limit", datetime.now(UTC) + timedelta(days=365))
    waits = []
    while (wait := retry.after(in_a_year, failed)) is not None:
        waits.append(wait)
        failed.append(in_a_year.told("a run", len(failed) + 1))
    assert waits == [LONGEST_NAMED_WAIT] * MOST_NAMED_WAITS + [retry.first_wait]


def test_a_time_that_has_come_is_not_waited_for() -> None:
    past = Failure("checkout", "platform_error", "a limit", datetime.now(UTC) - MINUTE)
    assert Retry().after(past, []) == timedelta()


def test_a_worker_that_died_is_a_fault_of_ours(site: Site, ledger: BuildLedger) -> None:
    request_id = site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT)
    claim = ledger.claim(request_id, "run-1", MINUTE)
    with pytest.raises(LeaseLost):
        end_for_dead_worker(ledger, claim)
    assert site.study().state == State.DEPLOYING
    site.end_leases()
    assert end_for_dead_worker(ledger, claim) == RequestStatus.QUEUED
    assert site.request(request_id).failed_attempts[0]["code"] == "worker_died"
    assert site.study().state == State.APPROVED


def test_what_somebody_cancelled_is_not_tried_again(site: Site, ledger: BuildLedger) -> None:
    claim = ledger.claim(site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT), "run-1", MINUTE)
    ledger.cancel(claim.request_id, site.study_admin)
    assert ledger.retry(claim, CUT_OFF, {}) == RequestStatus.CANCELLED
    (log,) = site.logs()
    assert (log.extra["outcome"], log.extra["cancelled_by"]) == ("cancelled", "Study Admin")


def test_a_newer_request_that_waits_takes_the_place_of_another_attempt(site: Site, ledger: BuildLedger) -> None:
    claim = ledger.claim(site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT), "run-1", MINUTE)
    newer = site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT)
    assert ledger.retry(claim, CUT_OFF, {}) == RequestStatus.CANCELLED
    assert site.request(claim.request_id).error_code == "replaced"
    assert site.request(newer).status == RequestStatus.QUEUED
    assert site.study().state == State.APPROVED
    (log,) = site.logs()
    assert log.extra["outcome"] == "replaced"
    assert site.mails() == []


@pytest.mark.parametrize("fails_first", [True, False])
def test_who_asked_is_told_when_somebody_elses_request_takes_the_place_of_another_attempt(
    site: Site, ledger: BuildLedger, fails_first: bool
) -> None:
    claim = ledger.claim(site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT), "run-1", MINUTE)
    if fails_first:
        ledger.retry(claim, CUT_OFF, {})
    ledger.request(site.study_id, site.superuser, DEPLOYMENT)
    if not fails_first:
        ledger.retry(claim, CUT_OFF, {})
    assert site.request(claim.request_id).error_code == "replaced"
    (mail,) = site.mails()
    assert (mail.template, mail.recipient_id, mail.event) == (
        "build_replaced",
        site.study_admin,
        f"build_request:{claim.request_id}:replaced",
    )
    assert (mail.context["replaced_by"], mail.context["attempt"]) == ("Superuser", 1)


def test_what_was_worked_on_once_never_ends_in_silence(site: Site, ledger: BuildLedger) -> None:
    """Refused, replaced or cancelled while it waits for another attempt: one log that tells of the first."""

    def given_back(name: str) -> int:
        study_id = site.another_study(name, State.APPROVED)
        request_id = ledger.request(study_id, site.study_admin, DEPLOYMENT)
        ledger.retry(claimed(site, ledger, request_id), CUT_OFF, {})
        return request_id

    refused, replaced, cancelled = given_back("Refused"), given_back("Replaced"), given_back("Cancelled")
    site.set_state(State.REJECTED, site.request(refused).study_id)
    with pytest.raises(TransitionNotAllowed):
        claimed(site, ledger, refused)
    ledger.request(site.request(replaced).study_id, site.study_admin, DEPLOYMENT)
    ledger.cancel(cancelled, site.study_admin)
    for request_id, outcome in ((refused, "failed"), (replaced, "replaced"), (cancelled, "cancelled")):
        (log,) = site.logs(site.request(request_id).study_id)
        assert log.extra["outcome"] == outcome
        assert [failed["code"] for failed in log.extra["failed_attempts"]] == ["storage_error"]
    assert {mail.template for mail in site.mails()} == {"build_failed"}


# -- runs that end before their claim ---------------------------------------------------------------------------------


def test_a_run_that_is_cancelled_before_its_claim_cancels_its_request(
    site: Site, queue: RequestQueue, ledger: BuildLedger
) -> None:
    (request_id,) = ask(site, 1)
    (submission,) = queue.submit(limit=1, at_once=1)
    assert not ledger.cancel_submitted(request_id, submission.number + 1, "an operator")
    assert ledger.cancel_submitted(request_id, submission.number, "an operator")
    assert not ledger.cancel_submitted(request_id, submission.number, "an operator")
    request = site.request(request_id)
    assert (request.status, request.error_code) == ("cancelled", "cancelled")
    (log,) = site.logs(request.study_id)
    assert (log.extra["cancelled_by"], log.user_id) == ("an operator", None)


def test_a_run_that_fails_before_its_claim_is_asked_for_again_some_times(
    site: Site, queue: RequestQueue, ledger: BuildLedger
) -> None:
    (request_id,) = ask(site, 1)
    failure = Failure("start", "run_not_started", "the run ended before it began to work")
    for number in (1, 2):
        wind(site, next_attempt_at=MINUTE)
        assert submit(queue) == [request_id]
        assert ledger.not_started(request_id, number, failure, "run") == RequestStatus.QUEUED
        assert ledger.not_started(request_id, number + 1, failure, "run") is None
        assert submit(queue) == []
    wind(site, next_attempt_at=MINUTE)
    assert submit(queue) == [request_id]
    assert ledger.not_started(request_id, 3, failure, "run-3") == RequestStatus.FAILED
    request = site.request(request_id)
    assert (request.error_code, request.error) == ("run_not_started", failure.message)
    (log,) = site.logs(request.study_id)
    assert (log.extra["outcome"], log.state_before, log.state_after) == ("failed", "approved", "approved")
    assert {mail.template for mail in site.mails()} == {"build_failed"}


def test_a_claim_that_came_first_is_left_alone(site: Site, queue: RequestQueue, ledger: BuildLedger) -> None:
    (request_id,) = ask(site, 1)
    queue.submit(limit=1, at_once=1)
    claim = ledger.claim(request_id, "run-1", MINUTE)
    assert ledger.held_by("run-1") == claim
    assert ledger.held_by("another") is None
    assert ledger.run_of(claim) == "run-1"
    assert not ledger.cancel_submitted(request_id, 1, "an operator")
    assert ledger.not_started(request_id, 1, CUT_OFF, "run-1") is None
    assert site.request(request_id).status == RequestStatus.RUNNING


@pytest.mark.parametrize("kind", ["build", "archive"])
def test_a_run_that_another_has_followed_claims_nothing_and_takes_nobodys_turn(
    site: Site, ledger: BuildLedger, kind: str
) -> None:
    if kind == "build":
        queue, held = RequestQueue(site.sessions, BuildRequest), ledger
        (request_id,) = ask(site, 1)
    else:
        queue, held = RequestQueue(site.sessions, ArchiveRequest), ArchiveLedger(site.sessions)
        Footage(site).many(1, 1)
        request_id = held.request(site.study_id, site.study_admin, ArchiveKind.ALL)
    for number in (1, 2):
        assert [submission.number for submission in queue.submit(limit=1, at_once=1, start_within=-MINUTE)] == [number]
    with pytest.raises((StudyIsLocked, LeaseLost), match="waits for another run"):
        held.claim(request_id, "run-1", MINUTE, submission=1)
    queue.release(request_id, 1)
    assert queue.state().submitted == 1
    assert held.claim(request_id, "run-2", MINUTE, submission=2).attempt == 1
    with pytest.raises((StudyIsLocked, LeaseLost), match="running in run run-2"):
        held.claim(request_id, "run-1", MINUTE, submission=1)


def test_a_run_whose_turn_was_given_back_claims_nothing(site: Site, queue: RequestQueue, ledger: BuildLedger) -> None:
    (request_id,) = ask(site, 1)
    queue.submit(limit=1, at_once=1)
    ledger.not_started(request_id, 1, CUT_OFF, "run-1")
    with pytest.raises(StudyIsLocked, match="waits for another run"):
        ledger.claim(request_id, "run-1", MINUTE, submission=1)
    assert ledger.claim(request_id, "from the Launchpad", MINUTE).attempt == 1
