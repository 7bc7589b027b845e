"""The job `end_dead_work`: ends what dead workers have left open, in database, buckets and home, and tells Dagster.

Sensors ask the database alone and request this job: buckets and engines, which it needs, may hang.
`lookit-ops build reconcile` does the same by hand.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts and configs as they are.

import dagster as dg
from pydantic import Field

from domain.requests.failure import TOO_LONG, WORKER_DIED
from lookit_ops.run_tags import KIND_TAG
from lookit_ops.runs.dead_runs import NOTHING, end_dead_work, end_requests_of, tell_dagster
from lookit_ops.services import Services


class EndDeadWork(dg.Config):
    """What is to be ended; without a run, all whose lease has run out."""

    run_id: str = Field("", description="The run of Dagster that has ended, and whose request is still open.")
    cancelled_by: str = Field("", description="Who cancelled it; empty: its request is tried again.")
    too_long: bool = Field(False, description="Whether Dagster ended it because it took too long; else it died.")


@dg.op(
    name="end_work",
    description="Forward if it counts already, back otherwise; and mark dead runs as failed.",
)
def end_dead_work_op(context: dg.OpExecutionContext, config: EndDeadWork, services: dg.ResourceParam[Services]) -> None:
    if config.run_id:
        run = context.instance.get_run_by_id(config.run_id)
        if run is None:
            context.log.info(f"run {config.run_id} is not known to Dagster any more")
        else:
            failure = TOO_LONG if config.too_long else WORKER_DIED
            context.log.info(end_requests_of(context.instance, services, run, config.cancelled_by or None, failure))
        return
    done = end_dead_work(services, context.instance)
    dead_runs = tell_dagster(context.instance, services, done)
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
