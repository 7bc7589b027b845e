"""The sensor `leases`: requests `end_dead_work` when workers have stopped answering, and marks idle runs as dead.

It asks the database and Dagster alone, so it ticks while buckets and engines hang, and sees what Dagster never notices:
a machine that went away.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

from datetime import timedelta

import dagster as dg

from lookit_ops.jobs.end_dead_work import end_dead_work_job
from lookit_ops.runs.dead_runs import NOTHING, idle_runs, mark_failed
from lookit_ops.runs.in_use import remove_dead_outputs
from lookit_ops.sensors.under_way import is_under_way
from lookit_ops.services import Services

TRUSTED_FOR = timedelta(minutes=10)
"""How long a run that has not ended is believed to be at work."""
ALL = {"lookit/ends": "all"}
"""The tag of the runs that end everything; others end the request of one run."""


@dg.sensor(
    name="leases",
    description="Runs end_dead_work when workers have stopped answering.",
    job=end_dead_work_job,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def leases(context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]) -> dg.RunRequest | dg.SkipReason:
    dead_runs = mark_failed(context.instance, idle_runs(context.instance, services))
    bundles = remove_dead_outputs(services)
    told = [f"{count} {what}" for what, count in (("dead runs", dead_runs), ("left-over bundles", bundles)) if count]
    expired = [*services.ledger.running(expired_only=True), *services.archive_ledger.running(expired_only=True)]
    if not expired:
        return dg.SkipReason("; ".join(told) or NOTHING)
    if is_under_way(context.instance, end_dead_work_job.name, TRUSTED_FOR, ALL):
        return dg.SkipReason(f"{len(expired)} leases have run out, and a run that ends their work is on its way")
    return dg.RunRequest(tags=ALL)
