"""`lookit-ops build reconcile`: by hand what the sensor `leases` does, builds and archives, with Dagster or without."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import update

from domain.models import ArchiveKind, ArchiveRequest, BuildKind, RequestStatus, State
from domain.requests.archives import ArchiveLedger
from lookit_ops.jobs.build_experiment import build_experiment
from tests.integration.cli.conftest import Shown
from tests.support.footage import Footage
from tests.support.site import Site

Run = Callable[..., Shown]
MINUTE = timedelta(minutes=1)


@pytest.fixture
def dagster_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "dagster"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home


def dead_build(site: Site, run_id: str) -> int:
    request_id = site.ledger.request(site.study_id, site.study_admin, BuildKind.PREVIEW)
    site.ledger.claim(request_id, run_id, MINUTE)
    site.end_leases()
    return request_id


def dead_archive(site: Site) -> int:
    footage, ledger = Footage(site), ArchiveLedger(site.sessions)
    footage.video(footage.response("accepted"))
    request_id = ledger.request(site.study_id, site.study_admin, ArchiveKind.ALL)
    ledger.claim(request_id, "a run of another machine", MINUTE)
    with site.sessions.begin() as session:
        session.execute(update(ArchiveRequest).values(lease_expires_at=ArchiveRequest.claimed_at))
    return request_id


def test_all_that_dead_workers_left_is_ended_and_dagster_is_told(
    site: Site, run: Run, dagster_home: Path, tmp_path: Path
) -> None:
    with dg.DagsterInstance.get() as instance:
        dead = instance.create_run_for_job(build_experiment, status=dg.DagsterRunStatus.STARTED)
    build, archive = dead_build(site, dead.run_id), dead_archive(site)
    bundle = tmp_path / "home" / "ember_build" / "deployments" / "left-behind"
    bundle.mkdir(parents=True)
    shown = run("build", "reconcile")
    assert shown.status == 0, shown.err
    assert shown.out.splitlines() == [
        f"Builds given up: {build}.",
        f"Archives given up: {archive}.",
        "1 left-over bundles removed.",
        "Dead runs: 1.",
    ]
    assert (site.study().state, site.request(build).error_code) == (State.APPROVED, "worker_died")
    with site.sessions.begin() as session:
        assert session.get_one(ArchiveRequest, archive).status == RequestStatus.QUEUED
    assert not bundle.exists()
    with dg.DagsterInstance.get() as instance:
        ended = instance.get_run_by_id(dead.run_id)
    assert ended is not None
    assert ended.status == dg.DagsterRunStatus.FAILURE
    assert run("build", "reconcile").out.strip() == "No lease has run out."


def test_without_dagster_the_requests_have_their_end_all_the_same(site: Site, run: Run, dagster_home: Path) -> None:
    (dagster_home / "dagster.yaml").write_text("storage: nonsense\n")
    build = dead_build(site, "a run")
    shown = run("build", "reconcile")
    assert (shown.status, shown.out.strip()) == (0, f"Builds given up: {build}.")
    assert "Dagster cannot be told" in shown.err
    assert "Traceback" not in shown.err
    assert site.study().state == State.APPROVED
