"""Dagster's UI in a real browser, as an operator uses it: launch, watch, cancel, look at an asset and at a sensor."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dagster as dg
import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from domain.models import State
from tests.e2e.conftest import COMMAND, ROOT, free_port
from tests.support.launchpad import fill_launchpad
from tests.support.live import CODE, DAEMON, WEBSERVER, Live, live
from tests.support.workshop import GOOD_BUILD

pytestmark = pytest.mark.browser

LOCATION = "locations/__repository__@lookit_ops"
NOTHING_WAITS = "no build request waits"
CONFIG = """ops:
  claim:
    config:
      study: {study}
      requesting_user: study_admin@example.org
      kind: deployment
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    port = free_port()
    with live(tmp_path_factory.mktemp("ui") / "home", port=port, LOOKIT_BUILDS_AT_ONCE="1") as living:
        living.start(CODE, DAEMON, WEBSERVER)
        living.wait(lambda: answers(port), 90, lambda: living.log_of(WEBSERVER))
        yield living


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/server_info", timeout=2).ok
    except requests.RequestException:
        return False


@pytest.fixture
def page(running: Live, browser: Browser) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        yield context.new_page()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return Path(os.environ.get("SCREENSHOTS", tmp_path))


def launch(page: Page, running: Live, study: str) -> None:
    address = f"http://127.0.0.1:{running.port}"
    fill_launchpad(page, address, LOCATION, "build_experiment", CONFIG.format(study=study))
    page.get_by_role("button", name="Launch run").click()
    page.wait_for_url("**/runs/**", timeout=60_000)


def test_a_build_is_launched_and_watched_and_its_asset_tells_of_it(running: Live, page: Page, pictures: Path) -> None:
    running.site.another_study("Watched", State.APPROVED)
    seen = running.home / "seen"
    # It goes on once somebody has seen it: the page follows the newest lines, and shows no others.
    running.build_by(f"{GOOD_BUILD}\nuntil [ -e {seen} ]; do sleep 0.2; done")
    try:
        launch(page, running, "Watched")
        expect(page.get_by_text("building 2.0 for /studies/").first).to_be_visible(timeout=120_000)
    finally:
        seen.touch()
        running.build_well()
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=120_000)
    page.goto(f"http://127.0.0.1:{running.port}/assets/experiment_deployment?view=overview")
    expect(page.get_by_text("why this sha").first).to_be_visible(timeout=60_000)
    page.screenshot(path=pictures / "asset_of_a_build.png")


def test_a_build_is_cancelled_in_the_ui_and_the_study_is_free_within_seconds(
    running: Live, page: Page, pictures: Path
) -> None:
    study_id = running.site.another_study("Cancelled in the UI", State.APPROVED)
    running.build_by("echo begun; sleep 300")
    try:
        launch(page, running, "Cancelled in the UI")
        expect(page.get_by_text("begun").first).to_be_visible(timeout=120_000)
        page.get_by_role("button", name="Terminate").first.click()
        page.get_by_role("dialog").get_by_role("button", name="Terminate").click()
        seconds = running.wait(lambda: running.site.study(study_id).state == State.APPROVED, 60, "it was not cancelled")
    finally:
        running.build_well()
    assert seconds < 20
    (log,) = running.site.logs(study_id)
    assert (log.extra["outcome"], log.extra["cancelled_by"]) == ("cancelled", "an operator, in Dagster")
    running.wait(lambda: running.leftovers() == [], 30, lambda: f"left: {running.leftovers()}")
    page.goto(f"http://127.0.0.1:{running.port}/runs")
    expect(page.get_by_text("Canceled").first).to_be_visible(timeout=60_000)
    page.screenshot(path=pictures / "cancelled.png")


def test_a_build_whose_run_waits_in_dagsters_queue_is_cancelled_by_command_and_in_the_ui(
    running: Live, page: Page
) -> None:
    """A run from the Launchpad has Dagster's only place and has not claimed yet, so that the next one must wait."""
    names = ("Takes the place", "Cancelled by command", "Cancelled in Dagster")
    first, by_command, in_dagster = (running.site.another_study(name, State.APPROVED) for name in names)
    running.hold("start")
    launch(page, running, "Takes the place")
    running.wait_until_held()

    request_id, run_id = waits_in_dagster(running, by_command)
    command = [COMMAND, "build", "cancel", str(request_id), "--as", "study_admin@example.org"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said == f"Build request {request_id} is cancelled.\n"

    is_told = partial(running.run_status, run_id)
    running.wait(lambda: is_told() == dg.DagsterRunStatus.CANCELED, 30, lambda: f"its run is {is_told()}")

    other_id, other_run_id = waits_in_dagster(running, in_dagster)
    page.goto(f"http://127.0.0.1:{running.port}/runs/{other_run_id}")
    page.get_by_role("button", name="Terminate").first.click(timeout=60_000)
    page.get_by_role("dialog").get_by_role("button", name="Terminate").click()
    running.wait(lambda: running.status(other_id) == "cancelled", 60, lambda: running.told(other_id))
    assert running.run_status(other_run_id) == dg.DagsterRunStatus.CANCELED

    running.let_go()
    running.wait(lambda: running.site.study(first).state == State.ACTIVE, 60, "the first build did not end")
    running.wait(lambda: running.last_tick_of("build_requests") == NOTHING_WAITS, 60, "the sensor did not come to rest")
    for study_id, ended, cancelled_by, mails in (
        (by_command, request_id, "Study Admin", 0),  # who asked has cancelled, and was answered
        (in_dagster, other_id, "an operator, in Dagster", 1),
    ):
        running.assert_ended_once(ended, "cancelled", mails)
        (log,) = running.site.logs(study_id)
        assert log.extra["cancelled_by"] == cancelled_by
        assert running.site.study(study_id).state == State.APPROVED
        assert len(running.runs_of(ended)) == 1
        assert running.files_of(study_id) == {}


def waits_in_dagster(running: Live, study_id: int) -> tuple[int, str]:
    """Ask for a build, and wait until its run is in Dagster's own queue; request and run."""
    request_id = running.request(study_id)

    def statuses() -> list[dg.DagsterRunStatus]:
        return [run.status for run in running.runs_of(request_id)]

    running.wait(lambda: statuses() == [dg.DagsterRunStatus.QUEUED], 60, lambda: running.told(request_id))
    return request_id, running.runs_of(request_id)[0].run_id


def test_a_sensors_tick_says_why_it_did_nothing(running: Live, page: Page, pictures: Path) -> None:
    running.wait(lambda: running.last_tick_of("build_requests") == NOTHING_WAITS, 60, "the sensor did not come to rest")
    page.goto(f"http://127.0.0.1:{running.port}/{LOCATION}/sensors/build_requests")
    page.get_by_role("button", name="0 runs requested").first.click(timeout=90_000)
    expect(page.get_by_text(NOTHING_WAITS).first).to_be_visible(timeout=30_000)
    page.screenshot(path=pictures / "sensor.png")


def test_what_an_operator_watches_is_there_with_its_checks(running: Live, page: Page, pictures: Path) -> None:
    page.goto(f"http://127.0.0.1:{running.port}/assets/request_queue?view=checks")
    expect(page.get_by_text("is_moving").first).to_be_visible(timeout=90_000)
    page.screenshot(path=pictures / "checks.png")
