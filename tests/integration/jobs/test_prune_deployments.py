"""The job `prune_deployments` on a real platform: what it removes, what it leaves alone, and what Dagster is told."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from typing import Any

import dagster as dg
import pytest

from domain.errors import InvalidRequest
from lookit_ops.deployments.rollback import restorable
from lookit_ops.jobs.prune_deployments import prune_deployments as job
from lookit_ops.maintenance.prune_deployments import prune_deployments
from lookit_ops.schedules import schedules
from lookit_ops.storage.experiments import ExperimentBucket
from tests.support.faulty_bucket import FaultyBucket, backdated
from tests.support.workshop import GOOD_BUILD, Workshop, WorkshopServices

DAY = timedelta(days=1)


class LaterServices(WorkshopServices):
    """The same platform, where everything that the listing tells of is two days old."""

    def _open_bucket(self) -> ExperimentBucket:
        return backdated(super()._open_bucket(), 2 * DAY)


@pytest.fixture
def later(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> LaterServices:
    """Seven deployments, then two days go by."""
    for number in range(7):
        workshop.build_by(GOOD_BUILD.replace("var version", f"var version_{number}"))
        assert workshop.build().success
    there = workshop.services
    services = LaterServices(there.settings, there.engine, there.script, there.tools)
    monkeypatch.setattr("lookit_ops.maintenance.prune_deployments.datetime", Later)
    return services


class Later:
    """A clock that goes two days ahead; only the pruning reads it."""

    @staticmethod
    def now(zone: tzinfo) -> datetime:
        return datetime.now(zone) + 2 * DAY


def run(services: WorkshopServices, instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    return job.execute_in_process(
        run_config={
            "ops": {"prune_bucket": {"config": config}},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        resources={"services": dg.ResourceDefinition.hardcoded_resource(services)},
        instance=instance,
        raise_on_error=False,
    )


def numbers(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = [event for event in result.all_events if event.is_step_materialization]
    materialization = event.step_materialization_data.materialization
    assert materialization.asset_key.path == ["deployment_pruning"]
    return {name: value.value for name, value in materialization.metadata.items()}


def scripts(workshop: Workshop) -> int:
    return len(list(workshop.folder().glob("assets/*.js")))


def test_it_keeps_five_builds_and_reports_numbers_that_dagster_plots(workshop: Workshop, later: LaterServices) -> None:
    live = workshop.live()
    assert scripts(workshop) == 7
    told = numbers(run(later, workshop.instance))
    assert scripts(workshop) == 5
    assert workshop.live() == live
    assert told["files removed"] >= 2
    assert told["bytes freed"] > 0
    assert (told["folders left alone"], told["failures"]) == (0, 0)
    folder = workshop.folder().relative_to(later.settings.local_bucket).as_posix()
    assert len(restorable(workshop.services.bucket, folder)) == 4
    assert numbers(run(later, workshop.instance))["files removed"] == 0


def test_its_config_says_how_many_builds_stay(workshop: Workshop, later: LaterServices) -> None:
    run(later, workshop.instance, keep=2)
    assert scripts(workshop) == 2


def test_a_dry_run_removes_nothing_and_names_what_would_go(workshop: Workshop, later: LaterServices) -> None:
    result = run(later, workshop.instance, dry_run=True)
    assert scripts(workshop) == 7
    assert not [event for event in result.all_events if event.is_step_materialization]
    (event,) = [event for event in result.all_events if event.is_asset_observation]
    assert "assets/player-" in event.asset_observation_data.asset_observation.metadata["would go"].value


def test_the_folder_of_a_running_build_is_left_alone_even_if_its_worker_is_dead(
    workshop: Workshop, later: LaterServices
) -> None:
    workshop.ledger.claim(workshop.request(), "a run", DAY)
    workshop.site.end_leases()
    told = numbers(run(later, workshop.instance))
    assert scripts(workshop) == 7
    assert (told["files removed"], told["folders left alone"]) == (0, 1)


def test_nothing_is_too_young_to_be_needed(workshop: Workshop) -> None:
    for _ in range(7):
        workshop.build_by(GOOD_BUILD.replace("var version", f"var version_{_}"))
        assert workshop.build().success
    assert prune_deployments(workshop.services, older_than_hours=1, keep=1).removed == ()


def test_what_cannot_be_removed_fails_the_run_and_stops_nothing_else(workshop: Workshop, later: LaterServices) -> None:
    bucket = later.bucket
    assert isinstance(bucket, FaultyBucket)
    bucket.refuse("delete", "manifest.json")
    result = run(later, workshop.instance)
    assert not result.success
    assert scripts(workshop) == 5
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert "manifest.json" in str(failed.step_failure_data.user_failure_data.description)
    assert numbers(result)["failures"] >= 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"keep": 0}, "keep is 0"),
        ({"older_than_hours": 0.5}, "older_than_hours is 0.5"),
        ({"older_than_hours": 1e300}, "at most ten years"),
        ({"older_than_hours": -1e300}, "1 hour or more"),
        ({"older_than_hours": float("nan")}, "older_than_hours is nan"),
    ],
)
def test_a_wrong_config_is_refused_with_what_to_give(workshop: Workshop, config: dict[str, Any], said: str) -> None:
    result = run(workshop.services, workshop.instance, **config)
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    failure = failed.step_failure_data.user_failure_data
    assert failure is not None, failed.step_failure_data.error
    assert said in str(failure.description)


@pytest.mark.parametrize("hours", [0.99, float("inf")])
def test_the_command_is_bound_by_the_same(workshop: Workshop, hours: float) -> None:
    with pytest.raises(InvalidRequest):
        prune_deployments(workshop.services, older_than_hours=hours)


def test_it_runs_at_five_every_morning() -> None:
    (schedule,) = [schedule for schedule in schedules() if schedule.job_name == "prune_deployments"]
    assert schedule.cron_schedule == "0 5 * * *"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
