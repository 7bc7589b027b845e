"""The sensors `build_requests` and `archive_requests`: requests that wait in the database become runs.

The database decides which (`domain/requests/queue.py`); the run key is a second line of defence, and never fires twice.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

import logging
from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg

from domain.requests.queue import QueueState, RequestQueue, Submission
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.jobs.build_zipfile_of_videos import build_zipfile_of_videos
from lookit_ops.run_tags import KIND_TAG, LOCK_TAG, REQUEST_TAG, STUDY_TAG, SUBMISSION_TAG, number_in
from lookit_ops.runs.dead_runs import IN_DAGSTER, end_submission_of
from lookit_ops.runs.interruption import Interruption, interruption_of
from lookit_ops.sensors.under_way import UNFINISHED
from lookit_ops.services import Services

logger = logging.getLogger(__name__)

A_TICK = 10
"""Runs that one tick asks for at most: Dagster needs about half a second for each."""
INTERVAL = 5
"""Seconds between two ticks."""

NOT_AWAITED = "the request of this run was cancelled, or replaced by a newer one, before the run began"
NEVER_BEGAN = "this run did not begin to work on its request within minutes; another one is asked for"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request, and where the settings and the platform keep what belongs to it."""

    name: str
    queue: Callable[[Services], RequestQueue]
    at_once: Callable[[Services], int]
    locks_its_study: bool


BUILDS = Kind(
    "build",
    lambda services: services.build_queue,
    lambda services: services.settings.builds_at_once,
    locks_its_study=True,
)
ARCHIVES = Kind(
    "archive",
    lambda services: services.archive_queue,
    lambda services: services.settings.archives_at_once,
    locks_its_study=False,
)


def _sensor(kind: Kind, job: dg.JobDefinition) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{kind.name}_requests",
        description=f"Runs {job.name} for {kind.name} requests that wait, oldest first.",
        job=job,
        minimum_interval_seconds=INTERVAL,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def tick(
        context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]
    ) -> dg.SensorResult | dg.SkipReason:
        queue, at_once = kind.queue(services), kind.at_once(services)
        _cancel_those_not_awaited(context.instance, kind, queue)
        _look_after_those_that_do_not_come(context.instance, services, kind, queue)
        submissions = queue.submit(limit=A_TICK, at_once=at_once)
        if not submissions:
            return dg.SkipReason(_why_nothing(kind, queue.state(), at_once))
        return dg.SensorResult(run_requests=[_run(kind, submission) for submission in submissions])

    return tick


build_requests = _sensor(BUILDS, build_experiment)
archive_requests = _sensor(ARCHIVES, build_zipfile_of_videos)


def _run(kind: Kind, submission: Submission) -> dg.RunRequest:
    lock = {LOCK_TAG: str(submission.study_uuid)} if kind.locks_its_study else {}
    return dg.RunRequest(
        run_key=f"{kind.name}-{submission.request_id}-{submission.number}",
        run_config={"ops": {"claim": {"config": {"request_id": submission.request_id}}}},
        tags={
            KIND_TAG: kind.name,
            STUDY_TAG: str(submission.study_uuid),
            REQUEST_TAG: str(submission.request_id),
            SUBMISSION_TAG: str(submission.number),
            **lock,
        },
    )


def _cancel_those_not_awaited(instance: dg.DagsterInstance, kind: Kind, queue: RequestQueue) -> None:
    """Take runs out of Dagster's queue whose request has ended: they would begin in their turn, and find it gone."""
    queued = instance.get_runs(dg.RunsFilter(tags={KIND_TAG: kind.name}, statuses=[dg.DagsterRunStatus.QUEUED]))
    runs = {request_id: run for run in queued if (request_id := number_in(run.tags, REQUEST_TAG)) is not None}
    for request_id in queue.ended(runs):
        try:
            instance.report_run_canceling(runs[request_id], NOT_AWAITED)
            instance.report_run_canceled(runs[request_id], NOT_AWAITED)
        except Exception:  # of one of them; the next tick tries again
            logger.exception("run %s cannot be taken out of Dagster's queue", runs[request_id].run_id)


def _look_after_those_that_do_not_come(
    instance: dg.DagsterInstance, services: Services, kind: Kind, queue: RequestQueue
) -> None:
    """A run may sit in Dagster's queue for long, and is not asked for twice. Any other is dead, whatever it is called.

    Between a run's start and its claim there is no lease that could run out, and Dagster does not always notice; such
    a run would hold a place among those that may run at once for as long as a run may take.
    """
    for request_id in queue.overdue():
        if _was_cancelled(instance, services, kind, request_id):
            continue
        tags = {KIND_TAG: kind.name, REQUEST_TAG: str(request_id)}
        runs = instance.get_runs(dg.RunsFilter(tags=tags, statuses=UNFINISHED))
        if any(run.status == dg.DagsterRunStatus.QUEUED for run in runs):
            queue.still_coming(request_id)
            continue
        if request_id not in queue.overdue():  # it has been claimed since
            continue
        for run in runs:
            try:
                instance.report_run_failed(run, NEVER_BEGAN)
            except Exception:  # of one of them: the others' requests must not wait for it
                logger.exception("Dagster cannot be told that run %s is dead", run.run_id)


def _was_cancelled(instance: dg.DagsterInstance, services: Services, kind: Kind, request_id: int) -> bool:
    """End the request if a person has cancelled the run that was to claim it, which the status sensor may have missed.

    That sensor reacts to each run once, and fails where the database is away.
    """
    cancelled = dg.RunsFilter(
        tags={KIND_TAG: kind.name, REQUEST_TAG: str(request_id)}, statuses=[dg.DagsterRunStatus.CANCELED]
    )
    for record in instance.get_run_records(cancelled, limit=1):  # the newest
        if interruption_of(record) is Interruption.OPERATOR:
            logger.info("%s", end_submission_of(services, record.dagster_run, IN_DAGSTER))
            return request_id not in kind.queue(services).overdue()
    return False


def _why_nothing(kind: Kind, state: QueueState, at_once: int) -> str:
    waiting = [f"{state.due} wait"] if state.due else []
    waiting += [f"{state.later} wait for a later attempt"] if state.later else []
    if not waiting and not state.submitted and not state.running:
        return f"no {kind.name} request waits"
    busy = f"{state.running} of at most {at_once} run" + (
        f", {state.submitted} are about to" if state.submitted else ""
    )
    locked = (
        "; the studies of those that wait are being built"
        if state.due and state.running + state.submitted < at_once
        else ""
    )
    return f"{', '.join(waiting) or f'no further {kind.name} request waits'}; {busy}{locked}"
