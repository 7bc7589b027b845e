"""The build ledger on both databases: who gets a request, what its end leaves behind, and who comes too late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from domain.errors import InvalidRequest, LeaseLost, PermissionDenied, StudyIsLocked, TransitionNotAllowed
from domain.mail.compose import Composer, Links
from domain.models import BuildKind, BuildRequest, RequestStatus, State, User
from domain.models.studies import WORKFLOW_STATES
from domain.requests.build_claim import BuildClaim
from domain.requests.builds import BuildLedger
from domain.requests.failure import Failure, Retry
from domain.requests.queue import RequestQueue
from tests.support.leases import end_for_dead_worker
from tests.support.site import Site

MINUTE = timedelta(minutes=1)
PREVIEW, DEPLOYMENT = BuildKind.PREVIEW, BuildKind.DEPLOYMENT


def claim(site: Site, kind: BuildKind = DEPLOYMENT, lease: timedelta = MINUTE) -> BuildClaim:
    request_id = site.ledger.request(site.study_id, site.study_admin, kind)
    return site.ledger.claim(request_id, "run-1", lease)


@pytest.mark.parametrize(("kind", "lock"), [(PREVIEW, State.PREVIEWING), (DEPLOYMENT, State.DEPLOYING)])
def test_a_claim_locks_the_study_and_remembers_the_way_back(site: Site, kind: BuildKind, lock: State) -> None:
    claimed = claim(site, kind)
    study = site.study()
    assert (study.state, study.state_before_build) == (lock, State.APPROVED)
    assert claimed.state_before == State.APPROVED
    assert site.request(claimed.request_id).status == RequestStatus.RUNNING


def test_a_finished_preview_leaves_the_state_as_it_was_with_one_log_and_mails(site: Site) -> None:
    claimed = claim(site, PREVIEW)
    changed_at = site.study().state_changed_at
    assert site.ledger.finish(claimed, {"log": ["built"]}) == State.APPROVED
    study = site.study()
    assert (study.state, study.state_before_build, study.deployed_at) == (State.APPROVED, None, None)
    assert study.state_changed_at == changed_at
    (log,) = site.logs()
    assert (log.action, log.state_before, log.state_after) == ("preview", "approved", "approved")
    assert log.extra["outcome"] == "succeeded"
    assert log.extra["log"] == ["built"]
    assert [mail.recipient.email for mail in site.mails()] == ["site_admin@example.org", "study_admin@example.org"]


def test_a_finished_deployment_makes_the_study_active(site: Site) -> None:
    claimed = claim(site)
    assert site.ledger.finish(claimed, {}) == State.ACTIVE
    study = site.study()
    assert study.state == State.ACTIVE
    assert study.deployed_at is not None
    (log,) = site.logs()
    assert (log.action, log.state_before, log.state_after) == ("deployment", "approved", "active")


def test_a_failed_build_returns_the_study_with_one_log_and_one_mail_each(site: Site) -> None:
    claimed = claim(site)
    site.ledger.fail(claimed, Failure("checkout", "player_invalid", "no such repository"), {})
    assert site.study().state == State.APPROVED
    request = site.request(claimed.request_id)
    assert (request.status, request.error_code, request.error) == ("failed", "player_invalid", "no such repository")
    (log,) = site.logs()
    assert (log.extra["step"], log.extra["error"]) == ("checkout", "no such repository")
    assert {mail.template for mail in site.mails()} == {"build_failed"}


def test_whoever_ends_a_request_second_changes_nothing(site: Site) -> None:
    claimed = claim(site)
    site.ledger.finish(claimed, {})
    for late in (
        lambda: site.ledger.finish(claimed, {}),
        lambda: site.ledger.fail(claimed, Failure("build", "x", "x"), {}),
        lambda: site.ledger.cancelled(claimed, "Somebody", {}),
        lambda: end_for_dead_worker(site.ledger, claimed),
        lambda: site.ledger.heartbeat(claimed, MINUTE),
        lambda: site.ledger.note_commit(claimed, repository="r", sha="s" * 40, reason=""),
    ):
        with pytest.raises(LeaseLost):
            late()
    assert site.study().state == State.ACTIVE
    assert len(site.logs()) == 1
    assert len(site.mails()) == 2


def test_an_expired_lease_is_ended_by_the_reconciler_and_the_worker_comes_too_late(site: Site) -> None:
    claimed = claim(site, lease=timedelta(seconds=-1))
    assert site.ledger.running(expired_only=True) == [claimed]
    end_for_dead_worker(site.ledger, claimed)
    assert site.study().state == State.APPROVED
    assert site.request(claimed.request_id).error_code == "worker_died"
    with pytest.raises(LeaseLost):
        site.ledger.finish(claimed, {})


def test_a_heartbeat_keeps_a_lease_from_expiring(site: Site) -> None:
    claimed = claim(site, lease=timedelta(seconds=-1))
    site.ledger.heartbeat(claimed, MINUTE)
    assert site.ledger.running(expired_only=True) == []
    with pytest.raises(LeaseLost):
        end_for_dead_worker(site.ledger, claimed)
    assert site.study().state == State.DEPLOYING
    assert site.logs() == []


def test_a_stale_fencing_token_cannot_end_the_next_claim(site: Site) -> None:
    first = claim(site, lease=timedelta(seconds=-1))
    end_for_dead_worker(site.ledger, first)
    second = claim(site)
    assert second.fencing_token > first.fencing_token
    with pytest.raises(LeaseLost):
        site.ledger.fail(first, Failure("build", "x", "late"), {})
    assert site.study().state == State.DEPLOYING
    assert site.request(second.request_id).status == RequestStatus.RUNNING


def test_a_study_is_not_built_twice_at_once_and_the_second_request_goes_on_waiting(site: Site) -> None:
    first = claim(site, DEPLOYMENT)
    waiting = site.ledger.request(site.study_id, site.study_admin, PREVIEW)
    with pytest.raises(StudyIsLocked, match=f"build request {first.request_id}"):
        site.ledger.claim(waiting, "run-2", MINUTE)
    assert site.request(waiting).status == RequestStatus.QUEUED
    site.ledger.finish(first, {})
    assert site.ledger.claim(waiting, "run-2", MINUTE).state_before == State.ACTIVE


def test_a_request_is_claimed_once(site: Site) -> None:
    claimed = claim(site)
    with pytest.raises(StudyIsLocked, match="no longer waits"):
        site.ledger.claim(claimed.request_id, "run-2", MINUTE)


@pytest.mark.parametrize("state", WORKFLOW_STATES)
@pytest.mark.parametrize("kind", BuildKind)
def test_builds_start_from_the_states_of_the_table_only(site: Site, state: State, kind: BuildKind) -> None:
    site.set_state(state)
    allowed = {
        PREVIEW: set(WORKFLOW_STATES) - {State.ARCHIVED},
        DEPLOYMENT: {State.APPROVED, State.ACTIVE, State.PAUSED},
    }
    if state in allowed[kind]:
        assert claim(site, kind).state_before == state
    else:
        with pytest.raises(TransitionNotAllowed, match=state):
            claim(site, kind)


def test_a_state_that_changed_while_the_request_waited_ends_it_without_log_or_mail(site: Site) -> None:
    request_id = site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT)
    site.set_state(State.REJECTED)
    with pytest.raises(TransitionNotAllowed, match="rejected"):
        site.ledger.claim(request_id, "run-1", MINUTE)
    request = site.request(request_id)
    assert (request.status, request.error_code) == ("failed", "state_forbids")
    assert "rejected" in str(request.error)
    assert (site.logs(), site.mails(), site.study().state) == ([], [], State.REJECTED)


def test_a_permission_lost_while_the_request_waited_ends_it_without_log_or_mail(site: Site) -> None:
    request_id = site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT)
    with site.sessions.begin() as session:
        session.get_one(User, site.study_admin).is_active = False
    with pytest.raises(PermissionDenied, match="inactive"):
        site.ledger.claim(request_id, "run-1", MINUTE)
    assert site.request(request_id).error_code == "permission_denied"
    assert (site.logs(), site.mails(), site.study().state) == ([], [], State.APPROVED)


def test_a_designer_may_preview_but_not_deploy_and_a_stranger_neither(site: Site) -> None:
    site.ledger.request(site.study_id, site.designer, PREVIEW)
    with pytest.raises(PermissionDenied, match=r"designer@example\.org lacks studies\.change_study_status"):
        site.ledger.request(site.study_id, site.designer, DEPLOYMENT)
    with pytest.raises(PermissionDenied, match="stranger"):
        site.ledger.request(site.study_id, site.stranger, PREVIEW)


def test_a_newer_request_takes_the_place_of_one_that_waits(site: Site) -> None:
    old = site.ledger.request(site.study_id, site.designer, PREVIEW)
    new = site.ledger.request(site.study_id, site.study_admin, PREVIEW)
    assert (site.request(old).status, site.request(old).error_code) == ("cancelled", "replaced")
    assert site.request(new).status == "queued"


def test_cancelling_a_waiting_request_ends_it_at_once_and_says_by_whom(site: Site) -> None:
    request_id = site.ledger.request(site.study_id, site.designer, PREVIEW)
    assert site.ledger.cancel(request_id, site.study_admin) == RequestStatus.CANCELLED
    (log,) = site.logs()
    assert (log.extra["outcome"], log.extra["cancelled_by"]) == ("cancelled", "Study Admin")
    with pytest.raises(InvalidRequest, match="already ended"):
        site.ledger.cancel(request_id, site.study_admin)


def test_who_asked_is_told_that_somebody_else_cancelled_what_waited(site: Site) -> None:
    mine = site.ledger.request(site.study_id, site.study_admin, BuildKind.PREVIEW)
    site.ledger.cancel(mine, site.study_admin)
    assert site.mails() == []
    mine = site.ledger.request(site.study_id, site.study_admin, BuildKind.PREVIEW)
    site.ledger.cancel(mine, site.superuser)
    (mail,) = site.mails()
    assert (mail.event, mail.recipient_id) == (f"build_request:{mine}:cancelled", site.study_admin)
    with site.sessions.begin() as session:
        message = Composer("lookit@example.org", Links("https://p/", "https://s/", "https://v/"))(session.merge(mail))
    body = message.get_body(("plain",))
    assert body is not None
    assert "was cancelled by Superuser" in body.get_content()


def test_cancelling_a_running_request_reaches_the_worker_with_its_next_heartbeat(site: Site) -> None:
    claimed = claim(site)
    assert not site.ledger.heartbeat(claimed, MINUTE).cancel_requested
    assert site.ledger.cancel(claimed.request_id, site.study_admin) == RequestStatus.RUNNING
    assert site.ledger.heartbeat(claimed, MINUTE).cancel_requested
    site.ledger.cancelled(claimed, site.ledger.canceller(claimed) or "", {})
    assert site.study().state == State.APPROVED
    (log,) = site.logs()
    assert log.extra["cancelled_by"] == "Study Admin"


def test_a_stranger_cannot_cancel(site: Site) -> None:
    request_id = site.ledger.request(site.study_id, site.study_admin, PREVIEW)
    with pytest.raises(PermissionDenied):
        site.ledger.cancel(request_id, site.stranger)
    assert site.request(request_id).status == RequestStatus.QUEUED


def test_the_sha_is_pinned_by_the_first_build_that_names_none_and_never_replaced(site: Site) -> None:
    first = claim(site, PREVIEW)
    site.ledger.note_commit(first, repository="lookit/player", sha="a" * 40, reason="HEAD")
    site.ledger.finish(first, {})
    assert site.study().study_metadata == {"last_known_player_sha": "a" * 40}
    second = claim(site, PREVIEW)
    assert second.player_sha == "a" * 40
    site.ledger.note_commit(second, repository="lookit/player", sha="b" * 40, reason="HEAD")
    site.ledger.finish(second, {})
    assert site.study().study_metadata == {"last_known_player_sha": "a" * 40}
    assert site.study().state == State.APPROVED


@pytest.mark.parametrize("request_id", [4711, 0, -1, 2**63, 10**20])
def test_an_unknown_request_is_refused(site: Site, request_id: int) -> None:
    ledger, failure = BuildLedger(site.sessions), Failure("start", "run_not_started", "gone")
    unknown = f"no build request {request_id}"
    with pytest.raises(InvalidRequest, match=unknown):
        ledger.claim(request_id, "run-1", MINUTE)
    with pytest.raises(InvalidRequest, match=unknown):
        ledger.cancel(request_id, site.study_admin)
    with pytest.raises(InvalidRequest, match=unknown):
        ledger.player_repo_url(request_id)
    ledger.refuse(request_id, "platform_error", "nothing is refused")
    assert ledger.cancel_submitted(request_id, 1, "somebody") is False
    assert ledger.not_started(request_id, 1, failure, "run-1") is None
    RequestQueue(site.sessions, BuildRequest).release(request_id)
    assert RequestQueue(site.sessions, BuildRequest).ended([request_id]) == set()


def test_attempts_that_waited_for_a_named_time_do_not_count_towards_the_last(site: Site) -> None:
    ledger = BuildLedger(site.sessions, Retry(attempts=2, first_wait=timedelta()))
    request_id = ledger.request(site.study_id, site.study_admin, DEPLOYMENT)
    told: list[bool] = []
    for retry_at in (datetime.now(UTC), datetime.now(UTC), None):
        claimed = ledger.claim(request_id, f"run {len(told)}", MINUTE)
        told.append(ledger.has_another_attempt(claimed))
        ledger.retry(claimed, Failure("checkout", "platform_error", "not now", retry_at), {})
    claimed = ledger.claim(request_id, "the last run", MINUTE)
    assert [*told, ledger.has_another_attempt(claimed)] == [True, True, True, False]
    assert ledger.retry(claimed, Failure("checkout", "platform_error", "not now"), {}) == RequestStatus.FAILED
