"""Many operating-system processes that claim the same request at the same moment, each with its own engine."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.synchronize import Barrier

from sqlalchemy import true

from domain.db import engine_for, sessions_for
from domain.errors import StudyIsLocked
from domain.requests import build_claim, lifecycle
from domain.requests.builds import BuildLedger

WON, LOST = "won", "found the study locked"


def race(
    url: str, request_ids: Sequence[int], processes: int, *, without_condition: bool = False
) -> list[Counter[str]]:
    """Let the processes claim each request in turn, released together by a barrier; the outcomes of each round.

    `without_condition` takes the condition out of the UPDATEs of a claim, to see whether a test would notice.
    """
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(processes), context.SimpleQueue()
    workers = [
        context.Process(target=_claim_all, args=(url, request_ids, barrier, answers, without_condition))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    outcomes: list[list[str]] = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    return [Counter(of_round) for of_round in zip(*outcomes, strict=True)]


def _claim_all(url: str, request_ids: Sequence[int], barrier: Barrier, answers, without_condition: bool) -> None:
    if without_condition:
        build_claim._claimable = lambda kind: true()
        lifecycle.awaits = lambda model, submission: true()
    book = BuildLedger(sessions_for(engine_for(url)))
    outcomes = []
    for request_id in request_ids:
        barrier.wait()
        try:
            book.claim(request_id, f"run of {multiprocessing.current_process().pid}", timedelta(minutes=10))
            outcomes.append(WON)
        except StudyIsLocked:
            outcomes.append(LOST)
        except Exception as error:  # every other outcome is a finding, and is counted by its name
            outcomes.append(type(error).__name__)
    answers.put(outcomes)
