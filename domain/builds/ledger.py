"""The build ledger: request, claim, heartbeat, finish, fail, retry, cancel, expire. The database decides.

A claim is compare-and-set in one short transaction: the study's state becomes a lock state, the request starts to run
under a lease, and both remember a fencing token. Whoever ends a request (finish, fail, cancel, expire) must match that
token; the study's state, exactly one study log and the mails change in the same transaction. A late one: LeaseLost.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, case, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from domain.db import Sessions, database_now, is_violated, storable
from domain.errors import (
    DomainError,
    InvalidRequest,
    LeaseLost,
    PermissionDenied,
    StudyIsLocked,
    TransitionNotAllowed,
)
from domain.mail.audience import Audience, people
from domain.mail.outbox import enqueue
from domain.models import BuildKind, BuildRequest, RequestStatus, State, Study, User
from domain.models.requests import ONE_RUNNING_BUILD, ONE_WAITING_BUILD
from domain.models.studies import LOCK_STATES, WORKFLOW_STATES
from domain.permissions.checks import require_permission
from domain.permissions.codes import Permission
from domain.queue import WORKER_DIED, Beat, Failure, Retry, cancel_submission, put_back, require_room
from domain.studies.log import record

LOCK_STATE = {BuildKind.PREVIEW: State.PREVIEWING, BuildKind.DEPLOYMENT: State.DEPLOYING}
MAY_START_FROM: dict[BuildKind, tuple[State, ...]] = {
    BuildKind.PREVIEW: tuple(state for state in WORKFLOW_STATES if state is not State.ARCHIVED),
    BuildKind.DEPLOYMENT: (State.APPROVED, State.ACTIVE, State.PAUSED),
}
PERMISSIONS: dict[BuildKind, tuple[Permission, ...]] = {
    BuildKind.PREVIEW: (Permission.CHANGE_STUDY,),
    BuildKind.DEPLOYMENT: (Permission.CHANGE_STUDY, Permission.CHANGE_STUDY_STATUS),
}
LARGEST_ID = 2**63 - 1
"""Of a key in the database; what a person types may be larger."""
REFUSALS = (InvalidRequest, PermissionDenied, TransitionNotAllowed)
"""Errors that end a request before its claim, with neither log nor mail."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A running request in the hands of one worker; `fencing_token` proves it."""

    request_id: int
    study_id: int
    study_uuid: UUID
    study_name: str
    kind: BuildKind
    requested_by: str
    fencing_token: int
    attempt: int
    state_before: str
    player_repo_url: str | None
    player_sha: str | None
    restores_id: int | None = None
    """Of a rollback: the request that built what it puts back."""

    @property
    def act(self) -> str:
        """What people call this: preview, deployment or rollback."""
        return self.kind.value if self.restores_id is None else "rollback"

    @property
    def page_owner(self) -> str:
        """The request that the page names: a rollback puts back the page of the build."""
        return str(self.restores_id or self.request_id)


