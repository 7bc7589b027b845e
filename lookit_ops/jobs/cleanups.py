"""The jobs `cleanup_…`, one for each cleanup of `cleanup.py`: one op for all.

Each reports what it removed as a materialization of its asset, whose numbers Dagster plots over the nights.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts and configs as they are.

from datetime import timedelta

import dagster as dg
from pydantic import Field, create_model

from domain.errors import DomainError
from domain.escaping import markdown_code
from ember_build.errors import BuildError
from lookit_ops.assets.disk import cleanup_assets, facts
from lookit_ops.failures import as_dagster_failure, failure_of
from lookit_ops.jobs.listing import listing
from lookit_ops.maintenance.cleanup import CLEANUPS, Cleanup, hours
from lookit_ops.services import Services
from lookit_ops.storage.errors import StorageError


class CleanupConfig(dg.Config):
    """What goes; the defaults are those of the night."""

    dry_run: bool = Field(False, description="Remove nothing; the run's page shows what would be.")


def _config_of(cleanup: Cleanup) -> type[CleanupConfig]:
    older_than = cleanup.older_than and cleanup.older_than / timedelta(hours=1)
    as_set = "" if older_than else "; by default as LOOKIT_ARCHIVES_KEPT_DAYS says"
    described = Field(older_than, description=f"Hours since it was made or last wanted; at least 1{as_set}.")
    return create_model(
        f"Cleanup_{cleanup.name}",
        __base__=CleanupConfig,
        __doc__=CleanupConfig.__doc__,
        older_than_hours=(float if older_than else float | None, described),
    )


def _job(cleanup: Cleanup) -> dg.JobDefinition:
    config_type = _config_of(cleanup)

    @dg.op(
        name=f"clean_{cleanup.name}",
        description=cleanup.description,
        out=dg.Out(dagster_type=dg.Nothing),
    )
    def clean(context: dg.OpExecutionContext, config: config_type, services: dg.ResourceParam[Services]) -> None:  # ty: ignore[invalid-type-form]
        try:
            age = None if config.older_than_hours is None else hours(config.older_than_hours)
            done = cleanup.run(services, age, dry_run=config.dry_run)
        except (DomainError, BuildError, StorageError) as error:
            raise as_dagster_failure(failure_of(f"clean_{cleanup.name}", error)) from None
        listed = listing([markdown_code(name) for name in done.removed])
        if config.dry_run:
            context.add_output_metadata({"would go": listed, **facts(done)})
        else:
            asset = cleanup_assets[cleanup.name]
            context.log_event(dg.AssetMaterialization(asset.key, metadata={**facts(done), "went": listed}))
        if done.failed:
            name, trouble = next(iter(done.failed.items()))
            raise dg.Failure(
                f"{len(done.failed)} could not be removed, the first of them {name}: {trouble}; the next cleanup"
                " tries again",
                allow_retries=False,
            )

    @dg.job(
        name=f"cleanup_{cleanup.name}",
        description=cleanup.description,
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": 3600},
    )
    def job() -> None:
        clean()

    return job


cleanup_jobs = {cleanup.name: _job(cleanup) for cleanup in CLEANUPS}
"""By the name of the cleanup."""
