"""What became of the requests of late: how many went well, how many failed by which cause, how many workers died."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select

from domain.db import Sessions, database_now
from domain.models import RequestStatus
from domain.requests.failure import WORKER_DIED
from domain.requests.queue import Model


@dataclass(frozen=True, slots=True)
class Outcomes:
    """In numbers of requests, `failed` by `error_code`; `tried_again` and `workers_died` count attempts that failed."""

    succeeded: int
    cancelled: int
    failed: Mapping[str, int]
    tried_again: int
    workers_died: int

    @property
    def ended(self) -> int:
        """All that ended and was not cancelled."""
        return self.succeeded + sum(self.failed.values())

    def share_failed_by(self, codes: frozenset[str]) -> float:
        """The share of those that failed by one of these causes, from 0 to 1."""
        return sum(self.failed.get(code, 0) for code in codes) / self.ended if self.ended else 0.0


def outcomes(sessions: Sessions, model: Model, within: timedelta) -> Outcomes:
    """The requests of a kind that ended, or failed to, so long ago or less. Those refused before their claim do not
    count.
    """
    since = database_now(-within)
    ended = (
        select(model.status, model.error_code, func.count(model.id))
        .where(
            model.finished_at >= since,
            model.claimed_at.is_not(None) | (model.error_code == "run_not_started"),
        )
        .group_by(model.status, model.error_code)
    )
    # Few: only requests of which an attempt failed, and of those the latest.
    tried = select(model.failed_attempts).where(
        model.attempt > 0,
        func.coalesce(model.finished_at, model.next_attempt_at) >= since,
        model.error_code.is_not(None) | (model.attempt > 1),
    )
    with sessions.begin() as session:
        counts = session.execute(ended).all()
        attempts = [failed for row in session.scalars(tried) for failed in row]
    failed: Counter[str] = Counter()
    for status, code, count in counts:
        if status == RequestStatus.FAILED:
            failed[code or "unknown"] += count
    of = Counter(dict.fromkeys(RequestStatus, 0))
    for status, _code, count in counts:
        of[RequestStatus(status)] += count
    return Outcomes(
        succeeded=of[RequestStatus.SUCCEEDED],
        cancelled=of[RequestStatus.CANCELLED],
        failed=dict(failed),
        tried_again=len(attempts),
        workers_died=sum(attempt["code"] == WORKER_DIED.code for attempt in attempts),
    )
