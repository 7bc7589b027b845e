"""The ledger's part of a rollback: who may, from where, what it keeps out, and what it leaves when it ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from domain.errors import DomainError, InvalidRequest, LeaseLost, PermissionDenied, StudyIsLocked, TransitionNotAllowed
from domain.models import BuildKind, RequestStatus, State, Study
from domain.models.studies import WORKFLOW_STATES
from domain.requests.build_claim import MAY_START_FROM, BuildClaim
from domain.requests.failure import Failure
from domain.requests.rollbacks import begin_rollback
from tests.support.leases import end_for_dead_worker
from tests.support.site import Site

LEASE = timedelta(minutes=2)
SHA = "a" * 40
DEPLOYMENT, PREVIEW = BuildKind.DEPLOYMENT, BuildKind.PREVIEW


@pytest.fixture
def built(site: Site) -> int:
    """A deployment that succeeded; its request."""
    return deploy(site)


def deploy(site: Site, kind: BuildKind = DEPLOYMENT) -> int:
    request = site.ledger.request(site.study_id, site.study_admin, kind)
    claim = site.ledger.claim(request, "run", LEASE)
    site.ledger.note_commit(claim, repository="lookit/player", sha=SHA, reason="the study names it")
    site.ledger.finish(claim, {})
    return request


def begin(site: Site, restores: int, user: int | None = None, study: int | None = None) -> BuildClaim:
    return begin_rollback(
        site.sessions,
        study or site.study_id,
        user or site.study_admin,
        restores,
        "rollback in process 1",
        LEASE,
        origin="a test",
    )


def test_it_locks_the_study_under_a_lease_and_a_new_fencing_token(site: Site, built: int) -> None:
    token = site.study().fencing_token
    claim = begin(site, built)
    study, request = site.study(), site.request(claim.request_id)
    assert (study.state, study.state_before_build, study.fencing_token) == ("deploying", "active", token + 1)
    assert (claim.fencing_token, claim.state_before, claim.restores_id) == (token + 1, "active", built)
    assert (claim.act, claim.page_owner) == ("rollback", str(built))
    assert (request.status, request.kind, request.restores_id) == (RequestStatus.RUNNING, "deployment", built)
    assert (request.player_repo, request.player_sha) == ("lookit/player", SHA)
    assert abs(request.lease_expires_at - request.claimed_at - LEASE) < timedelta(seconds=1)


@pytest.mark.parametrize("state", MAY_START_FROM[DEPLOYMENT])
def test_at_its_end_the_study_is_what_it_was_with_one_log_and_the_mails_of_a_deployment(
    site: Site, built: int, state: State
) -> None:
    site.set_state(state)
    before, told = site.study(), len(site.mails())
    assert told
    recipients = {mail.recipient.email for mail in site.mails()}
    claim = begin(site, built, site.superuser)
    assert site.ledger.finish(claim, {"facts": {"files": 3}}) == state
    after = site.study()
    assert (after.state, after.state_before_build) == (state, None)
    assert (after.deployed_at, after.state_changed_at) == (before.deployed_at, before.state_changed_at)
    log = site.logs()[-1]
    assert (log.action, log.state_before, log.state_after, log.user_id) == ("rollback", state, state, site.superuser)
    assert log.build_request_id == claim.request_id
    assert (log.extra["restores"], log.extra["sha"], log.extra["origin"]) == (built, SHA, "a test")
    mails = site.mails()[told:]
    assert {mail.recipient.email for mail in mails} == recipients | {"superuser@example.org"}
    assert {(mail.template, mail.context["kind"]) for mail in mails} == {("build_succeeded", "rollback")}


def test_it_pins_no_commit(site: Site, built: int) -> None:
    site.set_metadata(player_repo_url="https://github.com/lookit/player")
    site.ledger.finish(begin(site, built), {})
    assert site.study().study_metadata == {"player_repo_url": "https://github.com/lookit/player"}


def test_one_that_fails_is_told_and_leaves_the_state_as_it_was(site: Site, built: int) -> None:
    site.set_state(State.PAUSED)
    claim = begin(site, built)
    site.ledger.fail(claim, Failure("rollback", "storage_error", "the bucket is away"), {})
    assert site.study().state == State.PAUSED
    assert (site.logs()[-1].action, site.logs()[-1].extra["outcome"]) == ("rollback", "failed")
    assert site.mails()[-1].template == "build_failed"
    assert begin(site, built).fencing_token == claim.fencing_token + 1


def test_one_whose_worker_died_is_expired_and_the_late_one_changes_nothing(site: Site, built: int) -> None:
    claim = begin(site, built)
    with pytest.raises(LeaseLost):
        end_for_dead_worker(site.ledger, claim)
    site.end_leases()
    end_for_dead_worker(site.ledger, claim)
    assert site.study().state == State.ACTIVE
    request = site.request(claim.request_id)
    assert (request.status, request.error_code) == (RequestStatus.FAILED, "worker_died"), "it is not tried again"
    with pytest.raises(LeaseLost):
        site.ledger.finish(claim, {})
    with pytest.raises(LeaseLost):
        site.ledger.heartbeat(claim, LEASE)


def test_it_can_be_cancelled_like_a_build(site: Site, built: int) -> None:
    claim = begin(site, built)
    assert site.ledger.cancel(claim.request_id, site.study_admin) is RequestStatus.RUNNING
    assert site.ledger.heartbeat(claim, LEASE).cancel_requested
    site.ledger.cancelled(claim, "Study Admin", {})
    assert site.logs()[-1].extra["outcome"] == "cancelled"


@pytest.mark.parametrize("who", ["designer", "lab_member", "stranger", "inactive", "site_admin"])
def test_it_takes_the_permissions_of_a_deployment(site: Site, built: int, who: str) -> None:
    before = site.study()
    with pytest.raises(PermissionDenied):
        begin(site, built, getattr(site, who))
    assert (site.study().state, site.study().fencing_token) == (before.state, before.fencing_token)


@pytest.mark.parametrize("state", [state for state in WORKFLOW_STATES if state not in MAY_START_FROM[DEPLOYMENT]])
def test_from_any_other_state_it_is_refused_with_those_that_allow_it(site: Site, built: int, state: State) -> None:
    site.set_state(state)
    with pytest.raises(TransitionNotAllowed, match=rf"is {state}; a rollback may start from approved, active, paused"):
        begin(site, built)
    assert site.study().state == state


def test_only_a_deployment_of_this_study_can_be_put_back(site: Site, built: int) -> None:
    other = site.another_study("Another", State.ACTIVE)
    preview = deploy(site, PREVIEW)
    for study, restores in ((site.study_id, preview), (site.study_id, 10**6), (site.study_id, 2**70), (other, built)):
        with pytest.raises(InvalidRequest, match=f"has no deployment of request {restores}"):
            begin(site, restores, study=study)


def test_a_rollback_and_a_build_exclude_each_other(site: Site, built: int) -> None:
    waiting = site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT)
    rollback = begin(site, built)
    with pytest.raises(StudyIsLocked, match=f"by build request {rollback.request_id}"):
        site.ledger.claim(waiting, "run", LEASE)
    with pytest.raises(StudyIsLocked):
        begin(site, built)
    assert site.request(waiting).status == RequestStatus.QUEUED, "who waits goes on waiting"
    site.ledger.finish(rollback, {})
    build = site.ledger.claim(waiting, "run", LEASE)
    assert build.fencing_token == rollback.fencing_token + 1
    with pytest.raises(StudyIsLocked, match=f"by build request {waiting}"):
        begin(site, built)


def test_of_many_at_once_one_begins(site: Site, built: int) -> None:
    def attempt(_: int) -> BuildClaim | DomainError:
        try:
            return begin(site, built)
        except DomainError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    assert sum(isinstance(outcome, BuildClaim) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, StudyIsLocked) for outcome in outcomes) == 7


def test_what_is_in_use_is_told_from_the_claim_to_the_end(site: Site, built: int) -> None:
    uuid = site.study().uuid

    def in_use() -> tuple[bool, bool]:
        return site.ledger.is_building(DEPLOYMENT, uuid), site.ledger.is_building(PREVIEW, uuid)

    assert in_use() == (False, False)
    claim = begin(site, built)
    site.end_leases()
    assert in_use() == (True, False), "a dead worker may be asleep"
    end_for_dead_worker(site.ledger, claim)
    preview = site.ledger.claim(site.ledger.request(site.study_id, site.study_admin, PREVIEW), "run", LEASE)
    assert in_use() == (False, True)
    site.ledger.finish(preview, {})
    assert in_use() == (False, False)


def test_a_rollback_never_waits_and_is_a_deployment(site: Site, built: int) -> None:

    for kind in ("deployment", "preview"):
        with pytest.raises(IntegrityError, match="rollback_never_waits"), site.sessions.begin() as session:
            session.execute(
                text(
                    "INSERT INTO build_request (study_id, requested_by_id, kind, restores_id)"
                    " VALUES (:study, :user, :kind, :built)"
                ),
                {"study": site.study_id, "user": site.study_admin, "kind": kind, "built": built},
            )
    with site.sessions.begin() as session:
        assert session.get_one(Study, site.study_id).state == State.ACTIVE
