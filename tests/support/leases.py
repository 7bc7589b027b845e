"""The end of a lease: what the reconciler does for a dead worker, and for one that still lives."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from domain.models import RequestStatus
from domain.requests.build_claim import BuildClaim
from domain.requests.builds import BuildLedger
from domain.requests.failure import WORKER_DIED


def give_up(end_leases: Callable[[], None], reconcile: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """End the leases until the reconciler has given something up; returns what.

    A heartbeat of the holder may prolong its lease just before the reconciler looks.
    """
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        end_leases()
        if given_up := reconcile():
            return given_up
        time.sleep(0.05)
    raise AssertionError("the reconciler gave nothing up within 20 s")


def end_for_dead_worker(ledger: BuildLedger, claim: BuildClaim) -> RequestStatus:
    """End a build whose lease has run out, as the reconciler does when nothing of it is live. Raises LeaseLost."""
    held = ledger.take_over(claim, timedelta(minutes=5), expired_only=True)
    return ledger.retry(held, WORKER_DIED, {})
