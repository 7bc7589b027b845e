"""Why an attempt failed, and when the next one is due, if one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from domain.db import database_now, storable
from domain.models import RequestStatus
from domain.models.requests import ClaimableRequest

MOST_NAMED_WAITS = 24
LONGEST_NAMED_WAIT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often what fails by the platform's fault is tried in all, and how long it waits before the second attempt.

    The wait doubles with each attempt.
    """

    attempts: int = 3
    first_wait: timedelta = timedelta(minutes=1)

    def wait(self, attempt: int) -> timedelta:
        """How long to wait after this attempt, counted from 1, has failed."""
        return self.first_wait * 2 ** max(0, attempt - 1)

    def after(self, failure: Failure, failed_before: Sequence[Mapping[str, Any]]) -> timedelta | None:
        """How long to wait after an attempt failed; None if it was the last.

        A request waits until the time that a service named, and that attempt does not count; but no longer than a day,
        and so only MOST_NAMED_WAITS times. `failed_before` are the attempts that failed earlier, as `Failure.told`.
        """
        named = sum("retry_at" in earlier for earlier in failed_before)
        counted = 1 + sum(earlier["attempt"] is not None for earlier in failed_before) - min(named, MOST_NAMED_WAITS)
        if failure.retry_at is not None and named < MOST_NAMED_WAITS:
            return min(max(failure.retry_at - datetime.now(UTC), timedelta()), LONGEST_NAMED_WAIT)
        return self.wait(counted) if counted < self.attempts else None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the work on a request failed: the step, a stable code, and a message for people."""

    step: str
    code: str
    message: str
    retry_at: datetime | None = None
    """The time, in UTC, that a service named: until then another attempt is in vain."""

    def told(self, run_id: str | None, attempt: int | None = None) -> dict[str, Any]:
        """What a request remembers of an attempt that failed so; `attempt` is None for a run that claimed nothing."""
        told = {
            "attempt": attempt,
            "run_id": run_id,
            "step": self.step,
            "code": self.code,
            "error": storable(self.message),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return told | ({"retry_at": self.retry_at.isoformat(timespec="seconds")} if self.retry_at else {})


WORKER_DIED = Failure("worker", "worker_died", "the process that did the work stopped answering")
TOO_LONG = Failure(
    "worker", "run_too_long", "the run took longer than runs of its kind may, and was ended; its log says which step"
)


def last_error(request: ClaimableRequest) -> str | None:
    """Return why a request failed, or, while it is open, why its latest attempt did; None if none has."""
    if request.error is not None:
        return request.error
    is_open = request.status in (RequestStatus.QUEUED, RequestStatus.RUNNING)
    return str(request.failed_attempts[-1]["error"]) if is_open and request.failed_attempts else None


def waiting_again(code: str, wait: timedelta) -> dict[str, Any]:
    """What is written to a request that was claimed and is to be tried again, by a run that is yet to be asked for."""
    return {
        "status": RequestStatus.QUEUED,
        "run_id": None,
        "claimed_at": None,
        "lease_expires_at": None,
        "submitted_at": None,
        "next_attempt_at": database_now(wait),
        "error_code": code,
    }
