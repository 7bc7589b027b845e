"""The life of a request, the same for every kind: claim, heartbeat, retry, cancel, and one end.

A kind of request is a subclass: it says who may ask, what a claim locks, what an end changes and whom it tells. The
database decides: each act is compare-and-set on the rows, in one short transaction, and a worker that comes late
changes nothing. docs/adr/0024 tells what another kind would take.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, ClassVar

from sqlalchemy import update
from sqlalchemy.orm import Session

from domain.db import FRESH, can_be_id, database_now, storable
from domain.errors import DomainError, InvalidRequest
from domain.models import RequestStatus, User
from domain.permissions.checks import require_permission
from domain.permissions.codes import Permission
from domain.requests.claims import Beat, ClaimT, RequestT
from domain.requests.endings import Endings, ended
from domain.requests.failure import WORKER_DIED, Failure
from domain.requests.queue import awaits, require_room, why_not_waiting


@dataclass(frozen=True)
class RequestLedger(Endings[RequestT, ClaimT]):
    """The requests of one kind, from the wish to the end. Each public method is one short transaction of its own."""

    refusals: ClassVar[tuple[type[DomainError], ...]]
    """Errors that end a request before its claim, with neither log nor mail if no worker ever had it."""

    # -- what a kind adds -----------------------------------------------------------------------------------------

    @abstractmethod
    def _admit(self, session: Session, request: RequestT) -> dict[str, Any]:
        """Make sure that the request may run now, and lock what it needs.

        Returns what a claim writes besides the run and its lease, `fencing_token` among it. Raises the errors of
        `refusals`, and what means that it goes on waiting.
        """

    @abstractmethod
    def _not_waiting(self, message: str) -> DomainError:
        """Return the error for a run that comes too late. It is no refusal: another run has the request."""

    @contextmanager
    def _claiming(self) -> Generator[None]:
        """Translate what the database says of two claims at the same moment."""
        yield

    def _hold(self, session: Session, request_id: int) -> None:
        """Hold the rows that a claim locks first, so that no two wait for each other."""

    # -- the claim ------------------------------------------------------------------------------------------------

    def claim(
        self,
        request_id: int,
        run_id: str,
        lease: timedelta,
        *,
        at_once: int | None = None,
        submission: int | None = None,
    ) -> ClaimT:
        """Take a waiting request for the run `run_id`, and hold it for `lease`, or longer with heartbeats.

        `submission` tells which of the runs that sensors asked for this is; one that another has followed comes too
        late. Raises QueueIsFull when `at_once` requests are running, StudyIsLocked or LeaseLost when it cannot be taken
        (in each case it goes on waiting, or is in other hands), and the errors of `refusals` when this request can
        never run: then it has ended as failed, with that message.
        """
        with self.sessions.begin() as session, self._claiming():
            if at_once is not None:
                require_room(session, self.model, at_once)
            try:
                return self._take(session, request_id, run_id, lease, submission)
            except self.refusals as refusal:
                self._refuse(session, request_id, refusal.code, str(refusal))
                refused = refusal
        raise refused

    def _launch(self, ask: Callable[[Session], RequestT], run_id: str, lease: timedelta, at_once: int | None) -> ClaimT:
        """Ask and claim in one transaction: the run that asks works at once, or nothing has changed."""
        with self.sessions.begin() as session, self._claiming():
            if at_once is not None:
                require_room(session, self.model, at_once)
            return self._take(session, ask(session).id, run_id, lease, None)

    def _take(self, session: Session, request_id: int, run_id: str, lease: timedelta, submission: int | None) -> ClaimT:
        model, request = self.model, self.by_id(session, request_id)
        admitted = self._admit(session, request)
        start = (
            update(model)
            .where(model.id == request_id, awaits(model, submission))
            .values(
                status=RequestStatus.RUNNING,
                run_id=run_id,
                attempt=model.attempt + 1,
                claimed_at=database_now(),
                lease_expires_at=database_now(lease),
                submitted_at=None,
                error_code=None,
                **admitted,
            )
            .returning(model)
        )
        taken = session.scalar(start, execution_options=FRESH)
        if taken is None:
            raise self._comes_late(session, request)
        return self.claim_of(session, taken)

    def _comes_late(self, session: Session, request: RequestT) -> DomainError:
        session.refresh(request)
        return self._not_waiting(f"{self.noun} {request.id} {why_not_waiting(request)}; nothing is left to claim")

    def heartbeat(self, claim: ClaimT, lease: timedelta) -> Beat:
        """Prolong the lease from now. Raises LeaseLost when the request was ended elsewhere."""
        held = update(self.model).where(*self._is_held(claim)).values(lease_expires_at=database_now(lease))
        with self.sessions.begin() as session:
            row = session.execute(held.returning(self.model.cancel_requested_at)).one_or_none()
        if row is None:
            raise self._lost(claim)
        return Beat(cancel_requested=row[0] is not None)

    # -- the end --------------------------------------------------------------------------------------------------

    def fail(self, claim: ClaimT, failure: Failure, extra: dict[str, Any]) -> None:
        """End the request as failed for good. Raises LeaseLost."""
        failure = replace(failure, message=storable(failure.message))
        with self.sessions.begin() as session:
            values = {"error_code": failure.code, "error": failure.message}
            request = self._close(session, claim, RequestStatus.FAILED, values)
            self._report(session, claim, request, "failed", {"step": failure.step, "error": failure.message}, extra)

    def retry(self, claim: ClaimT, failure: Failure, extra: dict[str, Any]) -> RequestStatus:
        """Put the request back into the queue after the platform failed.

        Or end it, if it was the last attempt, a user cancelled, or a newer request waits in its place. Returns the
        status that the request has now. Raises LeaseLost.
        """
        with self.sessions.begin() as session:
            return self._give_back(session, claim, failure, extra)

    def expire(self, claim: ClaimT, extra: dict[str, Any]) -> RequestStatus:
        """As `retry`, for a worker that stopped answering and whose lease has ended.

        Raises LeaseLost when the request has ended by itself or the lease was prolonged.
        """
        with self.sessions.begin() as session:
            return self._give_back(session, claim, WORKER_DIED, extra, self.model.lease_expires_at < database_now())

    def cancelled(self, claim: ClaimT, cancelled_by: str, extra: dict[str, Any]) -> None:
        """End the request as cancelled, after its worker has stopped. Raises LeaseLost."""
        with self.sessions.begin() as session:
            request = self._close(session, claim, RequestStatus.CANCELLED, {"error_code": "cancelled"})
            self._report(session, claim, request, "cancelled", {"cancelled_by": cancelled_by}, extra)

    def note_wish(self, claim: ClaimT) -> None:
        """Remember that the request is to be cancelled, so that it is not tried again whichever process ends it."""
        wanted = update(self.model).where(*self._is_held(claim), self.model.cancel_requested_at.is_(None))
        with self.sessions.begin() as session:
            session.execute(wanted.values(cancel_requested_at=database_now()))

    def cancel(self, request_id: int, user_id: int) -> RequestStatus:
        """Cancel a request: at once while it waits; a running one is told to stop at its next heartbeat.

        The user who asked for it may, and users who hold `studies.change_study`. Returns the status that the request
        has now. Raises PermissionDenied, or InvalidRequest if it has ended.
        """
        model = self.model
        with self.sessions.begin() as session:
            request, user = self.by_id(session, request_id), session.get_one(User, user_id)
            self._hold(session, request_id)
            if request.requested_by_id != user.id or not user.is_active:
                require_permission(session, user, Permission.CHANGE_STUDY, request.study)
            wish = {"cancelled_by_id": user.id, "cancel_requested_at": database_now()}
            of_request = update(model).where(model.id == request_id).returning(model)
            waiting = of_request.where(model.status == RequestStatus.QUEUED).values(
                wish | ended(RequestStatus.CANCELLED, "cancelled")
            )
            running = of_request.where(model.status == RequestStatus.RUNNING).values(wish)
            if session.scalar(waiting, execution_options=FRESH):
                self._tell_cancelled_while_waiting(session, request, user.name, user.id)
                return RequestStatus.CANCELLED
            if session.scalar(running, execution_options=FRESH):
                return RequestStatus.RUNNING
            session.refresh(request)
            raise InvalidRequest(f"{self.noun} {request_id} has already ended: it is {request.status}")

    # -- before the claim -----------------------------------------------------------------------------------------

    def refuse(self, request_id: int, code: str, message: str) -> None:
        """End a waiting request that cannot run; with a log and mails only if a worker had it before."""
        with self.sessions.begin() as session:
            self._refuse(session, request_id, code, message)

    def cancel_submitted(self, request_id: int, submission: int, cancelled_by: str) -> bool:
        """Cancel the request with the run that was to claim it. Returns False if it no longer waits for that run."""
        values = ended(RequestStatus.CANCELLED, "cancelled")
        with self.sessions.begin() as session:
            self._hold(session, request_id)
            request = self._end_submission(session, request_id, submission, values)
            if request is not None:
                self._tell_cancelled_while_waiting(session, request, cancelled_by, None)
            return request is not None

    def not_started(self, request_id: int, submission: int, failure: Failure, run_id: str) -> RequestStatus | None:
        """Let the request wait for another run, since the one that was to claim it ended before it could.

        After so many as there are attempts, the request has failed. Returns the status that it has now; None if it no
        longer waits for that run.
        """
        failed = failure.told(run_id)
        with self.sessions.begin() as session:
            self._hold(session, request_id)
            request = session.get(self.model, request_id, with_for_update=True) if can_be_id(request_id) else None
            if request is None:
                return None
            in_vain = 1 + sum(earlier["attempt"] is None for earlier in request.failed_attempts)
            values = {"error_code": failed["code"], "failed_attempts": [*request.failed_attempts, failed]}
            if in_vain < self.retry_by.attempts:
                values |= {"submitted_at": None, "next_attempt_at": database_now(self.retry_by.wait(in_vain))}
            else:
                values |= {**ended(RequestStatus.FAILED, failed["code"]), "error": failed["error"]}
            request = self._end_submission(session, request_id, submission, values)
            if request is None:
                return None
            if request.status == RequestStatus.FAILED:
                facts = {"step": failed["step"], "error": failed["error"]}
                self._report(session, self._unclaimed(session, request), request, "failed", facts, {})
            return RequestStatus(request.status)

    def _end_submission(
        self, session: Session, request_id: int, submission: int, values: dict[str, Any]
    ) -> RequestT | None:
        """Write to a request that still waits for this run to claim it; return None if it does not."""
        if not can_be_id(request_id):
            return None
        model = self.model
        waits = update(model).where(model.id == request_id, awaits(model, submission))
        return session.scalar(waits.values(values).returning(model), execution_options=FRESH)
