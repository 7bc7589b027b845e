"""The build ledger: request, claim, heartbeat, finish, fail, retry, cancel, expire. The database decides.

Each method is one short transaction. How a request comes into a worker's hands is in `claims.py`, how it ends in
`endings.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select, update

from domain.db import Sessions, database_now, storable
from domain.errors import InvalidRequest, PermissionDenied, TransitionNotAllowed
from domain.models import BuildKind, BuildRequest, RequestStatus, State, Study, User
from domain.models.studies import PageState
from domain.permissions.checks import require_permission
from domain.permissions.codes import Permission
from domain.requests.build_claims import (
    Claim,
    ask,
    claim_of,
    described,
    hold_study_of,
    one_build_each,
    player_of,
    request_by_id,
    take,
)
from domain.requests.build_endings import (
    close,
    give_back,
    is_held,
    log_cancelled_while_waiting,
    log_replaced,
    lost,
    pin_sha,
    refuse,
    tell,
)
from domain.requests.queue import Beat, Failure, Retry, cancel_submission, put_back, require_room

REFUSALS = (InvalidRequest, PermissionDenied, TransitionNotAllowed)
"""Errors that end a request before its claim, with neither log nor mail."""


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
            request, replaced = ask(session, study_id, user_id, kind, origin)
            log_replaced(session, replaced)
            return request.id

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
        with self.sessions.begin() as session, one_build_each():
            if at_once is not None:
                require_room(session, BuildRequest, at_once)
            request, replaced = ask(session, study_id, user_id, kind, origin)
            log_replaced(session, replaced)
            return take(session, request.id, run_id, lease)

    # -- working --------------------------------------------------------------------------------------------------

    def claim(
        self,
        request_id: int,
        run_id: str,
        lease: timedelta,
        *,
        at_once: int | None = None,
        submission: int | None = None,
    ) -> Claim:
        """Take a waiting request for the run `run_id` and lock its study for `lease`, or longer with heartbeats.

        `submission` tells which of the runs that sensors asked for this is; one that another has followed comes too
        late. Raises StudyIsLocked when another build holds the study, or QueueIsFull when `at_once` builds are running
        (the request goes on waiting), and the errors of REFUSALS when this request can never run: then it has ended as
        failed, with that message.
        """
        with self.sessions.begin() as session, one_build_each():
            if at_once is not None:
                require_room(session, BuildRequest, at_once)
            try:
                return take(session, request_id, run_id, lease, submission)
            except REFUSALS as refusal:
                refuse(session, request_id, refusal.code, str(refusal))
                refused = refusal
        raise refused

    def refuse(self, request_id: int, code: str, message: str) -> None:
        """End a waiting request that cannot run; with a log and mails only if a worker had it before."""
        with self.sessions.begin() as session:
            refuse(session, request_id, code, message)

    def heartbeat(self, claim: Claim, lease: timedelta) -> Beat:
        """Prolong the lease from now. Raises LeaseLost when somebody else ended the request."""
        beat = (
            update(BuildRequest)
            .where(*is_held(claim))
            .values(lease_expires_at=database_now(lease))
            .returning(BuildRequest.cancel_requested_at)
        )
        with self.sessions.begin() as session:
            row = session.execute(beat).one_or_none()
        if row is None:
            raise lost(claim)
        return Beat(cancel_requested=row[0] is not None)

    def note_commit(
        self, claim: Claim, *, repository: str, sha: str, reason: str, warnings: Sequence[str] = ()
    ) -> None:
        """Remember what is being built and what is amiss with it, also if this worker dies. Raises LeaseLost."""
        noted = (
            update(BuildRequest)
            .where(*is_held(claim))
            .values(
                player_repo=repository,
                player_sha=sha,
                sha_reason=reason,
                warnings=[storable(warning) for warning in warnings],
            )
            .returning(BuildRequest.id)
        )
        with self.sessions.begin() as session:
            if session.scalar(noted) is None:
                raise lost(claim)

    # -- ending ---------------------------------------------------------------------------------------------------

    def finish(self, claim: Claim, extra: dict[str, Any]) -> str:
        """It succeeded: a deployment makes the study active, all else leaves it as it was. Returns the state.

        A SHA is pinned in the study's metadata when the study named none: see `pin_sha`. Raises LeaseLost.
        """
        is_build = claim.restores_id is None
        is_deployment = claim.kind is BuildKind.DEPLOYMENT and is_build
        with self.sessions.begin() as session:
            after = State.ACTIVE.value if is_deployment else claim.state_before
            study, request = close(session, claim, RequestStatus.SUCCEEDED, after, {})
            if is_deployment:
                study.deployed_at = request.finished_at
            if claim.kind is BuildKind.DEPLOYMENT:
                study.page_state = PageState.SERVED.value
            if is_build:
                extra = {**extra, **pin_sha(study, claim, request)}
            tell(session, claim, study, request, "succeeded", extra, {})
            return after

    def fail(self, claim: Claim, failure: Failure, extra: dict[str, Any]) -> None:
        """The build failed: the study goes back to the state before. Raises LeaseLost."""
        with self.sessions.begin() as session:
            failure = replace(failure, message=storable(failure.message))
            values = {"error_code": failure.code, "error": failure.message}
            study, request = close(session, claim, RequestStatus.FAILED, claim.state_before, values)
            facts = {"step": failure.step, "error": failure.message}
            tell(session, claim, study, request, "failed", extra, facts)

    def retry(self, claim: Claim, failure: Failure, extra: dict[str, Any]) -> RequestStatus:
        """The platform failed: the study goes back to the state before, and the request into the queue.

        Or to its end, if it was the last attempt, somebody cancelled, or a newer request waits in its place. Returns
        the status that the request has now. Raises LeaseLost.
        """
        with self.sessions.begin() as session:
            return give_back(session, claim, failure, extra, self.retry_by)

    def take_over(self, claim: Claim, lease: timedelta, *, expired_only: bool) -> Claim:
        """Take the claim from a worker that died or sleeps, for `lease`, in order to end it.

        From then on the earlier claim can neither be prolonged nor ended, by the worker or another reconciler; so the
        study is not claimed anew before this is done. Raises LeaseLost when the request has ended, was taken over, or,
        with `expired_only`, when its lease was prolonged.
        """
        expired = [BuildRequest.lease_expires_at < database_now()] if expired_only else []
        taken = (
            update(BuildRequest)
            .where(*is_held(claim), *expired)
            .values(taken_over=BuildRequest.taken_over + 1, lease_expires_at=database_now(lease))
            .returning(BuildRequest.taken_over)
        )
        with self.sessions.begin() as session:
            times = session.scalar(taken)
        if times is None:
            raise lost(claim)
        return replace(claim, taken_over=times)

    def cancelled(self, claim: Claim, cancelled_by: str, extra: dict[str, Any]) -> None:
        """The worker has stopped on somebody's wish: the study goes back to the state before. Raises LeaseLost."""
        with self.sessions.begin() as session:
            values = {"error_code": "cancelled"}
            study, request = close(session, claim, RequestStatus.CANCELLED, claim.state_before, values)
            tell(session, claim, study, request, "cancelled", extra, {"cancelled_by": cancelled_by})

    def note_wish(self, claim: Claim) -> None:
        """Remember that this is to be cancelled, whoever ends it and whenever: then it is not tried again."""
        wanted = update(BuildRequest).where(*is_held(claim), BuildRequest.cancel_requested_at.is_(None))
        with self.sessions.begin() as session:
            session.execute(wanted.values(cancel_requested_at=database_now()))

    def cancel(self, request_id: int, user_id: int) -> RequestStatus:
        """Cancel a request: at once while it waits; a running one is told to stop at its next heartbeat.

        Returns the status that the request has now. Raises PermissionDenied, or InvalidRequest if it has ended.
        """
        with self.sessions.begin() as session:
            request, user = request_by_id(session, request_id), session.get_one(User, user_id)
            study = session.get_one(Study, request.study_id, with_for_update=True, populate_existing=True)
            if request.requested_by_id != user.id or not user.is_active:
                require_permission(session, user, Permission.CHANGE_STUDY, study)
            wish = {"cancelled_by_id": user.id, "cancel_requested_at": database_now()}
            ended = {"status": RequestStatus.CANCELLED, "finished_at": database_now(), "error_code": "cancelled"}
            is_request = BuildRequest.id == request_id
            waiting = update(BuildRequest).where(is_request, BuildRequest.status == RequestStatus.QUEUED)
            running = update(BuildRequest).where(is_request, BuildRequest.status == RequestStatus.RUNNING)
            if session.scalar(waiting.values(wish | ended).returning(BuildRequest.id)):
                log_cancelled_while_waiting(session, study, request, user.name, user.id)
                return RequestStatus.CANCELLED
            if session.scalar(running.values(wish).returning(BuildRequest.id)):
                return RequestStatus.RUNNING
            session.refresh(request)
            raise InvalidRequest(f"build request {request_id} has already ended: it is {request.status}")

    # -- before the claim -----------------------------------------------------------------------------------------

    def cancel_submitted(self, request_id: int, submission: int, cancelled_by: str) -> bool:
        """The run that was to claim this request was cancelled: so is the request. False if it no longer waits."""
        with self.sessions.begin() as session:
            study = hold_study_of(session, request_id)
            if study is None or not cancel_submission(session, BuildRequest, request_id, submission):
                return False
            log_cancelled_while_waiting(session, study, request_by_id(session, request_id), cancelled_by, None)
            return True

    def not_started(self, request_id: int, submission: int, failure: Failure, run_id: str) -> RequestStatus | None:
        """The run that was to claim this request ended before it could: another one is asked for later.

        After so many as there are attempts, the request has failed. Returns the status that it has now; None if it no
        longer waits for that run.
        """
        failed = failure.told(run_id)
        with self.sessions.begin() as session:
            study = hold_study_of(session, request_id)
            status = put_back(session, BuildRequest, request_id, submission, failed, self.retry_by)
            if study is not None and status is RequestStatus.FAILED:
                request = session.get_one(BuildRequest, request_id, populate_existing=True)
                claim = described(session, request, 0, study.state)  # which nobody ever held
                facts = {"step": failed["step"], "error": failed["error"]}
                tell(session, claim, study, request, "failed", {}, facts)
            return status

    # -- looking --------------------------------------------------------------------------------------------------

    def has_another_attempt(self, claim: Claim) -> bool:
        """Whether a failure now, by the platform's fault and without a named time, is followed by another attempt."""
        with self.sessions.begin() as session:
            failed = session.get_one(BuildRequest, claim.request_id).failed_attempts
        return self.retry_by.after(Failure("", "", ""), failed) is not None

    def held_by(self, run_id: str) -> Claim | None:
        """The claim that a run holds, if it holds one."""
        query = select(BuildRequest).where(BuildRequest.run_id == run_id, BuildRequest.status == RequestStatus.RUNNING)
        with self.sessions.begin() as session:
            request = session.scalar(query)
            return claim_of(session, request) if request else None

    def has_succeeded(self, request_id: int) -> bool:
        """Whether this request has ended well."""
        with self.sessions.begin() as session:
            return request_by_id(session, request_id).status == RequestStatus.SUCCEEDED

    def works_for(self, run_id: str, lately: timedelta) -> bool:
        """Whether the run holds a request, or ended one so long ago or less."""
        ended_lately = BuildRequest.finished_at >= database_now(-lately)
        query = select(BuildRequest.id).where(
            BuildRequest.run_id == run_id, (BuildRequest.status == RequestStatus.RUNNING) | ended_lately
        )
        with self.sessions.begin() as session:
            return session.scalar(query.limit(1)) is not None

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
        """Return the repository that the request would build, None for the default one. Raises InvalidRequest."""
        with self.sessions.begin() as session:
            request = request_by_id(session, request_id)
            return player_of(session.get_one(Study, request.study_id), BuildKind(request.kind)).repository_url

    def canceller(self, claim: Claim) -> str | None:
        """The name of the person who asked to cancel this request, if somebody did."""
        asked = (
            select(User.name)
            .join(BuildRequest, BuildRequest.cancelled_by_id == User.id)
            .where(BuildRequest.id == claim.request_id, BuildRequest.cancel_requested_at.is_not(None))
        )
        with self.sessions.begin() as session:
            return session.scalar(asked)
