"""The queue of requests: who is next, how many may run at once, and for which of them a run is on its way.

The rows are the queue. A request is *submitted* when a run was asked for that shall claim it; that is compare-and-set,
so two daemons ask for one run. A run that does not come within some minutes is asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, case, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from domain.db import Sessions, can_be_id, database_now, one_at_a_time
from domain.errors import QueueIsFull
from domain.models import RequestStatus, Study
from domain.models.requests import ClaimableRequest
from domain.models.studies import LOCK_STATES

START_WITHIN = timedelta(minutes=2)
"""How long a run may take from being asked for until it claims its request, before another one is asked for."""

Model = type[Any]
"""The rows of one kind of request, a ClaimableRequest."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for which a run is to be started. `number` counts the runs that were asked for, from 1."""

    request_id: int
    study_uuid: UUID
    kind: str
    attempt: int
    number: int


@dataclass(frozen=True, slots=True)
class QueueState:
    """The queue in numbers. `due` wait for a worker, `submitted` for their run, `later` for another attempt."""

    due: int
    submitted: int
    later: int
    running: int
    oldest_due_at: datetime | None
    """Since when the oldest of `due` and `submitted` could have been worked on."""


@dataclass(frozen=True, slots=True)
class RequestQueue:
    """The queue of one kind of request. Each method is one short transaction of its own."""

    sessions: Sessions
    model: Model

    def submit(self, *, limit: int, at_once: int, start_within: timedelta = START_WITHIN) -> list[Submission]:
        """Mark the next requests as submitted and return them, oldest first: as many as may run, at most `limit`.

        Of one study, one build at a time. Whoever calls this asks for a run for each, and need not remember that.
        """
        model = self.model
        with self.sessions.begin() as session:
            one_at_a_time(session, model.__tablename__)
            room = min(limit, at_once - _busy(session, model, start_within))
            if room <= 0:
                return []
            ids = _next(session, model, room, start_within)
            marked = (
                update(model)
                .where(model.id.in_(ids), model.status == RequestStatus.QUEUED)
                .values(submitted_at=database_now(), submissions=model.submissions + 1)
                .returning(model.id)
                .execution_options(synchronize_session=False)
            )
            rows = session.execute(
                select(model.id, Study.uuid, model.kind, model.attempt, model.submissions)
                .join(Study, Study.id == model.study_id)
                .where(model.id.in_(list(session.scalars(marked))))
                .order_by(model.id)
            )
            return [Submission(id_, uuid, kind, attempt + 1, number) for id_, uuid, kind, attempt, number in rows]

    def overdue(self, start_within: timedelta = START_WITHIN) -> list[int]:
        """Requests whose run was asked for too long ago, and did not come."""
        model = self.model
        with self.sessions.begin() as session:
            query = select(model.id).where(
                model.status == RequestStatus.QUEUED, model.submitted_at < database_now(-start_within)
            )
            return list(session.scalars(query))

    def ended(self, request_ids: Iterable[int]) -> set[int]:
        """Those of these requests that have had their end, whoever brought it."""
        model = self.model
        has_ended = model.status.not_in((RequestStatus.QUEUED, RequestStatus.RUNNING))
        with self.sessions.begin() as session:
            return set(session.scalars(select(model.id).where(model.id.in_(filter(can_be_id, request_ids)), has_ended)))

    def still_coming(self, request_id: int) -> None:
        """The run of a submitted request exists and has only not begun: wait for it for longer."""
        model = self.model
        waits = (model.id == request_id, model.status == RequestStatus.QUEUED, model.submitted_at.is_not(None))
        with self.sessions.begin() as session:
            session.execute(update(model).where(*waits).values(submitted_at=database_now()))

    def release(self, request_id: int, submission: int | None = None) -> None:
        """The run of a submitted request could not begin yet, for want of room: it waits for its turn again."""
        if not can_be_id(request_id):
            return
        model = self.model
        with self.sessions.begin() as session:
            waits = (model.id == request_id, awaits(model, submission))
            session.execute(update(model).where(*waits).values(submitted_at=None))

    def state(self) -> QueueState:
        """How long the queue is."""
        model = self.model
        is_due = model.next_attempt_at <= database_now()
        is_queued = model.status == RequestStatus.QUEUED
        counts = select(
            func.count(case((and_(is_queued, is_due, model.submitted_at.is_(None)), 1))),
            func.count(case((and_(is_queued, model.submitted_at.is_not(None)), 1))),
            func.count(case((and_(is_queued, ~is_due, model.submitted_at.is_(None)), 1))),
            func.count(case((model.status == RequestStatus.RUNNING, 1))),
            func.min(case((and_(is_queued, is_due), model.next_attempt_at))),
        ).where(model.status.in_([RequestStatus.QUEUED, RequestStatus.RUNNING]))
        with self.sessions.begin() as session:
            due, submitted, later, running, oldest = session.execute(counts).one()
        return QueueState(due, submitted, later, running, oldest)

    def places(self) -> dict[int, int]:
        """The place in the queue, from 1, of each request that waits."""
        model = self.model
        waiting = (
            select(model.id)
            .where(model.status == RequestStatus.QUEUED)
            .order_by(model.next_attempt_at > database_now(), model.id)
        )
        with self.sessions.begin() as session:
            return {request_id: place for place, request_id in enumerate(session.scalars(waiting), start=1)}