@dataclass(frozen=True, slots=True)
class BuildLedger:
    """The ledger over one database. Each method is one short transaction of its own.

    `retry_by` says how often a build that fails by the platform's fault is tried.
    """

    sessions: Sessions
    retry_by: Retry = field(default_factory=Retry)

    # -- asking ---------------------------------------------------------------------------------------------------

    def request(self, study_id: int, user_id: int, kind: BuildKind, *, origin: str = "") -> int:
        """Ask for a build; returns the request's id. A newer request takes the place of one that still waits.

        Raises PermissionDenied, or TransitionNotAllowed where the study's state can never lead to this build.
        """
        with self.sessions.begin() as session:
            return _ask(session, study_id, user_id, kind, origin).id

    def launch(
        self,
        study_id: int,
        user_id: int,
        kind: BuildKind,
        run_id: str,
        lease: timedelta,
        *,
        origin: str = "",
        at_once: int | None = None,
    ) -> Claim:
        """Ask and claim in one transaction: the run that asks either works at once, or nothing has changed.

        Raises what `request` raises, StudyIsLocked and QueueIsFull; then whoever waits goes on waiting.
        """
        with self.sessions.begin() as session, one_build_each(study_id):
            if at_once is not None:
                require_room(session, BuildRequest, at_once)
            return _take(session, _ask(session, study_id, user_id, kind, origin).id, run_id, lease)

    # -- working --------------------------------------------------------------------------------------------------

    def claim(self, request_id: int, run_id: str, lease: timedelta, *, at_once: int | None = None) -> Claim:
        """Take a waiting request for the run `run_id` and lock its study for `lease`, or longer with heartbeats.

        Raises StudyIsLocked when another build holds the study, or QueueIsFull when `at_once` builds are running (the
        request goes on waiting), and the errors of REFUSALS when this request can never run: then it has ended as
        failed, with that message.
        """
        with self.sessions.begin() as session, one_build_each(request_id):
            if at_once is not None:
                require_room(session, BuildRequest, at_once)
            try:
                return _take(session, request_id, run_id, lease)
            except REFUSALS as refusal:
                _refuse(session, request_id, refusal)
                refused = refusal
        raise refused

    def refuse(self, request_id: int, code: str, message: str) -> None:
        """End a waiting request that cannot run, with neither log nor mail; its status says why."""
        with self.sessions.begin() as session:
            _end_waiting(session, request_id, code, message)

    def heartbeat(self, claim: Claim, lease: timedelta) -> Beat:
        """Prolong the lease from now. Raises LeaseLost when somebody else ended the request."""
        beat = (
            update(BuildRequest)
            .where(*_is_held(claim))
            .values(lease_expires_at=database_now(lease))
            .returning(BuildRequest.cancel_requested_at)
        )
        with self.sessions.begin() as session:
            row = session.execute(beat).one_or_none()
        if row is None:
            raise _lost(claim)
        return Beat(cancel_requested=row[0] is not None)

    def note_commit(self, claim: Claim, *, repository: str, sha: str, reason: str) -> None:
        """Remember what is being built, so that it is known even if this worker dies. Raises LeaseLost."""
        noted = (
            update(BuildRequest)
            .where(*_is_held(claim))
            .values(player_repo=repository, player_sha=sha, sha_reason=reason)
            .returning(BuildRequest.id)
        )
        with self.sessions.begin() as session:
            if session.scalar(noted) is None:
                raise _lost(claim)

    # -- ending ---------------------------------------------------------------------------------------------------

    def finish(self, claim: Claim, extra: dict[str, Any]) -> str:
        """It succeeded: a deployment makes the study active, all else leaves it as it was. Returns the state.

        A SHA is pinned in the study's metadata when the study named none. Raises LeaseLost.
        """
        is_build = claim.restores_id is None
        is_deployment = claim.kind is BuildKind.DEPLOYMENT and is_build
        with self.sessions.begin() as session:
            after = State.ACTIVE.value if is_deployment else claim.state_before
            study, request = _close(session, claim, RequestStatus.SUCCEEDED, after, {})
            if is_deployment:
                study.deployed_at = request.finished_at
            named = claim.player_sha or study.study_metadata.get("last_known_player_sha")
            if is_build and request.player_sha and not named:
                study.study_metadata = {**study.study_metadata, "last_known_player_sha": request.player_sha}
            _tell(session, claim, study, request, "succeeded", extra, {})
            return after

    def fail(self, claim: Claim, failure: Failure, extra: dict[str, Any]) -> None:
        """The build failed: the study goes back to the state before. Raises LeaseLost."""
        with self.sessions.begin() as session:
            _fail(session, claim, failure, extra)

    def retry(self, claim: Claim, failure: Failure, extra: dict[str, Any]) -> RequestStatus:
        """The platform failed: the study goes back to the state before, and the request into the queue.

        Or to its end, if it was the last attempt, somebody cancelled, or a newer request waits in its place. Returns
        the status that the request has now. Raises LeaseLost.
        """
        with self.sessions.begin() as session:
            return _give_back(session, claim, failure, extra, self.retry_by)

    def expire(self, claim: Claim, extra: dict[str, Any]) -> RequestStatus:
        """The worker stopped answering and its lease has ended: as `retry`.

        Raises LeaseLost when the request has ended by itself or the lease was prolonged.
        """
        with self.sessions.begin() as session:
            return _give_back(
                session, claim, WORKER_DIED, extra, self.retry_by, BuildRequest.lease_expires_at < database_now()
            )

    def cancelled(self, claim: Claim, cancelled_by: str, extra: dict[str, Any]) -> None:
        """The worker has stopped on somebody's wish: the study goes back to the state before. Raises LeaseLost."""
        with self.sessions.begin() as session:
            values = {"error_code": "cancelled"}
            study, request = _close(session, claim, RequestStatus.CANCELLED, claim.state_before, values)
            _tell(session, claim, study, request, "cancelled", extra, {"cancelled_by": cancelled_by})

    def cancel(self, request_id: int, user_id: int) -> RequestStatus:
        """Cancel a request: at once while it waits; a running one is told to stop at its next heartbeat.

        Returns the status that the request has now. Raises PermissionDenied, or InvalidRequest if it has ended.
        """
        with self.sessions.begin() as session:
            request, user = _request(session, request_id), session.get_one(User, user_id)
            study = session.get_one(Study, request.study_id, with_for_update=True, populate_existing=True)
            if request.requested_by_id != user.id or not user.is_active:
                require_permission(session, user, Permission.CHANGE_STUDY, study)
            wish = {"cancelled_by_id": user.id, "cancel_requested_at": database_now()}
            ended = {"status": RequestStatus.CANCELLED, "finished_at": database_now(), "error_code": "cancelled"}
            is_request = BuildRequest.id == request_id
            waiting = update(BuildRequest).where(is_request, BuildRequest.status == RequestStatus.QUEUED)
            running = update(BuildRequest).where(is_request, BuildRequest.status == RequestStatus.RUNNING)
            if session.scalar(waiting.values(wish | ended).returning(BuildRequest.id)):
                _log_cancelled_while_waiting(session, study, request, user.name, user.id)
                return RequestStatus.CANCELLED
            if session.scalar(running.values(wish).returning(BuildRequest.id)):
                return RequestStatus.RUNNING
            session.refresh(request)
            raise InvalidRequest(f"build request {request_id} has already ended: it is {request.status}")

    # -- before the claim -----------------------------------------------------------------------------------------

    def cancel_submitted(self, request_id: int, submission: int, cancelled_by: str) -> bool:
        """The run that was to claim this request was cancelled: so is the request. False if it no longer waits."""
        with self.sessions.begin() as session:
            study = _hold_study_of(session, request_id)
            if study is None or not cancel_submission(session, BuildRequest, request_id, submission):
                return False
            _log_cancelled_while_waiting(session, study, _request(session, request_id), cancelled_by, None)
            return True

    def not_started(self, request_id: int, submission: int, failure: Failure, run_id: str) -> RequestStatus | None:
        """The run that was to claim this request ended before it could: another one is asked for later.

        After so many as there are attempts, the request has failed. Returns the status that it has now; None if it no
        longer waits for that run.
        """
        failed = failure.told(run_id)
        with self.sessions.begin() as session:
            study = _hold_study_of(session, request_id)
            status = put_back(session, BuildRequest, request_id, submission, failed, self.retry_by)
            if study is not None and status is RequestStatus.FAILED:
                request = session.get_one(BuildRequest, request_id, populate_existing=True)
                claim = _described(session, request, 0, study.state)  # which nobody ever held
                facts = {"step": failed["step"], "error": failed["error"]}
                _tell(session, claim, study, request, "failed", {}, facts)
            return status

    # -- looking --------------------------------------------------------------------------------------------------

    def held_by(self, run_id: str) -> Claim | None:
        """The claim that a run holds, if it holds one."""
        query = select(BuildRequest).where(BuildRequest.run_id == run_id, BuildRequest.status == RequestStatus.RUNNING)
        with self.sessions.begin() as session:
            request = session.scalar(query)
            return claim_of(session, request) if request else None

    def has_succeeded(self, request_id: int) -> bool:
        """Whether this request has ended well."""
        with self.sessions.begin() as session:
            return _request(session, request_id).status == RequestStatus.SUCCEEDED

    def run_of(self, claim: Claim) -> str | None:
        """The run that works, or worked last, on this claim's request."""
        with self.sessions.begin() as session:
            return session.scalar(select(BuildRequest.run_id).where(BuildRequest.id == claim.request_id))

    def running(self, *, expired_only: bool) -> Sequence[Claim]:
        """The claims of running requests, oldest first; on request only those whose lease has ended."""
        query = select(BuildRequest).where(BuildRequest.status == RequestStatus.RUNNING).order_by(BuildRequest.id)
        if expired_only:
            query = query.where(BuildRequest.lease_expires_at < database_now())
        with self.sessions.begin() as session:
            return [claim_of(session, request) for request in session.scalars(query)]

    def is_building(self, kind: BuildKind, study_uuid: UUID) -> bool:
        """Whether a build of this kind, or a rollback, runs: from its claim until it has an end, dead workers' too."""
        running = (
            select(BuildRequest.id)
            .join(Study, Study.id == BuildRequest.study_id)
            .where(Study.uuid == study_uuid, BuildRequest.kind == kind, BuildRequest.status == RequestStatus.RUNNING)
            .limit(1)
        )
        with self.sessions.begin() as session:
            return session.scalar(running) is not None

    def player_repo_url(self, request_id: int) -> str | None:
        """The repository that the request's study names, if it names one. Raises InvalidRequest."""
        with self.sessions.begin() as session:
            study_id = _request(session, request_id).study_id
            return player_repo_url(session.get_one(Study, study_id))

    def canceller(self, claim: Claim) -> str | None:
        """The name of the person who asked to cancel this request, if somebody did."""
        asked = (
            select(User.name)
            .join(BuildRequest, BuildRequest.cancelled_by_id == User.id)
            .where(BuildRequest.id == claim.request_id, BuildRequest.cancel_requested_at.is_not(None))
        )
        with self.sessions.begin() as session:
            return session.scalar(asked)


