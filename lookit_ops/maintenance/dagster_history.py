"""Forgets what Dagster keeps of long ago: runs with their files, events without a run, executions of checks.

Dagster deletes runs when it is asked, and old ticks as `dagster.yaml` says. It deletes neither the files of a run, nor
events that belong to no run, nor executions of asset checks; this module does, in Dagster's own tables.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
from dagster._core.instance.utils import RUNLESS_RUN_ID
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from sqlalchemy import delete, func, or_, select

FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_PAGE = 1000

_events, _checks = SqlEventLogStorageTable.c, AssetCheckExecutionsTable.c


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How much went, or with a dry run would have gone."""

    runs: int
    events: int
    """Events that belong to no run."""
    checks: int
    """Executions of asset checks, in a run or without."""


def forget(instance: dg.DagsterInstance, before: datetime, *, dry_run: bool = False) -> Forgotten:
    """Forget what happened before a time.

    What stays, however old: a run on which an asset stands, which is the newest materialization of a partition; the
    newest event of each kind, asset and partition; the newest execution of each check.
    """
    old = dg.RunsFilter(statuses=FINISHED, updated_before=before)
    kept = _runs_that_assets_stand_on(instance)
    runs = [run.run_id for run in instance.get_runs(old) if run.run_id not in kept]
    for run_id in runs if not dry_run else []:
        instance.delete_run(run_id)
        _remove_files_of(instance, run_id)
    events, checks = _forget_outside_of_runs(instance, before, dry_run=dry_run)
    return Forgotten(len(runs), events, checks)


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
            page = instance.fetch_materializations(key, limit=_PAGE, cursor=cursor)
            for record in page.records:  # newest first
                if record.partition_key not in seen:
                    seen.add(record.partition_key)
                    kept.add(record.run_id)
            cursor = page.cursor
            if not page.has_more:
                break
    return kept


def _forget_outside_of_runs(instance: dg.DagsterInstance, before: datetime, *, dry_run: bool) -> tuple[int, int]:
    """Forget events and executions of checks; returns how many."""
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return 0, 0
    at = before.astimezone(UTC).replace(tzinfo=None)  # as Dagster stores times
    runless = (_events.run_id == RUNLESS_RUN_ID) & (_events.timestamp < at)
    newest = select(func.max(_events.id)).group_by(_events.asset_key, _events.dagster_event_type, _events.partition)
    old_events = runless & or_(_events.asset_key.is_(None), _events.id.not_in(newest))
    happened = func.coalesce(_checks.evaluation_event_timestamp, _checks.create_timestamp)
    newest = select(func.max(_checks.id)).group_by(_checks.asset_key, _checks.check_name, _checks.partition)
    old_checks = (happened < at) & _checks.id.not_in(newest)
    with storage.index_transaction() as connection:
        events = connection.execute(select(func.count()).where(old_events)).scalar_one()
        checks = connection.execute(select(func.count()).where(old_checks)).scalar_one()
        if dry_run:
            return events, checks
        ids = select(_events.id).where(old_events)
        connection.execute(delete(AssetEventTagsTable).where(AssetEventTagsTable.c.event_id.in_(ids)))
        connection.execute(delete(SqlEventLogStorageTable).where(old_events))
        connection.execute(delete(AssetCheckExecutionsTable).where(old_checks))
    if isinstance(storage, SqliteEventLogStorage):  # each run has a file there, and so have events without one
        with storage.run_connection(RUNLESS_RUN_ID) as connection:
            connection.execute(delete(SqlEventLogStorageTable).where(runless))
    return events, checks
