"""What a worker holds: a claim on one running request; and which claims there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from domain.db import Sessions, can_be_id, database_now
from domain.errors import InvalidRequest, LeaseLost
from domain.models import RequestStatus, User
from domain.models.requests import ClaimableRequest
from domain.requests.failure import Failure, Retry


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim(ABC):
    """A running request in the hands of one worker; `fencing_token` proves it."""

    request_id: int
    study_id: int
    study_uuid: UUID
    study_name: str
    requested_by: str
    fencing_token: int
    attempt: int

    @property
    @abstractmethod
    def act(self) -> str:
        """Return what people call this, before the name of the study."""


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat."""

    cancel_requested: bool


RequestT = TypeVar("RequestT", bound=ClaimableRequest)
ClaimT = TypeVar("ClaimT", bound=Claim)


@dataclass(frozen=True)
class Claims(ABC, Generic[RequestT, ClaimT]):
    """The claims on requests of one kind, in one database. Each method is one short transaction of its own.

    `retry_by` says how often a request that fails by the platform's fault is tried.
    """

    sessions: Sessions
    retry_by: Retry = field(default_factory=Retry)

    model: ClassVar[type[Any]]
    """The rows of this kind, a ClaimableRequest."""
    noun: ClassVar[str]
    """What people call one: "build request"."""
    list_command: ClassVar[str]
    """The command that lists them."""

    @abstractmethod
    def claim_of(self, session: Session, request: RequestT) -> ClaimT:
        """Return the claim on a running request, within the caller's transaction."""

    def _is_held(self, claim: ClaimT) -> tuple[ColumnElement[bool], ...]:
        """Return the condition of compare-and-set: the request runs, and was not claimed anew since."""
        model = self.model
        return (
            model.id == claim.request_id,
            model.status == RequestStatus.RUNNING,
            model.fencing_token == claim.fencing_token,
        )

    def _lost(self, claim: ClaimT) -> LeaseLost:
        """Return the error for a claim that the condition did not hold for."""
        return LeaseLost(
            f"{self.noun} {claim.request_id} is no longer held with fencing token {claim.fencing_token}:"
            " it was ended by somebody else, and this worker changes nothing more"
        )

    def by_id(self, session: Session, request_id: int) -> RequestT:
        """Return the request, within the caller's transaction. Raises InvalidRequest."""
        request = session.get(self.model, request_id) if can_be_id(request_id) else None
        if request is None:
            raise InvalidRequest(f"there is no {self.noun} {request_id}; `{self.list_command}` shows them")
        return request

    def running(self, *, expired_only: bool) -> Sequence[ClaimT]:
        """Return the claims of running requests, oldest first; on request only those whose lease has ended."""
        model = self.model
        query = select(model).where(model.status == RequestStatus.RUNNING).order_by(model.id)
        if expired_only:
            query = query.where(model.lease_expires_at < database_now())
        with self.sessions.begin() as session:
            return [self.claim_of(session, request) for request in session.scalars(query)]

    def held_by(self, run_id: str) -> ClaimT | None:
        """Return the claim that a run holds, if it holds one."""
        query = select(self.model).where(self.model.run_id == run_id, self.model.status == RequestStatus.RUNNING)
        with self.sessions.begin() as session:
            request = session.scalar(query)
            return self.claim_of(session, request) if request else None

    def works_for(self, run_id: str, lately: timedelta) -> bool:
        """Return whether the run holds a request, or ended one so long ago or less."""
        model = self.model
        is_recent = or_(model.status == RequestStatus.RUNNING, model.finished_at >= database_now(-lately))
        with self.sessions.begin() as session:
            return session.scalar(select(model.id).where(model.run_id == run_id, is_recent).limit(1)) is not None

    def run_of(self, claim: ClaimT) -> str | None:
        """Return the run that works, or worked last, on this claim's request."""
        with self.sessions.begin() as session:
            return session.scalar(select(self.model.run_id).where(self.model.id == claim.request_id))

    def has_succeeded(self, request_id: int) -> bool:
        """Return whether this request has ended well. Raises InvalidRequest."""
        with self.sessions.begin() as session:
            return self.by_id(session, request_id).status == RequestStatus.SUCCEEDED

    def has_another_attempt(self, claim: ClaimT) -> bool:
        """Return whether a failure now, by the platform's fault and without a named time, is followed by an attempt."""
        with self.sessions.begin() as session:
            failed = session.get_one(self.model, claim.request_id).failed_attempts
        return self.retry_by.after(Failure("", "", ""), failed) is not None

    def canceller(self, claim: ClaimT) -> str | None:
        """Return the name of the user who asked to cancel this request, if one did."""
        with self.sessions.begin() as session:
            return self._canceller(session, claim)

    def _canceller(self, session: Session, claim: ClaimT) -> str | None:
        model = self.model
        asked = (
            select(User.name)
            .join(model, model.cancelled_by_id == User.id)
            .where(model.id == claim.request_id, model.cancel_requested_at.is_not(None))
        )
        return session.scalar(asked)
