"""The sensor `leases`: ends the work of workers that stopped answering, and tells Dagster that their runs are dead.

It relies on the database and the bucket alone, so it sees what Dagster never notices: a machine that went away.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

import logging
import time
from collections.abc import Iterable
from datetime import timedelta

import dagster as dg

from domain.queue import START_WITHIN
from lookit_ops.assets.experiments import report_build
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.jobs.build_zipfile_of_videos import build_zipfile_of_videos
from lookit_ops.platform import Platform
from lookit_ops.reconcile import reconcile_builds
from lookit_ops.reconcile_archives import reconcile_archives
from lookit_ops.running import remove_dead_outputs

logger = logging.getLogger(__name__)

DEAD = "the worker of this run stopped answering; its request has been ended, or is tried again by another run"


@dg.sensor(
    name="leases",
    description="Ends the work of workers that stopped answering: forward if it counts already, back otherwise.",
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"platform"},
)
def leases(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    platform: Platform = context.resources.platform
    builds, archives = reconcile_builds(platform), reconcile_archives(platform, look_for_parts=False)
    for request_id in builds.rolled_forward:
        report_build(context.instance, platform, request_id)
    remove_dead_outputs(platform)
    dead = {*builds.runs, *archives.runs, *idle_runs(context.instance, platform)}
    tell_dagster(context.instance, dead)
    if not builds and not archives and not dead:
        return dg.SkipReason("no lease has run out")
    told = {
        "builds finished for their worker": builds.rolled_forward,
        "builds given up": builds.expired,
        "archives given up": (*archives.waiting, *archives.ended),
        "still open": (*builds.failed, *archives.failed),
    }
    parts = [f"{what}: {', '.join(map(str, ids))}" for what, ids in told.items() if ids]
    parts += [f"dead runs: {len(dead)}"] if dead else []
    parts += [f"{archives.parts_removed} parts of archives removed"] if archives.parts_removed else []
    return dg.SkipReason(f"ended what dead workers had left open; {'; '.join(parts)}")


def idle_runs(instance: dg.DagsterInstance, platform: Platform, after: timedelta = START_WITHIN) -> list[str]:
    """Runs that began some minutes ago and hold no request, nor have ended one lately: their processes are gone.

    Such a run died before its claim, or its request was ended by somebody else than this sensor. Dagster would count
    it among those that run until its longest time is over, and let no other of its study begin.
    """
    began_before = time.time() - after.total_seconds()
    idle: list[str] = []
    for job, ledger in ((build_experiment, platform.ledger), (build_zipfile_of_videos, platform.archive_ledger)):
        started = dg.RunsFilter(job_name=job.name, statuses=[dg.DagsterRunStatus.STARTED])
        for record in instance.get_run_records(started):
            began = record.start_time or record.create_timestamp.timestamp()
            run_id = record.dagster_run.run_id
            if began < began_before and not ledger.works_for(run_id, after):
                idle.append(run_id)
    return idle


def tell_dagster(instance: dg.DagsterInstance, run_ids: Iterable[str]) -> None:
    """Mark the runs as failed that Dagster still takes for running."""
    for run_id in run_ids:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            continue
        try:
            instance.report_run_failed(run, DEAD)
        except Exception:  # of one of them; the next tick tries again
            logger.exception("Dagster cannot be told that run %s is dead", run_id)
