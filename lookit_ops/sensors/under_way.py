"""Whether a run of a job is on its way already: what sensors ask before they request another one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg

UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def is_under_way(
    instance: dg.DagsterInstance, job: str, trusted_for: timedelta, tags: dict[str, str] | None = None
) -> bool:
    """Whether a run of the job has not ended. One that is older than `trusted_for` may be dead, and does not count."""
    since = datetime.now(UTC) - trusted_for
    wanted = dg.RunsFilter(job_name=job, statuses=UNFINISHED, created_after=since, tags=tags)
    return bool(instance.get_runs(wanted, limit=1))
