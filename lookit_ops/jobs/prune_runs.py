"""The job `prune_runs`: forgets old runs of Dagster's own history, which slows down every look at it as it grows.

A run stays on which an asset stands: the newest success of each study, however old.

Studies keep their logs: what a run did for one is told there, not here. Old ticks are dropped by `dagster.yaml`.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts and configs as they are.

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from pydantic import Field

PAGE = 1000
FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


class PruneRuns(dg.Config):
    """How old a run must be."""

    older_than_days: float = Field(30, description="Runs that ended so many days ago or earlier are forgotten.")
    dry_run: bool = Field(False, description="Count them, and keep them.")


@dg.op(name="prune", description="Delete old runs with their events.", out=dg.Out(dagster_type=dg.Nothing))
def prune_op(context: dg.OpExecutionContext, config: PruneRuns) -> None:
    if not config.older_than_days > 0:
        raise dg.Failure(
            f"older_than_days is {config.older_than_days}: give a number of days above 0", allow_retries=False
        )
    before = datetime.now(UTC) - timedelta(days=config.older_than_days)
    old = dg.RunsFilter(statuses=FINISHED, updated_before=before)
    kept = _runs_that_assets_stand_on(context.instance)
    going = [run.run_id for run in context.instance.get_runs(old) if run.run_id not in kept]
    for run_id in going if not config.dry_run else []:
        context.instance.delete_run(run_id)
        _remove_files_of(context.instance, run_id)
    pruned = len(going)
    context.log.info(f"{pruned} runs that ended before {before:%Y-%m-%d %H:%M} UTC")
    context.add_output_metadata({"runs": pruned, "dry run": config.dry_run})


def _remove_files_of(instance: dg.DagsterInstance, run_id: str) -> None:
    """Remove what Dagster leaves of a run that it has deleted: the file of its events, and what its steps stored."""
    root = Path(instance.root_directory)
    for file in (root / "history" / "runs").glob(f"{run_id}.db*"):
        file.unlink(missing_ok=True)
    shutil.rmtree(Path(instance.storage_directory()) / run_id, ignore_errors=True)


def _runs_that_assets_stand_on(instance: dg.DagsterInstance) -> set[str]:
    """The runs of the newest materialization of each asset and partition: with a run, Dagster deletes its events."""
    kept: set[str] = set()
    for key in instance.all_asset_keys():
        seen: set[str | None] = set()
        cursor = None
        while True:
            page = instance.fetch_materializations(key, limit=PAGE, cursor=cursor)
            for record in page.records:  # newest first
                if record.partition_key not in seen:
                    seen.add(record.partition_key)
                    kept.add(record.run_id)
            cursor = page.cursor
            if not page.has_more:
                break
    return kept


@dg.job(
    description="Forget runs that ended long ago.",
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": 3600},
)
def prune_runs() -> None:
    """One op."""
    prune_op()
