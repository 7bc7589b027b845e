"""A real Dagster that runs by itself, and is killed: requests become runs, and whatever dies, each gets its one end."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from domain.models import BuildKind, State
from tests.e2e.conftest import a_study, free_port
from tests.support.databases import Outage, create_database, start_postgresql
from tests.support.live import CODE, DAEMON, SECOND_DAEMON, Live, live
from tests.support.workshop import GOOD_BUILD

ANOTHER_BUILD = GOOD_BUILD.replace("<html>", "<html>another").replace("User-agent: *", "User-agent: another")
"""A build whose script is the same, as in a second attempt, but not the files that have no fingerprint."""


def test_a_request_becomes_a_run_within_seconds_and_is_built_and_told(running: Live) -> None:
    request_id = running.request()
    running.wait(lambda: running.status(request_id) != "queued", 60, lambda: running.told(request_id))
    running.wait_for(request_id, "succeeded")
    running.assert_ended_once(request_id, "succeeded")
    (run,) = running.runs_of(request_id)
    assert run.tags["lookit/submission"] == "1"
    running.wait(lambda: {mail.status for mail in running.site.mails()} == {"sent"}, 60, "the mails were not delivered")


def test_two_daemons_start_one_run_for_each_request(running: Live) -> None:
    running.start(SECOND_DAEMON)
    time.sleep(15)  # until it ticks, too
    try:
        asked = [running.request(a_study(running, f"Two daemons {number}")) for number in range(3)]
        for request_id in asked:
            running.wait_for(request_id, "succeeded")
            running.assert_ended_once(request_id, "succeeded")
            assert len(running.runs_of(request_id)) == 1
        assert running.running[SECOND_DAEMON].poll() is None
    finally:
        running.kill(SECOND_DAEMON)


@pytest.mark.parametrize("step", ["build", "upload"])
def test_cancelled_by_command_it_ends_within_seconds(running: Live, step: str) -> None:
    if step == "build":
        running.build_by("echo begun; sleep 60")
    else:
        running.hold(step)
    request_id = running.request(a_study(running, f"Cancelled at {step}"))
    try:
        running.wait(lambda: running.status(request_id) == "running", 60, lambda: running.told(request_id))
        time.sleep(3)
        running.services.ledger.cancel(request_id, running.site.study_admin)
        if step == "upload":
            running.let_go()
        seconds = running.wait(lambda: running.status(request_id) == "cancelled", 30, lambda: running.told(request_id))
    finally:
        running.build_well()
    assert seconds < 15
    running.assert_ended_once(request_id, "cancelled")
    (log,) = running.site.logs(running.site.request(request_id).study_id)
    assert log.extra["cancelled_by"] == "Study Admin"
    running.wait(lambda: running.leftovers() == [], 30, "files are left")


def test_a_code_location_that_is_killed_is_found_again_and_its_run_goes_on(running: Live) -> None:
    running.hold("build")
    request_id = running.request(a_study(running, "Code location killed"))
    running.wait_until_held()
    running.kill(CODE)
    running.start(CODE)
    running.let_go()
    running.wait_for(request_id, "succeeded")
    running.assert_ended_once(request_id, "succeeded")
    again = running.request(a_study(running, "After the code location"), BuildKind.PREVIEW)
    running.wait_for(again, "succeeded")


def test_a_storage_that_is_away_before_the_page_costs_an_attempt_and_frees_the_study(running: Live) -> None:
    away: Path = running.home / "storage-gone"
    running.hold("upload")
    study_id = a_study(running, "Storage away before")
    request_id = running.request(study_id)
    running.wait_until_held()
    away.touch()
    running.let_go()
    try:  # nothing of it can be live, and the bucket need not be asked for that
        running.wait(lambda: running.site.request(request_id).failed_attempts, 60, lambda: running.told(request_id))
    finally:
        away.unlink()
    assert running.site.request(request_id).failed_attempts[0]["code"] == "storage_error"
    running.wait_for(request_id, "succeeded")
    running.assert_ended_once(request_id, "succeeded")


def test_a_storage_that_is_away_at_the_page_keeps_the_build_open_and_costs_an_attempt(running: Live) -> None:
    away: Path = running.home / "storage-gone"
    running.hold("page")
    study_id = a_study(running, "Storage away")
    request_id = running.request(study_id)
    running.wait_until_held()
    away.touch()
    running.let_go()
    try:
        time.sleep(15)  # longer than the lease: whether the page is live cannot be asked, so nobody decides
        assert running.site.study(study_id).state == State.DEPLOYING
    finally:
        away.unlink()
    request = running.wait_for(request_id, "succeeded", "failed")
    assert request.status == "succeeded", running.told(request_id)
    running.assert_ended_once(request_id, "succeeded")


def test_a_player_that_does_not_build_is_not_tried_again(running: Live) -> None:
    running.build_by("echo 'SyntaxError'; exit 1")
    try:
        request = running.wait_for(running.request(a_study(running, "Does not build")), "failed", "succeeded")
    finally:
        running.build_well()
    assert (request.status, request.error_code, request.attempt) == ("failed", "player_build_failed", 1)
    running.assert_ended_once(request.id, "failed")


def test_a_database_that_crashes_and_comes_back_costs_an_attempt_at_most(tmp_path: Path) -> None:
    with TemporaryDirectory(prefix="lookit-outage-") as folder, start_postgresql(Path(folder)) as server:
        outage = Outage(Path(folder), create_database(server, "outage"))
        with live(tmp_path / "home", outage.url, port=free_port()) as running:
            running.start(CODE, DAEMON)
            running.hold("build")
            request_id = running.request()
            running.wait_until_held()
            outage.begin()
            time.sleep(12)  # longer than the lease
            outage.end()
            running.let_go()
            request = running.wait_for(request_id, "succeeded", "failed")
            assert request.status == "succeeded", running.told(request_id)
            assert request.attempt <= 2
            running.assert_ended_once(request_id, "succeeded")
            again = running.request(a_study(running, "After the outage"))
            running.wait_for(again, "succeeded")
