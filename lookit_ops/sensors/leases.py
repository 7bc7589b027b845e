"""The sensor `leases`: ends the work of workers that stopped answering, and tells Dagster that their runs are dead.

It relies on the database and the bucket alone, so it sees what Dagster never notices: a machine that went away.
`lookit-ops build reconcile` does the same by hand.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import dagster as dg

from domain.queue import START_WITHIN
from lookit_ops.assets.experiments import report_build
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.jobs.build_zipfile_of_videos import build_zipfile_of_videos
from lookit_ops.platform import Platform
from lookit_ops.reconcile import Reconciled, reconcile_builds
from lookit_ops.reconcile_archives import ReconciledArchives, reconcile_archives
from lookit_ops.running import remove_dead_outputs

logger = logging.getLogger(__name__)

NOTHING = "no lease has run out"
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
    done = end_dead_work(platform)
    dead_runs = tell_dagster(context.instance, platform, done)
    told = [*done.told(), *([f"dead runs: {dead_runs}"] if dead_runs else [])]
    if not told:
        return dg.SkipReason(NOTHING)
    return dg.SkipReason(f"ended what dead workers had left open; {'; '.join(told)}")


@dataclass(frozen=True, slots=True)
class DeadWork:
    """What was ended for workers that stopped answering, and what could not be now."""

    builds: Reconciled
    archives: ReconciledArchives
    bundles_removed: int

    @property
    def failed(self) -> tuple[int, ...]:
        """The requests that are still open; the log says why."""
        return (*self.builds.failed, *self.archives.failed)

    def told(self) -> list[str]:
        """What was done, in words; empty if there was nothing to do."""
        ids = {
            "builds finished for their worker": self.builds.rolled_forward,
            "builds given up": self.builds.expired,
            "archives given up": (*self.archives.waiting, *self.archives.ended),
            "still open": self.failed,
        }
        counts = {
            "parts of archives removed": self.archives.parts_removed,
            "left-over bundles removed": self.bundles_removed,
        }
        told = [f"{what}: {', '.join(map(str, found))}" for what, found in ids.items() if found]
        return told + [f"{count} {what}" for what, count in counts.items() if count]


def end_dead_work(platform: Platform) -> DeadWork:
    """End what dead workers left open in database, buckets and home; what cannot be ended never stops the rest."""
    builds, archives = reconcile_builds(platform), reconcile_archives(platform, look_for_parts=False)
    return DeadWork(builds, archives, remove_dead_outputs(platform))


def tell_dagster(instance: dg.DagsterInstance, platform: Platform, done: DeadWork) -> int:
    """Report the builds that were finished, and mark dead runs as failed; returns how many of them there were."""
    for request_id in done.builds.rolled_forward:
        report_build(instance, platform, request_id)
    return _mark_failed(instance, {*done.builds.runs, *done.archives.runs, *idle_runs(instance, platform)})


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


def _mark_failed(instance: dg.DagsterInstance, run_ids: Iterable[str]) -> int:
    """Mark the runs as failed that Dagster still takes for running; returns how many."""
    marked = 0
    for run_id in run_ids:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            continue
        try:
            instance.report_run_failed(run, DEAD)
            marked += 1
        except Exception:  # of one of them; the next tick tries again
            logger.exception("Dagster cannot be told that run %s is dead", run_id)
    return marked
