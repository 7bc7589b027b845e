"""How a claimed request ends, or waits for another attempt: state, one study log and the mails, by compare-and-set.

All within the caller's transaction. A worker that ends a request must match its fencing token; a late one gets
LeaseLost.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from domain.db import FRESH, can_be_id, database_now, is_violated, storable
from domain.models import RequestStatus
from domain.requests.claims import Claims, ClaimT, RequestT
from domain.requests.failure import Failure, waiting_again

_NEWER_WAITS = "a newer request for the same waits, so this one was not tried again"
_GAVE_WAY = "a newer request took its place while it waited for another attempt"


@dataclass(frozen=True)
class Endings(Claims[RequestT, ClaimT]):
    """How requests of one kind end, within the caller's transaction: state, one study log, the mails."""

    one_waiting: ClassVar[str]
    """The unique index that lets one request for the same wait."""

    # -- what a kind adds -----------------------------------------------------------------------------------------

    @abstractmethod
    def _unclaimed(self, session: Session, request: RequestT) -> ClaimT:
        """Return what logs and mails tell of a request that no worker holds."""

    @abstractmethod
    def _record(
        self,
        session: Session,
        claim: ClaimT,
        request: RequestT,
        outcome: str,
        facts: dict[str, Any],
        extra: dict[str, Any],
    ) -> None:
        """Write the one study log of the end. `facts` are in the mails, too; `extra` is in the log alone."""

    @abstractmethod
    def _tell(self, session: Session, claim: ClaimT, request: RequestT, outcome: str, facts: dict[str, Any]) -> None:
        """Enqueue the mails about the end."""

    @abstractmethod
    def _tell_cancelled_while_waiting(
        self, session: Session, request: RequestT, cancelled_by: str, user_id: int | None
    ) -> None:
        """Log that a waiting request was cancelled, and tell the user who asked unless it was `user_id`."""

    def _release(self, session: Session, claim: ClaimT, state_after: str | None) -> None:
        """Unlock what the claim locked; `state_after`: the study's, by default that of before. Raises LeaseLost."""

    def _tell_replaced(self, session: Session, request: RequestT) -> None:
        """Tell the user whose request is not tried again, since a newer one waits in its place."""

    def _is_tried_again(self, claim: ClaimT) -> bool:
        """Return whether a failed request of this claim may go back into the queue."""
        del claim
        return True

    # -- the ends -------------------------------------------------------------------------------------------------

    def _write(self, session: Session, claim: ClaimT, values: dict[str, Any]) -> RequestT:
        """Write to the request that the claim holds. Raises LeaseLost."""
        written = update(self.model).where(*self._is_held(claim)).values(values).returning(self.model)
        request = session.scalar(written, execution_options=FRESH)
        if request is None:
            raise self._lost(claim)
        return request

    def _close(
        self,
        session: Session,
        claim: ClaimT,
        status: RequestStatus,
        values: dict[str, Any],
        state_after: str | None = None,
    ) -> RequestT:
        """End the request, what it locked first as in the claim, so that two never wait for each other."""
        self._release(session, claim, state_after)
        return self._write(session, claim, {**ended(status), **values})

    def _report(
        self,
        session: Session,
        claim: ClaimT,
        request: RequestT,
        outcome: str,
        facts: dict[str, Any],
        extra: dict[str, Any],
    ) -> None:
        self._record(session, claim, request, outcome, facts, extra)
        self._tell(session, claim, request, outcome, facts)

    def _give_back(
        self, session: Session, claim: ClaimT, failure: Failure, extra: dict[str, Any], *also: ColumnElement[bool]
    ) -> RequestStatus:
        """Into the queue again, unless a user cancelled, it was the last attempt, or a newer request waits."""
        failure = replace(failure, message=storable(failure.message))
        self._release(session, claim, None)
        held = select(self.model).where(*self._is_held(claim), *also).with_for_update()
        request = session.scalar(held, execution_options={"populate_existing": True})
        if request is None:
            raise self._lost(claim)
        failed = {"failed_attempts": [*request.failed_attempts, failure.told(request.run_id, request.attempt)]}
        if request.cancel_requested_at is not None:
            cancelled_by = self._canceller(session, claim) or "a user"
            values = {**ended(RequestStatus.CANCELLED, "cancelled"), **failed}
            request = self._write(session, claim, values)
            self._report(session, claim, request, "cancelled", {"cancelled_by": cancelled_by}, extra)
            return RequestStatus.CANCELLED
        wait = self.retry_by.after(failure, request.failed_attempts) if self._is_tried_again(claim) else None
        if wait is None:
            tried = f"tried {request.attempt} times; the last time: " if request.attempt > 1 else ""
            message = f"{tried}{failure.message}"
            values = {**ended(RequestStatus.FAILED, failure.code), "error": message, **failed}
            request = self._write(session, claim, values)
            self._report(session, claim, request, "failed", {"step": failure.step, "error": message}, extra)
            return RequestStatus.FAILED
        try:
            with session.begin_nested():
                self._write(session, claim, {**waiting_again(failure.code, wait), **failed})
        except IntegrityError as error:
            if not is_violated(error, self.one_waiting):
                raise
            values = {**ended(RequestStatus.CANCELLED, "replaced"), **failed}
            request = self._write(session, claim, values)
            self._record(session, claim, request, "replaced", {"error": failure.message, "note": _NEWER_WAITS}, extra)
            self._tell_replaced(session, request)
            return RequestStatus.CANCELLED
        return RequestStatus.QUEUED

    def _replace_waiting(self, session: Session, *same: ColumnElement[bool]) -> Sequence[RequestT]:
        """Cancel the requests for the same that wait, and log those that a worker had before."""
        model = self.model
        replaced = update(model).where(*same, model.status == RequestStatus.QUEUED)
        values = ended(RequestStatus.CANCELLED, "replaced")
        requests = session.scalars(replaced.values(values).returning(model), execution_options=FRESH).all()
        for request in requests:
            if request.attempt:
                claim = self._unclaimed(session, request)
                self._record(session, claim, request, "replaced", {"note": _GAVE_WAY}, {})
        return requests

    def _refuse(self, session: Session, request_id: int, code: str, message: str) -> None:
        """End a waiting request that cannot run: in silence if no worker ever had it, else with its log and mails."""
        model = self.model
        if not can_be_id(request_id):
            return
        waits = update(model).where(model.id == request_id, model.status == RequestStatus.QUEUED)
        values = {**ended(RequestStatus.FAILED, code), "error": storable(message)}
        refused = waits.values(values).returning(model)
        request = session.scalar(refused, execution_options=FRESH)
        if request is not None and request.attempt:
            claim = self._unclaimed(session, request)
            self._report(session, claim, request, "failed", {"step": "claim", "error": request.error}, {})


def ended(status: RequestStatus, error_code: str | None = None) -> dict[str, Any]:
    """Return the values that end a request."""
    return {"status": status, "finished_at": database_now(), "lease_expires_at": None, "error_code": error_code}
