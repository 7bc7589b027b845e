"""How a claimed request ends, or waits for another attempt: state, one study log and the mails, by compare-and-set.

All within the caller's transaction. Whoever ends a request must match its fencing token; a late one: LeaseLost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, case, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from domain.db import database_now, is_violated, storable
from domain.errors import LeaseLost
from domain.mail.audience import Audience, people
from domain.mail.outbox import enqueue
from domain.models import BuildRequest, RequestStatus, Study, User
from domain.models.requests import ONE_WAITING_BUILD
from domain.requests.build_claims import LOCK_STATE, Claim, described, end_waiting, tell_replaced
from domain.requests.queue import Failure, Retry, waiting_again
from domain.studies.approval import APPROVED_STATES, has_changed, named_player
from domain.studies.log import record

_READERS = (Audience.STUDY_ADMINS, Audience.SITE_ADMINS)
"""Who is told how a build ended, besides the user who asked for it."""


def is_held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    """The condition of compare-and-set on the request: it runs, and was neither claimed nor taken over since."""
    return (
        BuildRequest.id == claim.request_id,
        BuildRequest.status == RequestStatus.RUNNING,
        BuildRequest.fencing_token == claim.fencing_token,
        BuildRequest.taken_over == claim.taken_over,
    )


def lost(claim: Claim) -> LeaseLost:
    """What to raise when the condition was not met."""
    return LeaseLost(
        f"build request {claim.request_id} is no longer held with fencing token {claim.fencing_token}:"
        " it was ended by somebody else, and this worker changes nothing more"
    )


def close(
    session: Session,
    claim: Claim,
    status: RequestStatus,
    state_after: str,
    values: dict[str, Any],
) -> tuple[Study, BuildRequest]:
    """Compare-and-set the end of a request, study first as in the claim, so that two never wait for each other."""
    study = _release(session, claim, state_after)
    ended = {"status": status, "finished_at": database_now(), "lease_expires_at": None, **values}
    return study, _end(session, claim, ended)


def _release(session: Session, claim: Claim, state_after: str) -> Study:
    """Unlock the study. Raises LeaseLost."""
    released = (
        update(Study)
        .where(
            Study.id == claim.study_id,
            Study.fencing_token == claim.fencing_token,
            Study.state == LOCK_STATE[claim.kind],
        )
        .values(
            state=state_after,
            state_before_build=None,
            state_changed_at=case(
                (Study.state_before_build == state_after, Study.state_changed_at), else_=database_now()
            ),
        )
        .returning(Study.id)
        .execution_options(synchronize_session=False)
    )
    if session.scalar(released) is None:
        raise lost(claim)
    return session.get_one(Study, claim.study_id, populate_existing=True)


def _end(session: Session, claim: Claim, values: dict[str, Any]) -> BuildRequest:
    """Write to the request that the claim holds. Raises LeaseLost."""
    ended = (
        update(BuildRequest)
        .where(*is_held(claim))
        .values(values)
        .returning(BuildRequest.id)
        .execution_options(synchronize_session=False)
    )
    if session.scalar(ended) is None:
        raise lost(claim)
    return session.get_one(BuildRequest, claim.request_id, populate_existing=True)


def give_back(
    session: Session,
    claim: Claim,
    failure: Failure,
    extra: dict[str, Any],
    retry_by: Retry,
) -> RequestStatus:
    """Into the queue again, but for rollbacks, and unless it was cancelled, the last attempt, or a newer one waits."""
    failure = replace(failure, message=storable(failure.message))
    study = _release(session, claim, claim.state_before)
    request = session.scalar(
        select(BuildRequest).where(*is_held(claim)).with_for_update().execution_options(populate_existing=True)
    )
    if request is None:
        raise lost(claim)
    failed = {"failed_attempts": [*request.failed_attempts, failure.told(request.run_id, request.attempt)]}
    ended = {"finished_at": database_now(), "lease_expires_at": None, **failed}
    if request.cancel_requested_at is not None:
        canceller = session.get(User, request.cancelled_by_id) if request.cancelled_by_id else None
        request = _end(session, claim, {**ended, "status": RequestStatus.CANCELLED, "error_code": "cancelled"})
        by = {"cancelled_by": canceller.name if canceller else "somebody"}
        tell(session, claim, study, request, "cancelled", extra, by)
        return RequestStatus.CANCELLED
    wait = retry_by.after(failure, request.failed_attempts)
    if wait is None or request.restores_id is not None:  # who rolls back waits for no queue
        tried = f"tried {request.attempt} times; the last time: " if request.attempt > 1 else ""
        message = f"{tried}{failure.message}"
        values = {"status": RequestStatus.FAILED, "error_code": failure.code, "error": message}
        request = _end(session, claim, {**ended, **values})
        tell(session, claim, study, request, "failed", extra, {"step": failure.step, "error": message})
        return RequestStatus.FAILED
    waits = {**waiting_again(failure.code, wait), **failed}
    try:
        with session.begin_nested():
            _end(session, claim, waits)
    except IntegrityError as error:
        if not is_violated(error, ONE_WAITING_BUILD):
            raise
        request = _end(session, claim, {**ended, "status": RequestStatus.CANCELLED, "error_code": "replaced"})
        newer = session.scalars(
            select(User)
            .join(BuildRequest, BuildRequest.requested_by_id == User.id)
            .where(
                BuildRequest.study_id == claim.study_id,
                BuildRequest.kind == claim.kind,
                BuildRequest.status == RequestStatus.QUEUED,
            )
        ).one()
        tell_replaced(session, study, request.id, claim.kind, request.requested_by_id, newer, request.attempt)
        note = {"note": "a newer request for the same waits, so this one was not tried again"}
        _record(session, claim, study, request, "replaced", extra, {"error": failure.message, **note})
        return RequestStatus.CANCELLED
    return RequestStatus.QUEUED


def tell(
    session: Session,
    claim: Claim,
    study: Study,
    request: BuildRequest,
    outcome: str,
    extra: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """The one log of a build and its mails."""
    what = _record(session, claim, study, request, outcome, extra, facts)
    requester = session.get_one(User, request.requested_by_id)
    readers = people(session, study, *_READERS, also=(requester,))
    _mail(session, study, request, requester, outcome, what, readers)


def pin_sha(study: Study, claim: Claim, request: BuildRequest) -> dict[str, Any]:
    """Name in the study the commit that was built, if the study named none; returns what the log tells of it.

    Before an approval this changes what will be reviewed, so it raises the revision. After one, the approval of a
    branch's head becomes that of the commit, and all further deployments build the same.
    """
    if claim.player_sha or not request.player_sha or named_player(study).sha:
        return {}
    before, after = study.study_metadata, {**study.study_metadata, "last_known_player_sha": request.player_sha}
    study.study_metadata = after
    if claim.state_before in APPROVED_STATES:
        if study.approved_revision is not None and study.approved_sha is None:
            study.approved_sha = request.player_sha
        return {"pinned": request.player_sha}
    has_changed(study)
    return {"pinned": request.player_sha, "diff": {"study_metadata": [before, after]}}


def _mail(
    session: Session,
    study: Study,
    request: BuildRequest,
    requester: User,
    outcome: str,
    what: dict[str, Any],
    recipients: Sequence[User],
) -> None:
    """The one mail of a build to each of these."""
    enqueue(
        session,
        event=f"build_request:{request.id}:{outcome}",
        template=f"build_{outcome}",
        context={
            **what,
            "study": {"name": study.name, "uuid": str(study.uuid)},
            "requested_by": requester.name,
            "state_after": study.state,
            "deployed": study.deployed_at is not None,
        },
        recipients=recipients,
        study=study,
        audiences=_READERS,
        asked_by=requester,
    )


def _record(
    session: Session,
    claim: Claim,
    study: Study,
    request: BuildRequest,
    outcome: str,
    extra: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """The one log of a build; returns what it tells besides `extra`."""
    what = {
        "outcome": outcome,
        "kind": claim.act,
        "request_id": claim.request_id,
        "restores": claim.restores_id,
        "run_id": request.run_id,
        "attempt": claim.attempt,
        "origin": request.origin,
        "repository": request.player_repo,
        "sha": request.player_sha,
        "sha_reason": request.sha_reason,
        **facts,
    }
    if request.warnings:
        what["warnings"] = request.warnings
    if request.failed_attempts:
        what["failed_attempts"] = request.failed_attempts
    record(
        session,
        study,
        action=claim.act,
        user_id=request.requested_by_id,
        state_before=claim.state_before,
        state_after=study.state,
        extra={**what, **extra},
        build_request_id=claim.request_id,
    )
    return what


def refuse(session: Session, request_id: int, code: str, message: str) -> None:
    """End a waiting request that cannot run: in silence if no worker ever had it, else with its log and mails."""
    if end_waiting(session, request_id, code, message):
        request = session.get_one(BuildRequest, request_id, populate_existing=True)
        if request.attempt:
            study = session.get_one(Study, request.study_id)
            facts = {"step": "claim", "error": request.error}
            tell(session, described(session, request, 0, study.state), study, request, "failed", {}, facts)


def log_replaced(session: Session, request_ids: Sequence[int]) -> None:
    """The logs of those that waited for another attempt when a newer request took their place."""
    for request_id in request_ids:
        request = session.get_one(BuildRequest, request_id, populate_existing=True)
        if request.attempt:
            study = session.get_one(Study, request.study_id)
            note = {"note": "a newer request took its place while it waited for another attempt"}
            _record(session, described(session, request, 0, study.state), study, request, "replaced", {}, note)


def log_cancelled_while_waiting(
    session: Session, study: Study, request: BuildRequest, cancelled_by: str, user_id: int | None
) -> None:
    """The one log of a request that was cancelled while no worker had it.

    And a mail to who asked, if it was somebody else: who cancels their own has just been answered.
    """
    when = " for another attempt" if request.attempt else "; nothing had begun"
    extra: dict[str, Any] = {
        "outcome": "cancelled",
        "kind": request.kind,
        "request_id": request.id,
        "cancelled_by": cancelled_by,
        "note": f"cancelled while it waited{when}",
    }
    if request.failed_attempts:
        extra["failed_attempts"] = request.failed_attempts
    record(
        session,
        study,
        action=request.kind,
        user_id=user_id,
        state_before=study.state,
        state_after=study.state,
        extra=extra,
        build_request_id=request.id,
    )
    requester = session.get_one(User, request.requested_by_id)
    told = [requester] if requester.is_active and requester.id != user_id else []
    _mail(session, study, request, requester, "cancelled", extra, told)