@contextmanager
def one_build_each(about: int) -> Generator[None]:
    """Two who claim at the same moment: the second's violation of the unique index, in words."""
    try:
        yield
    except IntegrityError as error:
        if is_violated(error, ONE_RUNNING_BUILD):
            raise StudyIsLocked(f"another build of the same study has just begun ({about})") from error
        raise


def _ask(session: Session, study_id: int, user_id: int, kind: BuildKind, origin: str) -> BuildRequest:
    study = session.get_one(Study, study_id, with_for_update=True, populate_existing=True)
    user = session.get_one(User, user_id)
    require_for(session, user, study, kind)
    state = study.state_before_build or study.state
    if state not in MAY_START_FROM[kind]:
        raise _forbidden(study, kind, state)
    _make_way(session, study, kind, user)
    request = BuildRequest(study_id=study.id, requested_by_id=user.id, kind=kind.value, origin=origin)
    session.add(request)
    try:
        session.flush()
    except IntegrityError as error:
        if is_violated(error, ONE_WAITING_BUILD):
            raise StudyIsLocked(
                f"somebody else has asked for a {kind} of {study.name!r} at the same moment; theirs is waiting"
            ) from error
        raise
    return request


def _make_way(session: Session, study: Study, kind: BuildKind, user: User) -> None:
    """Cancel the request that waits, if one does; its person is told, unless they themselves ask again."""
    replaced = (
        update(BuildRequest)
        .where(
            BuildRequest.study_id == study.id,
            BuildRequest.kind == kind,
            BuildRequest.status == RequestStatus.QUEUED,
        )
        .values(status=RequestStatus.CANCELLED, finished_at=database_now(), error_code="replaced")
        .returning(BuildRequest.id, BuildRequest.requested_by_id)
        .execution_options(synchronize_session=False)
    )
    for request_id, asked_by in session.execute(replaced).all():
        asker = session.get_one(User, asked_by)
        if asker.id != user.id and asker.is_active:
            enqueue(
                session,
                event=f"build_request:{request_id}:replaced",
                template="build_replaced",
                context={
                    "study": {"name": study.name, "uuid": str(study.uuid)},
                    "kind": kind.value,
                    "replaced_by": user.name,
                },
                recipients=[asker],
                study=study,
            )


