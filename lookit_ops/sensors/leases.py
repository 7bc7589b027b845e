"""The sensor `leases`: ends the work of workers that stopped answering, and tells Dagster that their runs are dead.

It asks nobody but the database and the bucket, so it also sees what Dagster never notices: a machine that went away.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

from collections.abc import Iterable

import dagster as dg

from lookit_ops.assets.experiments import report_build
from lookit_ops.platform import Platform
from lookit_ops.reconcile import reconcile_builds
from lookit_ops.reconcile_archives import reconcile_archives

DEAD = "the worker of this run stopped answering and its lease ran out; its request has been ended or tried again"


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
    tell_dagster(context.instance, [*builds.runs, *archives.runs])
    if not builds and not archives:
        return dg.SkipReason("no lease has run out")
    told = {
        "builds finished for their worker": builds.rolled_forward,
        "builds given up": builds.expired,
        "archives given up": (*archives.waiting, *archives.ended),
        "still open": (*builds.failed, *archives.failed),
    }
    parts = [f"{what}: {', '.join(map(str, ids))}" for what, ids in told.items() if ids]
    parts += [f"{archives.parts_removed} parts of archives removed"] if archives.parts_removed else []
    return dg.SkipReason(f"ended what dead workers had left open; {'; '.join(parts)}")


def tell_dagster(instance: dg.DagsterInstance, run_ids: Iterable[str]) -> None:
    """Mark the runs as failed that Dagster still takes for running."""
    for run_id in run_ids:
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            instance.report_run_failed(run, DEAD)
