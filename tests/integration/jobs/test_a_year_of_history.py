"""A year of Dagster's history on both storages, weeks at a time: what `prune_runs` leaves does not grow."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.instance.utils import RUNLESS_RUN_ID
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from sqlalchemy import Connection, Table, create_engine, func, insert, select, text

from lookit_ops.assets.watch import WATCHED, Seen
from lookit_ops.jobs.prune_runs import prune_runs
from lookit_ops.maintenance.dagster_history import forget
from lookit_ops.server.dagster_home import prepare_dagster_home
from lookit_ops.settings import Settings
from tests.support.databases import POSTGRESQL, SQLITE, create_database

KEPT = timedelta(days=30)
FULL_AT = 6
"""Weeks after which as much goes as comes."""
REPORTS_A_DAY = 48
"""Of each thing that is watched: once an hour, and as often on a change."""
RUNS_A_DAY = 6
LARGEST_MB = {SQLITE: 150, POSTGRESQL: 100}
"""What the operator's guide says of an installation with so many runs a day."""

DRY = {"ops": {"prune": {"config": {"dry_run": True}}}}
Row = dict[str, Any]


@dataclass
class History:
    """An instance whose history a test writes, at any time in the past."""

    instance: dg.DagsterInstance
    database_url: str

    @property
    def events(self) -> SqlEventLogStorage:
        storage = self.instance.event_log_storage
        assert isinstance(storage, SqlEventLogStorage)
        return storage

    @property
    def runs(self) -> SqlRunStorage:
        storage = self.instance.run_storage
        assert isinstance(storage, SqlRunStorage)
        return storage

    @property
    def root(self) -> Path:
        return Path(self.instance.root_directory)

    def megabytes(self) -> float:
        """What Dagster's home takes on the disk, and its database if it has one."""
        files = sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())
        return (files + (self._on_postgresql("SELECT pg_database_size(current_database())") or 0)) / 1e6

    def vacuum(self) -> None:
        """What PostgreSQL does by itself within a week, which is seconds here."""
        self._on_postgresql("VACUUM")

    def _on_postgresql(self, statement: str) -> int | None:
        if not self.database_url:
            return None
        engine = create_engine(self.database_url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            result = connection.execute(text(statement))
            answer = result.scalar_one() if result.returns_rows else None
        engine.dispose()
        return answer

    def count(self, table: Table) -> int:
        with self.events.index_connection() as connection:
            return connection.execute(select(func.count()).select_from(table)).scalar_one()


@pytest.fixture(params=[SQLITE, POSTGRESQL])
def history(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[History]:
    url = ""
    if request.param == POSTGRESQL:
        url = create_database(request.getfixturevalue("postgresql_server"), f"history_{uuid4().hex}")
    for name in ("DAGSTER_HOME", "DAGSTER_STORAGE_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    home = prepare_dagster_home(Settings(home=tmp_path, dagster_database_url=url, _env_file=None))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield History(instance, url)


def rows_of(connection: Connection, table: Table, run_id: str) -> list[Row]:
    query = select(table).where(table.c.run_id == run_id).order_by(table.c.id)
    return [{name: value for name, value in row._mapping.items() if name != "id"} for row in connection.execute(query)]


@dataclass
class Pattern:
    """The rows that one report of all that is watched leaves, and one run: the copies differ in time and run alone."""

    history: History
    run_id: str
    reports: list[Row]
    checks: list[Row]
    run: list[Row]
    tags: list[Row]
    run_events: list[Row]

    @classmethod
    def of(cls, history: History) -> Pattern:
        for watched in WATCHED:
            seen = Seen({f"number {place}": place for place in range(8)}, is_well=True, why="nothing is wrong here")
            history.instance.report_runless_asset_event(watched.observation(seen))
            history.instance.report_runless_asset_event(watched.evaluation(seen))
        run_id = prune_runs.execute_in_process(instance=history.instance, run_config=DRY).run_id
        with history.events.index_connection() as connection:
            reports = rows_of(connection, SqlEventLogStorageTable, RUNLESS_RUN_ID)
            checks = rows_of(connection, AssetCheckExecutionsTable, RUNLESS_RUN_ID)
            run_events = rows_of(connection, SqlEventLogStorageTable, run_id)
        with history.runs.connect() as connection:
            run, tags = rows_of(connection, RunsTable, run_id), rows_of(connection, RunTagsTable, run_id)
        assert len(reports) == 2 * len(checks) == 2 * len(WATCHED)
        return cls(history, run_id, reports, checks, run, tags, run_events)

    def write(self, begin: datetime, days: int) -> None:
        """Put so many days of history into the storages, as of `begin`."""
        moments = [begin + timedelta(days=1) * number / REPORTS_A_DAY for number in range(days * REPORTS_A_DAY)]
        reports = [{**row, "timestamp": moment} for moment in moments for row in self.reports]
        checks = [
            {**row, "evaluation_event_timestamp": moment, "create_timestamp": moment}
            for moment in moments
            for row in self.checks
        ]
        runs = {str(uuid4()): begin + timedelta(days=1) * number / RUNS_A_DAY for number in range(days * RUNS_A_DAY)}
        with self.history.events.index_connection() as connection:
            connection.execute(insert(SqlEventLogStorageTable), reports)
            connection.execute(insert(AssetCheckExecutionsTable), checks)
            events = [
                {**row, "run_id": run_id, "timestamp": moment, "event": row["event"].replace(self.run_id, run_id)}
                for run_id, moment in runs.items()
                for row in self.run_events
            ]
            connection.execute(insert(SqlEventLogStorageTable), events)
        with self.history.runs.connect() as connection:
            bodies = [
                {
                    **row,
                    "run_id": run_id,
                    "run_body": row["run_body"].replace(self.run_id, run_id),
                    "create_timestamp": moment,
                    "update_timestamp": moment,
                    "start_time": moment.replace(tzinfo=UTC).timestamp(),
                    "end_time": moment.replace(tzinfo=UTC).timestamp(),
                }
                for run_id, moment in runs.items()
                for row in self.run
            ]
            connection.execute(insert(RunsTable), bodies)
            connection.execute(
                insert(RunTagsTable), [{**row, "run_id": run_id} for run_id in runs for row in self.tags]
            )
        if not self.history.database_url:
            with self.history.events.run_connection(RUNLESS_RUN_ID) as connection:
                connection.execute(insert(SqlEventLogStorageTable), reports)
            folder = self.history.root / "history" / "runs"
            for run_id in runs:
                shutil.copy(folder / f"{self.run_id}.db", folder / f"{run_id}.db")
                stored = Path(self.history.instance.storage_directory()) / run_id
                stored.mkdir(parents=True)
                (stored / "result").write_bytes(b"x" * 1000)


@pytest.mark.parametrize("weeks", [8, pytest.param(52, marks=pytest.mark.soak)])
def test_what_is_kept_of_many_weeks_does_not_grow(history: History, weeks: int) -> None:
    pattern = Pattern.of(history)
    began = datetime.now(UTC).replace(tzinfo=None) - timedelta(weeks=weeks)
    sizes = []
    for week in range(weeks):
        at = began + timedelta(weeks=week)
        pattern.write(at, 7)
        gone = forget(history.instance, (at + timedelta(weeks=1)).replace(tzinfo=UTC) - KEPT)
        history.vacuum()
        if week >= FULL_AT:
            assert gone.runs >= 7 * RUNS_A_DAY - 1
            assert gone.events == 7 * REPORTS_A_DAY * 2 * len(WATCHED)
            assert gone.checks == 7 * REPORTS_A_DAY * len(WATCHED)
        if week in (FULL_AT, weeks - 1):
            sizes.append(history.megabytes())
    full, end = sizes
    print(f"after {FULL_AT} weeks {full:.1f} MB, after {weeks} weeks {end:.1f} MB")  # noqa: T201
    assert end < 1.1 * full, sizes
    assert end < LARGEST_MB[POSTGRESQL if history.database_url else SQLITE], sizes
    kept = KEPT / timedelta(days=1) * REPORTS_A_DAY
    assert history.count(AssetCheckExecutionsTable) <= (kept + REPORTS_A_DAY) * len(WATCHED)
    runs = history.instance.get_runs_count()
    assert runs <= (KEPT / timedelta(days=1) + 1) * RUNS_A_DAY + 1
    if not history.database_url:
        files = list((history.root / "history" / "runs").glob("*-*.db"))
        assert len(files) <= runs
        assert len(list(Path(history.instance.storage_directory()).iterdir())) <= runs


def test_the_newest_of_each_outlives_the_history(history: History) -> None:
    materialized = dg.AssetKey("experiment_deployment")
    for version in range(3):
        for partition in ("one", "two"):
            event = dg.AssetMaterialization(
                materialized, partition=partition, metadata={"version": version}, tags={DATA_VERSION_TAG: str(version)}
            )
            history.instance.report_runless_asset_event(event)
    (watched, *_) = WATCHED
    for is_well in (True, False):
        seen = Seen({"number": 1}, is_well=is_well, why="because")
        history.instance.report_runless_asset_event(watched.observation(seen))
        history.instance.report_runless_asset_event(watched.evaluation(seen))
    time.sleep(0.01)
    now = datetime.now(UTC)
    counted = forget(history.instance, now, dry_run=True)
    assert (counted.events, counted.checks) == (4 + 1 + 2, 1)
    assert forget(history.instance, now) == counted
    assert forget(history.instance, now).events == 0
    records = history.instance.fetch_materializations(materialized, limit=10).records
    kept = {record.partition_key: record.asset_materialization for record in records}
    assert len(records) == len(kept) == 2
    assert all(event and event.metadata["version"].value == 2 for event in kept.values())
    assert history.count(AssetEventTagsTable) == 2
    assert len(history.instance.fetch_observations(watched.spec.key, limit=10).records) == 1
    check = dg.AssetCheckKey(watched.spec.key, watched.check)
    (latest,) = history.events.get_asset_check_execution_history(check, limit=10)
    assert latest.event is not None
    assert not latest.event.get_dagster_event().asset_check_evaluation_data.passed


def test_what_is_young_stays(history: History) -> None:
    pattern = Pattern.of(history)
    pattern.write(datetime.now(UTC).replace(tzinfo=None) - timedelta(days=3), 1)
    gone = forget(history.instance, datetime.now(UTC) - timedelta(days=5))
    assert (gone.runs, gone.events, gone.checks) == (0, 0, 0)
