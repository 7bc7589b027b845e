"""An operator launches a build from the Launchpad, in a real browser, and watches it succeed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from sqlalchemy import select

from domain.models import BuildKind, Study, StudyLog
from lookit_ops.demo.people import RESEARCHER
from lookit_ops.deployments.manifest import folder_of
from tests.e2e.conftest import Demonstration
from tests.support.launchpad import fill_launchpad

pytestmark = [pytest.mark.browser, pytest.mark.ember]

STUDY = "The curious octopus"
LOCATION = "locations/__repository__@lookit_ops"
CONFIG = f"""ops:
  claim:
    config:
      study: {STUDY}
      requesting_user: {RESEARCHER}
      kind: preview
"""


def test_a_run_launched_from_the_launchpad_succeeds(
    demonstration: Demonstration, browser: Browser, tmp_path: Path
) -> None:
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with demonstration.dev() as address, browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        page = context.new_page()
        fill_launchpad(page, address, LOCATION, "build_experiment", CONFIG)
        page.screenshot(path=pictures / "launchpad.png")
        page.get_by_role("button", name="Launch run").click()
        page.wait_for_url("**/runs/**", timeout=60_000)
        # The output of the build is on the page while it runs.
        expect(page.get_by_text("==> yarn install --pure-lockfile").first).to_be_visible(timeout=240_000)
        expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=300_000)
        page.reload()  # as somebody sees it who comes afterwards: all steps done, the log from its beginning
        expect(page.get_by_text("finish").first).to_be_visible(timeout=60_000)
        page.wait_for_timeout(3000)  # the chart of the steps fills in last
        page.screenshot(path=pictures / "run.png")
        page.goto(f"{address}/assets/experiment_preview?view=overview")
        expect(page.get_by_text("why this sha").first).to_be_visible(timeout=60_000)
        page.screenshot(path=pictures / "asset.png")
    with demonstration.sessions().begin() as session:
        study = session.scalars(select(Study).where(Study.name == STUDY)).one()
        (log,) = session.scalars(select(StudyLog).where(StudyLog.study_id == study.id))
    assert log.extra["outcome"] == "succeeded"
    assert log.extra["origin"] == f"on behalf of {RESEARCHER} through Dagster"
    assert (
        demonstration.services.settings.local_bucket / folder_of(BuildKind.PREVIEW, study.uuid) / "index.html"
    ).exists()
