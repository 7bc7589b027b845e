"""A busy day: many requests on a real Dagster, with crashes at random, and what must be true in the evening."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from domain.models import BuildKind, State
from tests.support.live import CODE, DAEMON, ENDED, Live

OUR_FAULTS = {
    "worker_died",
    "run_too_long",
    "interrupted",
    "storage_error",
    "platform_error",
    "run_not_started",
    "unexpected_error",
}


@dataclass(frozen=True, slots=True)
class BusyDay:
    """What became of the day."""

    requests: int
    succeeded: int
    attempts: int
    crashes: Counter[str]
    seconds: float
    waits: list[float]
    """Seconds from each request to the claim of its last attempt."""

    @property
    def per_hour(self) -> float:
        return self.requests / self.seconds * 3600

    def __str__(self) -> str:
        tenth = statistics.quantiles(self.waits, n=10)
        return (
            f"{self.requests} requests in {self.seconds:.0f} s ({self.per_hour:.0f} an hour), {self.succeeded} of them"
            f" succeeded, {self.attempts} attempts, crashes {dict(self.crashes)}; waited"
            f" {statistics.median(self.waits):.0f} s in the median, nine of ten less than {tenth[-1]:.0f} s"
        )


def live_through(
    living: Live, requests: int, studies: int, *, crash_every: float, seconds: float, seed: int = 1
) -> BusyDay:
    """Ask for so many builds of so many studies, never two that would replace each other, and crash meanwhile.

    Then wait until all have ended, at most `seconds` in all, and check what must be true.
    """
    chance = random.Random(seed)  # noqa: S311 - so that a bad day can be had again
    owned = [living.site.another_study(f"Busy {number}", State.APPROVED) for number in range(studies)]
    slots = [(study, kind) for study in owned for kind in BuildKind]
    chance.shuffle(slots)
    crashes: Counter[str] = Counter()
    asked: dict[int, tuple[int, BuildKind]] = {}
    began, crashed_at = time.monotonic(), time.monotonic()
    while True:
        open_slots = {slot for request_id, slot in asked.items() if living.status(request_id) not in ENDED}
        for slot in slots:
            if len(asked) < requests and slot not in open_slots:
                asked[living.request(*slot)] = slot
                open_slots.add(slot)
        if len(asked) == requests and not open_slots:
            break
        assert time.monotonic() - began < seconds, _still_open(living, asked)
        if time.monotonic() - crashed_at > crash_every:
            what, crash = chance.choice(_crashes(living))
            crash()
            crashes[what] += 1
            crashed_at = time.monotonic()
        time.sleep(1)
    took = time.monotonic() - began
    return _checked(living, asked, crashes, took)


def _crashes(living: Live) -> list[tuple[str, Callable[[], None]]]:
    def kill_a_run() -> None:
        for pid in living.run_processes()[:1]:
            os.kill(pid, signal.SIGKILL)

    def again(name: str) -> Callable[[], None]:
        def crash() -> None:
            living.kill(name)
            living.start(name)

        return crash

    return [("a run", kill_a_run)] * 3 + [("the code location", again(CODE)), ("the daemon", again(DAEMON))]


def _still_open(living: Live, asked: dict[int, tuple[int, BuildKind]]) -> str:
    open_ones = [request_id for request_id in asked if living.status(request_id) not in ENDED]
    return f"{len(open_ones)} of {len(asked)} are still open; the first: {living.told(open_ones[0])}"


def _checked(living: Live, asked: dict[int, tuple[int, BuildKind]], crashes: Counter[str], seconds: float) -> BusyDay:
    """Nothing lost, nothing twice."""
    rows = [living.site.request(request_id) for request_id in asked]
    assert {row.status for row in rows} <= {"succeeded", "failed"}
    assert {row.error_code for row in rows if row.status == "failed"} <= OUR_FAULTS
    mails = Counter((mail.event, mail.recipient_id) for mail in living.site.mails())
    assert set(mails.values()) == {1}
    for row in rows:
        logs = [log for log in living.site.logs(row.study_id) if log.build_request_id == row.id]
        assert [log.extra["outcome"] for log in logs] == [row.status], row
        assert len([event for event, _ in mails if event.startswith(f"build_request:{row.id}:")]) == 2
    for study_id in {study for study, _ in asked.values()}:
        study = living.site.study(study_id)
        assert study.state_before_build is None
        is_deployed = any(
            row.status == "succeeded" and row.kind == BuildKind.DEPLOYMENT for row in rows if row.study_id == study_id
        )
        assert (living.page(study_id) is not None and b"player-" in (living.page(study_id) or b"")) == is_deployed
    living.wait(lambda: living.leftovers() == [], 60, lambda: f"left: {living.leftovers()}")
    waits = [(row.claimed_at - row.requested_at).total_seconds() for row in rows if row.claimed_at]
    return BusyDay(
        requests=len(rows),
        succeeded=sum(row.status == "succeeded" for row in rows),
        attempts=sum(row.attempt for row in rows),
        crashes=crashes,
        seconds=seconds,
        waits=waits,
    )