def _claimable(kind: BuildKind) -> ColumnElement[bool]:
    """The condition of compare-and-set on the study: it stands where this kind of build may start."""
    return Study.state.in_(MAY_START_FROM[kind])


def _waiting() -> ColumnElement[bool]:
    """The condition of compare-and-set on the request: nobody has taken it."""
    return BuildRequest.status == RequestStatus.QUEUED


def _take(session: Session, request_id: int, run_id: str, lease: timedelta) -> Claim:
    request = _request(session, request_id)
    study = session.get_one(Study, request.study_id, with_for_update=True, populate_existing=True)
    user, kind = session.get_one(User, request.requested_by_id), BuildKind(request.kind)
    require_for(session, user, study, kind)
    locked = lock_study(session, study, kind)
    if locked is None:
        session.refresh(study)
        session.refresh(request)
        if request.status != RequestStatus.QUEUED:
            raise _not_waiting(request)
        if study.state in LOCK_STATES:
            raise StudyIsLocked(who_holds(session, study))
        raise _forbidden(study, kind, study.state)
    token, state_before = locked
    start = (
        update(BuildRequest)
        .where(BuildRequest.id == request_id, _waiting())
        .values(
            status=RequestStatus.RUNNING,
            run_id=run_id,
            attempt=BuildRequest.attempt + 1,
            claimed_at=database_now(),
            lease_expires_at=database_now(lease),
            fencing_token=token,
            state_before=state_before,
            submitted_at=None,
            error_code=None,
        )
        .returning(BuildRequest.id)
        .execution_options(synchronize_session=False)
    )
    if session.scalar(start) is None:
        raise _not_waiting(request)
    session.refresh(request)
    session.refresh(study)
    return claim_of(session, request)


