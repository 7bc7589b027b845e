"""The schedules: what happens at night, in the time zone of the settings. On by default."""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

from typing import Any

import dagster as dg

from lookit_ops.assets.video_catalogue import refresh_video_catalogue
from lookit_ops.jobs.cleanups import cleanup_jobs
from lookit_ops.jobs.measure_disk_usage import measure_disk_usage
from lookit_ops.jobs.prune_deployments import prune_deployments
from lookit_ops.jobs.prune_runs import prune_runs
from lookit_ops.settings import load_settings

CLEANUPS_AT = {
    "builds": "02:00",
    "docker_images": "03:00",
    "checkouts": "04:00",
    "dependencies": "04:30",
    "archives": "04:45",
}
"""When each cleanup runs."""


def nightly(job: Any, at: str) -> dg.ScheduleDefinition:
    """Run the job (of ops or of assets) every day at a time such as `02:00`, whenever the daemon runs then."""
    hour, minute = at.split(":")
    return dg.ScheduleDefinition(
        name=f"{job.name}_nightly",
        job=job,
        cron_schedule=f"{int(minute)} {int(hour)} * * *",
        execution_timezone=load_settings().time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


def hourly(job: Any, minute: int) -> dg.ScheduleDefinition:
    """Run the job every hour at a minute."""
    return dg.ScheduleDefinition(
        name=f"{job.name}_hourly",
        job=job,
        cron_schedule=f"{minute} * * * *",
        execution_timezone=load_settings().time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


def schedules() -> list[dg.ScheduleDefinition]:
    """All of them, in the order of the night."""
    return [
        nightly(refresh_video_catalogue, "01:00"),
        *(nightly(cleanup_jobs[name], at) for name, at in CLEANUPS_AT.items()),
        hourly(measure_disk_usage, 40),
        nightly(prune_deployments, "05:00"),
        nightly(prune_runs, "06:00"),
    ]
