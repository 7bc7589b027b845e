"""The sensors `cancelled_runs` and `failed_runs`: what a run held, or was to claim, gets its end when the run has one.

What the run was to claim is ended by the database alone. What it held is ended by a run of `end_dead_work`, which asks
the bucket. Should both fail, the lease runs out, and the sensor `leases` sees that. A run may count as ended while its
process still works: the claim is taken over then, and the bucket fenced.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

import dagster as dg

from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.jobs.build_zipfile_of_videos import build_zipfile_of_videos
from lookit_ops.jobs.end_dead_work import end_dead_work_job
from lookit_ops.runs.dead_runs import IN_DAGSTER, end_submission_of, holds_a_request
from lookit_ops.runs.interruption import Interruption, interruption_of
from lookit_ops.services import Services

JOBS = [build_experiment, build_zipfile_of_videos]
INTERVAL = 5


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.CANCELED,
    name="cancelled_runs",
    description="Ends the requests of runs that were cancelled in Dagster.",
    monitored_jobs=JOBS,
    request_job=end_dead_work_job,
    minimum_interval_seconds=INTERVAL,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def cancelled_runs(
    context: dg.RunStatusSensorContext, services: dg.ResourceParam[Services]
) -> dg.RunRequest | dg.SkipReason:
    record = context.instance.get_run_record_by_id(context.dagster_run.run_id)
    interruption = interruption_of(record) if record else Interruption.OPERATOR
    return end_of(services, context.dagster_run, interruption)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.FAILURE,
    name="failed_runs",
    description="Gives the requests of runs that died back to the queue, or ends them.",
    monitored_jobs=JOBS,
    request_job=end_dead_work_job,
    minimum_interval_seconds=INTERVAL,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def failed_runs(
    context: dg.RunStatusSensorContext, services: dg.ResourceParam[Services]
) -> dg.RunRequest | dg.SkipReason:
    return end_of(services, context.dagster_run, None)


def end_of(services: Services, run: dg.DagsterRun, interruption: Interruption | None) -> dg.RunRequest | dg.SkipReason:
    """Request a run that ends what the run held; what it was to claim is ended here."""
    by = None if interruption in (None, Interruption.TOO_LONG) else IN_DAGSTER
    if not holds_a_request(services, run):
        return dg.SkipReason(end_submission_of(services, run, by))
    config = {"run_id": run.run_id, "cancelled_by": by or "", "too_long": interruption is Interruption.TOO_LONG}
    return dg.RunRequest(run_key=f"end-{run.run_id}", run_config={"ops": {"end_work": {"config": config}}})
