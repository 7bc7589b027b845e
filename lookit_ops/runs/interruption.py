"""Who has Dagster end a run before its work is done: a person, or Dagster itself because the run takes too long."""

from __future__ import annotations

import time
from enum import StrEnum

import dagster as dg

MAX_RUNTIME_TAG = "dagster/max_runtime"


class Interruption(StrEnum):
    """Why a run is or was being cancelled. A shutdown or a restart interrupts a run, too, and cancels none."""

    OPERATOR = "operator"
    TOO_LONG = "too long"


def interruption_of(record: dg.RunRecord) -> Interruption | None:
    """Why the run was cancelled, None if it was not. The status is the same for both, so the time decides."""
    run = record.dagster_run
    if run.status not in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED):
        return None
    if record.start_time is None:
        return Interruption.OPERATOR
    try:
        longest = float(run.tags.get(MAX_RUNTIME_TAG, "inf"))
    except ValueError:  # typed by a person; Dagster does not understand it either
        return Interruption.OPERATOR
    until = record.end_time or time.time()
    return Interruption.OPERATOR if until - record.start_time < longest else Interruption.TOO_LONG
