"""The job `prune_runs`: forgets old parts of Dagster's own history, which slows down every look at it as it grows.

Studies keep their logs: what a run did for one is told there, not here. Old ticks are dropped by `dagster.yaml`.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts and configs as they are.

from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import Field

from lookit_ops.maintenance.dagster_history import forget


class PruneRuns(dg.Config):
    """How old a run must be."""

    older_than_days: float = Field(
        30, description="Runs that ended, and events that happened, so many days ago or earlier are forgotten."
    )
    dry_run: bool = Field(False, description="Count them, and keep them.")


@dg.op(name="prune", description="Delete old runs with their events, and old events.")
def prune_op(context: dg.OpExecutionContext, config: PruneRuns) -> None:
    if not config.older_than_days > 0:
        raise dg.Failure(
            f"older_than_days is {config.older_than_days}: give a number of days above 0", allow_retries=False
        )
    before = datetime.now(UTC) - timedelta(days=config.older_than_days)
    gone = forget(context.instance, before, dry_run=config.dry_run)
    context.log.info(
        f"{gone.runs} runs, {gone.events} events without a run and {gone.checks} executions of checks from before"
        f" {before:%Y-%m-%d %H:%M} UTC"
    )
    context.add_output_metadata(
        {"runs": gone.runs, "events": gone.events, "checks": gone.checks, "dry run": config.dry_run}
    )


@dg.job(
    description="Forget runs that ended long ago, and events that belong to none.",
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": 3600},
)
def prune_runs() -> None:
    """One op."""
    prune_op()
