"""The job `prune_deployments`: at night, files that no kept deployment needs leave the bucket."""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts and configs as they are.

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from domain.errors import DomainError
from domain.escaping import markdown_code
from lookit_ops.assets.deployment_pruning import deployment_pruning, facts
from lookit_ops.deployments.manifest import KEPT
from lookit_ops.failures import as_dagster_failure, failure_of
from lookit_ops.jobs.listing import listing
from lookit_ops.maintenance.prune_deployments import prune_deployments as prune_of
from lookit_ops.services import Services
from lookit_ops.storage.errors import StorageError

PruneEvent = dg.AssetMaterialization | dg.AssetObservation


class PruneDeployments(dg.Config):
    """What goes; the defaults are those of the night."""

    older_than_hours: float = Field(
        24, description="Hours that a file stays after the last deployment that needed it was replaced; at least 1."
    )
    keep: int = Field(KEPT, description="How many builds of a study stay restorable, the live one among them.")
    dry_run: bool = Field(False, description="Remove nothing; the run's page shows what would be.")


@dg.op(
    description="Remove what no kept deployment names, but for the folders of running builds.",
)
def prune_bucket(
    context: dg.OpExecutionContext, config: PruneDeployments, services: dg.ResourceParam[Services]
) -> Iterator[PruneEvent]:
    try:
        done = prune_of(services, older_than_hours=config.older_than_hours, keep=config.keep, dry_run=config.dry_run)
    except (DomainError, StorageError) as error:
        raise as_dagster_failure(failure_of("prune", error)) from None
    for folder, reason in done.left_alone.items():
        context.log.info(f"{folder} was left alone: {reason}")
    if config.dry_run:
        would_go = {
            "would go": listing([f"{markdown_code(file.key)}, {file.size_bytes:,} bytes" for file in done.removed])
        }
        yield dg.AssetObservation(deployment_pruning.key, metadata={**facts(services, done), **would_go})
    else:
        yield dg.AssetMaterialization(deployment_pruning.key, metadata=facts(services, done))
    if done.failed:
        raise dg.Failure(done.trouble, allow_retries=False)


@dg.job(
    description="Remove from the bucket the files of built studies that no kept deployment needs.",
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": 4 * 3600},
)
def prune_deployments() -> None:
    """One step."""
    prune_bucket()