def lock_study(session: Session, study: Study, kind: BuildKind) -> tuple[int, str | None] | None:
    """Put the study into the lock state; the new fencing token and the state before, None where it cannot be locked."""
    # SET reads the row as it was before: state_before_build gets the state that this UPDATE replaces.
    lock = (
        update(Study)
        .where(Study.id == study.id, _claimable(kind))
        .values(state_before_build=Study.state, state=LOCK_STATE[kind].value, fencing_token=Study.fencing_token + 1)
        .returning(Study.fencing_token, Study.state_before_build)
        .execution_options(synchronize_session=False)
    )
    row = session.execute(lock).one_or_none()
    return None if row is None else (row[0], row[1])


def _not_waiting(request: BuildRequest) -> StudyIsLocked:
    """Not a refusal: whoever has the request decides what becomes of it."""
    what = f"running in run {request.run_id}" if request.status == RequestStatus.RUNNING else request.status
    return StudyIsLocked(f"build request {request.id} no longer waits: it is {what}; nothing is left to claim")


def _request(session: Session, request_id: int) -> BuildRequest:
    request = session.get(BuildRequest, request_id) if 0 < request_id <= LARGEST_ID else None
    if request is None:
        raise InvalidRequest(f"there is no build request {request_id}; `lookit-ops build list` shows them")
    return request


