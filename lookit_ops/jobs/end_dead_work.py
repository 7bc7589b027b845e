"""The job `end_dead_work`: ends what dead workers have left open, in database, buckets and home, and tells Dagster.

Sensors ask the database alone and request this job: buckets and engines, which it needs, may hang.
`lookit-ops build reconcile` does the same by hand.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts and configs as they are.

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import dagster as dg
from pydantic import Field

from domain.queue import START_WITHIN, TOO_LONG, WORKER_DIED, Failure
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.jobs.build_zipfile_of_videos import build_zipfile_of_videos
from lookit_ops.platform import Platform
from lookit_ops.run_tags import KIND_TAG, REQUEST_TAG, SUBMISSION_TAG, number_in
from lookit_ops.runs.in_use import remove_dead_outputs
from lookit_ops.runs.interruption import Interruption, interruption_of
from lookit_ops.runs.reconcile import Reconciled, end_build_of_run, reconcile_builds
from lookit_ops.runs.reconcile_archives import ReconciledArchives, end_archive_of_run, reconcile_archives
from lookit_ops.runs.report import report_build

logger = logging.getLogger(__name__)

IN_DAGSTER = "an operator, in Dagster"
NOTHING = "no lease has run out"
DEAD = "the worker of this run stopped answering; its request has been ended, or is tried again by another run"
NOT_STARTED = "the run that was to work on this request ended before it began: its page in Dagster ({run_id}) says why"


class EndDeadWork(dg.Config):
    """What is to be ended; without a run, all whose lease has run out."""

    run_id: str = Field("", description="The run of Dagster that has ended, and whose request is still open.")
    cancelled_by: str = Field("", description="Who cancelled it; empty: its request is tried again.")
    too_long: bool = Field(False, description="Whether Dagster ended it because it took too long; else it died.")


@dg.op(
    name="end_work",
    description="Forward if it counts already, back otherwise; and mark dead runs as failed.",
    required_resource_keys={"platform"},
    out=dg.Out(dagster_type=dg.Nothing),
)
def end_dead_work_op(context: dg.OpExecutionContext, config: EndDeadWork) -> None:
    platform: Platform = context.resources.platform
    if config.run_id:
        run = context.instance.get_run_by_id(config.run_id)
        if run is None:
            context.log.info(f"run {config.run_id} is not known to Dagster any more")
        else:
            failure = TOO_LONG if config.too_long else WORKER_DIED
            context.log.info(end_requests_of(context.instance, platform, run, config.cancelled_by or None, failure))
        return
    done = end_dead_work(platform, context.instance)
    dead_runs = tell_dagster(context.instance, platform, done)
    told = [*done.told(), *([f"dead runs: {dead_runs}"] if dead_runs else [])]
    context.log.info("; ".join(told) or NOTHING)
    if done.failed:
        raise dg.Failure(
            f"requests {', '.join(map(str, done.failed))} cannot be ended now; the log says why. The sensor asks again",
            allow_retries=False,
        )


@dg.job(
    name="end_dead_work",
    description="End the work of workers that stopped answering. Sensors start it.",
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": 900, KIND_TAG: "reconcile"},
)
def end_dead_work_job() -> None:
    """One op: each claim is taken over by compare-and-set, so two runs at once end none twice."""
    end_dead_work_op()


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


def end_dead_work(platform: Platform, instance: dg.DagsterInstance | None) -> DeadWork:
    """End what dead workers left open in database, buckets and home; what cannot be ended never stops the rest.

    Without Dagster, what a person has cancelled there is tried again like the rest.
    """
    if instance is not None:
        note_cancellations(platform, instance)
    builds, archives = reconcile_builds(platform), reconcile_archives(platform, look_for_parts=False)
    return DeadWork(builds, archives, remove_dead_outputs(platform))


def note_cancellations(platform: Platform, instance: dg.DagsterInstance) -> None:
    """Remember which of the dead workers' runs a person has cancelled, so that their requests are not tried again.

    The sensor `cancelled_runs` reacts once: where the database was away just then, only the run's status tells.
    """
    ledgers: tuple[Any, ...] = (platform.ledger, platform.archive_ledger)
    for ledger in ledgers:
        for claim in ledger.running(expired_only=True):
            try:
                run_id = ledger.run_of(claim)
                record = instance.get_run_record_by_id(run_id) if run_id else None
                if record and interruption_of(record) is Interruption.OPERATOR:
                    ledger.note_wish(claim)
            except Exception:  # of one of them; without an answer it is tried again, as that of any dead worker
                logger.exception("whether the run of request %s was cancelled cannot be found out", claim.request_id)


def tell_dagster(instance: dg.DagsterInstance, platform: Platform, done: DeadWork) -> int:
    """Report the builds that were finished, and mark dead runs as failed; returns how many of them there were."""
    for request_id in done.builds.rolled_forward:
        report_build(instance, platform, request_id)
    return mark_failed(instance, {*done.builds.runs, *done.archives.runs, *idle_runs(instance, platform)})


def idle_runs(instance: dg.DagsterInstance, platform: Platform, after: timedelta = START_WITHIN) -> list[str]:
    """Runs that began some minutes ago and hold no request, nor have ended one lately: their processes are gone.

    Such a run died before its claim, or its request was ended by another process. Dagster would count
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


def mark_failed(instance: dg.DagsterInstance, run_ids: Iterable[str]) -> int:
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


def end_requests_of(
    instance: dg.DagsterInstance,
    platform: Platform,
    run: dg.DagsterRun,
    cancelled_by: str | None,
    failure: Failure = WORKER_DIED,
) -> str:
    """End what the run held or was to claim: cancelled, or failed so. Says what was done.

    Raises what the database and the bucket raise.
    """
    is_build = run.job_name == build_experiment.name
    end = end_build_of_run if is_build else end_archive_of_run
    ended = end(platform, run.run_id, cancelled_by, failure)
    if ended is not None:
        if is_build and platform.ledger.has_succeeded(ended):
            report_build(instance, platform, ended)
        return f"run {run.run_id}: request {ended} was ended for it"
    return end_submission_of(platform, run, cancelled_by)


def holds_a_request(platform: Platform, run: dg.DagsterRun) -> bool:
    """Whether the run claimed a request that is still open. One question to the database."""
    ledger = platform.ledger if run.job_name == build_experiment.name else platform.archive_ledger
    return ledger.held_by(run.run_id) is not None


def end_submission_of(platform: Platform, run: dg.DagsterRun, cancelled_by: str | None) -> str:
    """End what the run was to claim, by the database alone; says what was done."""
    ledger = platform.ledger if run.job_name == build_experiment.name else platform.archive_ledger
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