def why_not_waiting(request: ClaimableRequest) -> str:
    """What became of a request that a run could not claim."""
    if request.status == RequestStatus.QUEUED:
        return "waits for another run, which was asked for since"
    what = f"running in run {request.run_id}" if request.status == RequestStatus.RUNNING else request.status
    return f"no longer waits: it is {what}"


def require_room(session: Session, model: Model, at_once: int) -> None:
    """Raise QueueIsFull if as many requests are running as may at once; nobody else can begin until this one has."""
    one_at_a_time(session, model.__tablename__)
    running = session.scalar(select(func.count(model.id)).where(model.status == RequestStatus.RUNNING)) or 0
    if running >= at_once:
        raise QueueIsFull(f"{running} are running, as many as may at once; the request waits for its turn")


def awaits(model: Model, submission: int | None) -> ColumnElement[bool]:
    """The condition that a request waits, and waits for this run; None stands for one that no sensor asked for.

    A run for which another one was asked since comes too late, even if it lives: Dagster was told that it is dead.
    """
    waits = model.status == RequestStatus.QUEUED
    if submission is None:
        return waits
    return and_(waits, model.submissions == submission, model.submitted_at.is_not(None))


def _busy(session: Session, model: Model, start_within: timedelta) -> int:
    """How many run, or are about to."""
    is_coming = and_(model.status == RequestStatus.QUEUED, model.submitted_at >= database_now(-start_within))
    is_busy = or_(model.status == RequestStatus.RUNNING, is_coming)
    return session.scalar(select(func.count(model.id)).where(is_busy)) or 0


def _next(session: Session, model: Model, room: int, start_within: timedelta) -> list[int]:
    """Ids of the next requests, oldest first."""
    is_free = or_(model.submitted_at.is_(None), model.submitted_at < database_now(-start_within))
    query = (
        select(model.id, model.study_id)
        .where(model.status == RequestStatus.QUEUED, model.next_attempt_at <= database_now(), is_free)
        .order_by(model.id)
    )
    if not model.locks_study:
        return [row.id for row in session.execute(query.limit(room))]
    query = query.join(Study, Study.id == model.study_id).where(
        Study.state.not_in(LOCK_STATES), ~_has_one_coming(model, start_within)
    )
    oldest: dict[int, int] = {}
    for row in session.execute(query.limit(2 * room)):  # a study has at most two that wait
        oldest.setdefault(row.study_id, row.id)
    return list(oldest.values())[:room]


def _has_one_coming(model: Model, start_within: timedelta) -> ColumnElement[bool]:
    """Whether another build of the same study is about to begin."""
    other = aliased(model)
    return (
        select(other.id)
        .where(
            other.study_id == model.study_id,
            other.id != model.id,
            other.status == RequestStatus.QUEUED,
            other.submitted_at >= database_now(-start_within),
        )
        .exists()
    )