def _hold_study_of(session: Session, request_id: int) -> Study | None:
    """Read the request's study and hold its row: study first, as in every act, so that no two wait for each other."""
    study = select(Study).join(BuildRequest, BuildRequest.study_id == Study.id).where(BuildRequest.id == request_id)
    return session.scalar(study.with_for_update(of=Study).execution_options(populate_existing=True))


def require_for(session: Session, user: User, study: Study, kind: BuildKind) -> None:
    for permission in PERMISSIONS[kind]:
        require_permission(session, user, permission, study)


def _forbidden(study: Study, kind: BuildKind, state: str) -> TransitionNotAllowed:
    starts = ", ".join(MAY_START_FROM[kind])
    advice = "submit it and have it approved first" if kind is BuildKind.DEPLOYMENT else "it can no longer be built"
    return TransitionNotAllowed(f"the study {study.name!r} is {state}; a {kind} may start from {starts} only: {advice}")


def who_holds(session: Session, study: Study) -> str:
    holder = session.scalar(
        select(BuildRequest).where(BuildRequest.study_id == study.id, BuildRequest.status == RequestStatus.RUNNING)
    )
    by = f" by build request {holder.id} (run {holder.run_id})" if holder else ""
    return f"the study {study.name!r} is {study.state}{by}: wait until that build has ended, or cancel it"


def _refuse(session: Session, request_id: int, refusal: DomainError) -> None:
    _end_waiting(session, request_id, refusal.code, str(refusal))


def _end_waiting(session: Session, request_id: int, code: str, message: str) -> None:
    session.execute(
        update(BuildRequest)
        .where(BuildRequest.id == request_id, BuildRequest.status == RequestStatus.QUEUED)
        .values(status=RequestStatus.FAILED, finished_at=database_now(), error_code=code, error=storable(message))
    )


def claim_of(session: Session, request: BuildRequest) -> Claim:
    if request.fencing_token is None or request.state_before is None:
        raise LeaseLost(f"build request {request.id} is not claimed")
    return _described(session, request, request.fencing_token, request.state_before)


def _described(session: Session, request: BuildRequest, fencing_token: int, state_before: str) -> Claim:
    study, user = session.get_one(Study, request.study_id), session.get_one(User, request.requested_by_id)
    return Claim(
        request_id=request.id,
        study_id=study.id,
        study_uuid=study.uuid,
        study_name=study.name,
        kind=BuildKind(request.kind),
        requested_by=user.name,
        fencing_token=fencing_token,
        attempt=request.attempt,
        state_before=state_before,
        player_repo_url=player_repo_url(study),
        player_sha=_text(study.study_metadata.get("last_known_player_sha")),
        restores_id=request.restores_id,
    )


def player_repo_url(study: Study) -> str | None:
    """The repository that the study names; None for the settings' default."""
    return _text(study.study_metadata.get("player_repo_url"))


def _text(value: object) -> str | None:
    """What the metadata says, as text: other programs may have written a number or blanks there."""
    text = "" if value is None else str(value).strip()
    return text or None


def _is_held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return (
        BuildRequest.id == claim.request_id,
        BuildRequest.status == RequestStatus.RUNNING,
        BuildRequest.fencing_token == claim.fencing_token,
    )


def _lost(claim: Claim) -> LeaseLost:
    return LeaseLost(
        f"build request {claim.request_id} is no longer held with fencing token {claim.fencing_token}:"
        " it was ended by somebody else, and this worker changes nothing more"
    )


