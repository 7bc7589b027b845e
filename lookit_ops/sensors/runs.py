"""The sensors `cancelled_runs` and `failed_runs`: what a run held, or was to claim, gets its end when the run has one.

Within seconds; should they miss it, the lease runs out, and the sensor `leases` sees that. A run may count as ended
while its process still works: its fencing token is stale then, and the bucket has been fenced.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

from typing import Any

import dagster as dg

from domain.queue import Failure
from lookit_ops.assets.experiments import report_build
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.jobs.build_zipfile_of_videos import build_zipfile_of_videos
from lookit_ops.platform import Platform
from lookit_ops.reconcile import end_build_of_run
from lookit_ops.reconcile_archives import end_archive_of_run
from lookit_ops.run_tags import REQUEST_TAG, SUBMISSION_TAG, number_in

JOBS = [build_experiment, build_zipfile_of_videos]
INTERVAL = 5
IN_DAGSTER = "an operator, in Dagster"
NOT_STARTED = "the run that was to work on this request ended before it began: its page in Dagster ({run_id}) says why"


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.CANCELED,
    name="cancelled_runs",
    description="Ends the requests of runs that were cancelled in Dagster.",
    monitored_jobs=JOBS,
    minimum_interval_seconds=INTERVAL,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def cancelled_runs(context: dg.RunStatusSensorContext, platform: dg.ResourceParam[Any]) -> None:
    context.log.info(end_requests_of(context.instance, platform, context.dagster_run, IN_DAGSTER))


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.FAILURE,
    name="failed_runs",
    description="Gives the requests of runs that died back to the queue, or ends them.",
    monitored_jobs=JOBS,
    minimum_interval_seconds=INTERVAL,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def failed_runs(context: dg.RunStatusSensorContext, platform: dg.ResourceParam[Any]) -> None:
    context.log.info(end_requests_of(context.instance, platform, context.dagster_run, None))


def end_requests_of(
    instance: dg.DagsterInstance, platform: Platform, run: dg.DagsterRun, cancelled_by: str | None
) -> str:
    """End what the run held or was to claim; says what was done. Raises what the database and the bucket raise."""
    is_build = run.job_name == build_experiment.name
    ledger = platform.ledger if is_build else platform.archive_ledger
    end = end_build_of_run if is_build else end_archive_of_run
    ended = end(platform, run.run_id, cancelled_by)
    if ended is not None:
        if is_build and platform.ledger.has_succeeded(ended):
            report_build(instance, platform, ended)
        return f"run {run.run_id}: request {ended} was ended for it"
    request_id, submission = number_in(run.tags, REQUEST_TAG), number_in(run.tags, SUBMISSION_TAG)
    if request_id is None or submission is None:
        return f"run {run.run_id} left nothing open"
    if cancelled_by is not None:
        if ledger.cancel_submitted(request_id, submission, cancelled_by):
            return f"run {run.run_id} was cancelled before it began, and with it request {request_id}"
    else:
        failure = Failure("start", "run_not_started", NOT_STARTED.format(run_id=run.run_id))
        if status := ledger.not_started(request_id, submission, failure, run.run_id):
            return f"run {run.run_id} ended before it began; request {request_id} is {status}"
    return f"run {run.run_id} left nothing open"
