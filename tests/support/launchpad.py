"""Dagster's Launchpad in a browser: open it, and fill in a run's config."""

from __future__ import annotations

from playwright.sync_api import Page, expect

ATTEMPTS = 4


def fill_launchpad(page: Page, address: str, location: str, job: str, config: str) -> None:
    """Open the Launchpad of `job` and put `config` into its editor, until Dagster says that it has no errors.

    Dagster's page leaves the Launchpad for the overview of the job when its query of permissions fails, as it may on a
    busy machine. A person opens the Launchpad again then, and so does this.
    """
    launchpad = f"{address}/{location}/jobs/{job}/playground"
    for attempt in range(1, ATTEMPTS + 1):
        page.goto(launchpad)
        page.wait_for_selector(".CodeMirror", timeout=60_000)
        page.evaluate("text => document.querySelector('.CodeMirror').CodeMirror.setValue(text)", config)
        try:
            expect(page.get_by_text("No errors")).to_be_visible(timeout=30_000)
        except AssertionError:
            if page.url.endswith("/playground") or attempt == ATTEMPTS:
                raise
        else:
            return
