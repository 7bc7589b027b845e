"""End what dead workers left open, in database, buckets and home; and tell Dagster of runs that died.

The sensors call what asks the database and Dagster alone; the job `end_dead_work` and `lookit-ops build reconcile` call
the rest, since buckets and engines may hang.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import dagster as dg

from domain.requests.failure import WORKER_DIED, Failure
from domain.requests.queue import START_WITHIN
from lookit_ops.run_tags import ARCHIVE_JOB, BUILD_JOB, REQUEST_TAG, SUBMISSION_TAG, number_in
from lookit_ops.runs.in_use import remove_dead_outputs
from lookit_ops.runs.interruption import Interruption, interruption_of
from lookit_ops.runs.reconcile import (
    Reconciled,
    end_archive_of_run,
    end_build_of_run,
    reconcile_archives,
    reconcile_builds,
)
from lookit_ops.runs.report import report_build
from lookit_ops.services import Services

logger = logging.getLogger(__name__)

IN_DAGSTER = "an operator, in Dagster"
NOTHING = "no lease has run out"
DEAD = "the worker of this run stopped answering; its request has been ended, or is tried again by another run"
NOT_STARTED = "the run that was to work on this request ended before it began: its page in Dagster ({run_id}) says why"


@dataclass(frozen=True, slots=True)
class DeadWork:
    """What was ended for workers that stopped answering, and what could not be now."""

    builds: Reconciled
    archives: Reconciled
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
            "archives given up": self.archives.expired,
            "still open": self.failed,
        }
        counts = {
            "parts of archives removed": self.archives.parts_removed,
            "left-over bundles removed": self.bundles_removed,
        }
        told = [f"{what}: {', '.join(map(str, found))}" for what, found in ids.items() if found]
        return told + [f"{count} {what}" for what, count in counts.items() if count]


def end_dead_work(services: Services, instance: dg.DagsterInstance | None) -> DeadWork:
    """End what dead workers left open in database, buckets and home; what cannot be ended never stops the rest.

    Without Dagster, what a person has cancelled there is tried again like the rest.
    """
    if instance is not None:
        note_cancellations(services, instance)
    builds, archives = reconcile_builds(services), reconcile_archives(services, look_for_parts=False)
    return DeadWork(builds, archives, remove_dead_outputs(services))


def note_cancellations(services: Services, instance: dg.DagsterInstance) -> None:
    """Remember which of the dead workers' runs a person has cancelled, so that their requests are not tried again.

    The sensor `cancelled_runs` reacts once: where the database was away just then, only the run's status tells.
    """
    ledgers: tuple[Any, ...] = (services.ledger, services.archive_ledger)
    for ledger in ledgers:
        for claim in ledger.running(expired_only=True):
            try:
                run_id = ledger.run_of(claim)
                record = instance.get_run_record_by_id(run_id) if run_id else None
                if record and interruption_of(record) is Interruption.OPERATOR:
                    ledger.note_wish(claim)
            except Exception:  # of one of them; without an answer it is tried again, as that of any dead worker
                logger.exception("whether the run of request %s was cancelled cannot be found out", claim.request_id)


def tell_dagster(instance: dg.DagsterInstance, services: Services, done: DeadWork) -> int:
    """Report the builds that were finished, and mark dead runs as failed; returns how many of them there were."""
    for request_id in done.builds.rolled_forward:
        report_build(instance, services, request_id)
    return mark_failed(instance, {*done.builds.runs, *done.archives.runs, *idle_runs(instance, services)})


def idle_runs(instance: dg.DagsterInstance, services: Services, after: timedelta = START_WITHIN) -> list[str]:
    """Runs that began some minutes ago and hold no request, nor have ended one lately: their processes are gone.

    Such a run died before its claim, or its request was ended by another process. Dagster would count
    it among those that run until its longest time is over, and let no other of its study begin.
    """
    began_before = time.time() - after.total_seconds()
    idle: list[str] = []
    for job, ledger in ((BUILD_JOB, services.ledger), (ARCHIVE_JOB, services.archive_ledger)):
        started = dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.STARTED])
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
    services: Services,
    run: dg.DagsterRun,
    cancelled_by: str | None,
    failure: Failure = WORKER_DIED,
) -> str:
    """End what the run held or was to claim: cancelled, or failed so. Says what was done.

    Raises what the database and the bucket raise.
    """
    is_build = run.job_name == BUILD_JOB
    end = end_build_of_run if is_build else end_archive_of_run
    ended = end(services, run.run_id, cancelled_by, failure)
    if ended is not None:
        if is_build and services.ledger.has_succeeded(ended):
            report_build(instance, services, ended)
        return f"run {run.run_id}: request {ended} was ended for it"
    return end_submission_of(services, run, cancelled_by)


def holds_a_request(services: Services, run: dg.DagsterRun) -> bool:
    """Whether the run claimed a request that is still open. One question to the database."""
    ledger = services.ledger if run.job_name == BUILD_JOB else services.archive_ledger
    return ledger.held_by(run.run_id) is not None


def end_submission_of(services: Services, run: dg.DagsterRun, cancelled_by: str | None) -> str:
    """End what the run was to claim, by the database alone; says what was done."""
    ledger = services.ledger if run.job_name == BUILD_JOB else services.archive_ledger
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
