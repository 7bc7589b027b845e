"""The end of a lease whose holder still lives: its heartbeat may prolong it just before the reconciler looks."""

from __future__ import annotations

import time
from collections.abc import Callable


def give_up(end_leases: Callable[[], None], reconcile: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """End the leases until the reconciler has given something up; returns what."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        end_leases()
        if given_up := reconcile():
            return given_up
        time.sleep(0.05)
    raise AssertionError("the reconciler gave nothing up within 20 s")