def _close(
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
        raise _lost(claim)
    return session.get_one(Study, claim.study_id, populate_existing=True)


def _end(session: Session, claim: Claim, values: dict[str, Any]) -> BuildRequest:
    """Write to the request that the claim holds. Raises LeaseLost."""
    ended = (
        update(BuildRequest)
        .where(*_is_held(claim))
        .values(values)
        .returning(BuildRequest.id)
        .execution_options(synchronize_session=False)
    )
    if session.scalar(ended) is None:
        raise _lost(claim)
    return session.get_one(BuildRequest, claim.request_id, populate_existing=True)


def _give_back(
    session: Session,
    claim: Claim,
    failure: Failure,
    extra: dict[str, Any],
    retry_by: Retry,
    *also: ColumnElement[bool],
) -> RequestStatus:
    """Into the queue again, but for rollbacks, and unless it was cancelled, the last attempt, or a newer one waits."""
    failure = replace(failure, message=storable(failure.message))
    study = _release(session, claim, claim.state_before)
    request = session.scalar(
        select(BuildRequest).where(*_is_held(claim), *also).with_for_update().execution_options(populate_existing=True)
    )
    if request is None:
        raise _lost(claim)
    failed = {"failed_attempts": [*request.failed_attempts, failure.told(request.run_id, request.attempt)]}
    ended = {"finished_at": database_now(), "lease_expires_at": None, **failed}
    if request.cancel_requested_at is not None:
        canceller = session.get(User, request.cancelled_by_id) if request.cancelled_by_id else None
        request = _end(session, claim, {**ended, "status": RequestStatus.CANCELLED, "error_code": "cancelled"})
        by = {"cancelled_by": canceller.name if canceller else "somebody"}
        _tell(session, claim, study, request, "cancelled", extra, by)
        return RequestStatus.CANCELLED
    if request.attempt >= retry_by.attempts or request.restores_id is not None:  # who rolls back waits for no queue
        tried = f"tried {request.attempt} times; the last time: " if request.attempt > 1 else ""
        message = f"{tried}{failure.message}"
        values = {"status": RequestStatus.FAILED, "error_code": failure.code, "error": message}
        request = _end(session, claim, {**ended, **values})
        _tell(session, claim, study, request, "failed", extra, {"step": failure.step, "error": message})
        return RequestStatus.FAILED
    waits = {
        "status": RequestStatus.QUEUED,
        "run_id": None,
        "claimed_at": None,
        "lease_expires_at": None,
        "submitted_at": None,
        "next_attempt_at": database_now(retry_by.wait(request.attempt)),
        "error_code": failure.code,
        **failed,
    }
    try:
        with session.begin_nested():
            _end(session, claim, waits)
    except IntegrityError as error:
        if not is_violated(error, ONE_WAITING_BUILD):
            raise
        request = _end(session, claim, {**ended, "status": RequestStatus.CANCELLED, "error_code": "replaced"})
        note = {"note": "a newer request for the same waits, so this one was not tried again"}
        _record(session, claim, study, request, "replaced", extra, {"error": failure.message, **note})
        return RequestStatus.CANCELLED
    return RequestStatus.QUEUED


def _fail(session: Session, claim: Claim, failure: Failure, extra: dict[str, Any]) -> None:
    failure = replace(failure, message=storable(failure.message))
    values = {"error_code": failure.code, "error": failure.message}
    study, request = _close(session, claim, RequestStatus.FAILED, claim.state_before, values)
    facts = {"step": failure.step, "error": failure.message}
    _tell(session, claim, study, request, "failed", extra, facts)


def _tell(
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
    enqueue(
        session,
        event=f"build_request:{claim.request_id}:{outcome}",
        template=f"build_{outcome}",
        context={
            **what,
            "study": {"name": study.name, "uuid": str(study.uuid)},
            "requested_by": requester.name,
            "state_after": study.state,
            "deployed": study.deployed_at is not None,
        },
        recipients=people(session, study, Audience.STUDY_ADMINS, Audience.SITE_ADMINS, also=(requester,)),
        study=study,
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


def _log_cancelled_while_waiting(
    session: Session, study: Study, request: BuildRequest, cancelled_by: str, user_id: int | None
) -> None:
    record(
        session,
        study,
        action=request.kind,
        user_id=user_id,
        state_before=study.state,
        state_after=study.state,
        extra={
            "outcome": "cancelled",
            "kind": request.kind,
            "request_id": request.id,
            "cancelled_by": cancelled_by,
            "note": "cancelled while it waited; nothing had begun",
        },
        build_request_id=request.id,
    )
