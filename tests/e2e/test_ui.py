"""Dagster's UI in a real browser, as an operator uses it: launch, watch, cancel, look at an asset and at a sensor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from domain.models import State
from tests.e2e.conftest import free_port
from tests.support.live import CODE, DAEMON, WEBSERVER, Live, live

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
    with live(tmp_path_factory.mktemp("ui") / "home", port=port) as living:
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
    page.goto(f"http://127.0.0.1:{running.port}/{LOCATION}/jobs/build_experiment/playground")
    page.wait_for_selector(".CodeMirror", timeout=60_000)
    text = CONFIG.format(study=study)
    page.evaluate("text => document.querySelector('.CodeMirror').CodeMirror.setValue(text)", text)
    expect(page.get_by_text("No errors")).to_be_visible(timeout=30_000)
    page.get_by_role("button", name="Launch run").click()
    page.wait_for_url("**/runs/**", timeout=60_000)


def test_a_build_is_launched_and_watched_and_its_asset_tells_of_it(running: Live, page: Page, pictures: Path) -> None:
    running.site.another_study("Watched", State.APPROVED)
    launch(page, running, "Watched")
    expect(page.get_by_text("building 2.0 for /studies/").first).to_be_visible(timeout=120_000)
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
