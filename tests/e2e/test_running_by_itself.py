"""A real Dagster that runs by itself, and is killed: requests become runs, and whatever dies, each gets its one end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg
import pytest

from domain.models import BuildKind, State
from tests.e2e.conftest import free_port
from tests.support.databases import Outage, create_database, start_postgresql
from tests.support.live import CODE, DAEMON, SECOND_DAEMON, Live, live
from tests.support.live_definitions import STEPS
from tests.support.workshop import GOOD_BUILD

ANOTHER_BUILD = GOOD_BUILD.replace("<html>", "<html>another").replace("User-agent: *", "User-agent: another")
"""A build whose script is the same, as in a second attempt, but not the files that have no fingerprint."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A Dagster that runs; each test leaves it running."""
    with live(tmp_path_factory.mktemp("live") / "home", port=free_port(), LOOKIT_BUILDS_AT_ONCE="4") as living:
        living.start(CODE, DAEMON)
        yield living


def a_study(running: Live, name: str) -> int:
    return running.site.another_study(name, State.APPROVED)


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


@pytest.mark.parametrize("step", STEPS)
def test_a_run_whose_process_is_killed_is_tried_again(running: Live, step: str) -> None:
    study_id = a_study(running, f"Killed at {step}")
    running.hold(step)
    request_id = running.request(study_id)
    os.kill(running.wait_until_held(), signal.SIGKILL)
    running.let_go()
    request = running.wait_for(request_id, "succeeded", "failed")
    assert request.status == "succeeded", running.told(request_id)
    running.assert_ended_once(request_id, "succeeded")
    assert request.attempt == 2
    assert running.page(study_id) is not None


def test_killed_behind_the_page_it_counts_and_is_not_built_twice(running: Live) -> None:
    running.hold("finish")
    request_id = running.request(a_study(running, "Killed behind the page"))
    os.kill(running.wait_until_held(), signal.SIGKILL)
    running.let_go()
    request = running.wait_for(request_id, "succeeded", "failed")
    assert (request.status, request.attempt) == ("succeeded", 1)
    running.assert_ended_once(request_id, "succeeded")
    assert len(running.runs_of(request_id)) == 1


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


@pytest.mark.parametrize(("step", "attempts"), [("upload", 2), ("finish", 1)])
def test_everything_is_killed_and_started_anew(running: Live, step: str, attempts: int) -> None:
    running.hold(step)
    request_id = running.request(a_study(running, f"All killed at {step}"))
    running.wait_until_held()
    (run,) = running.runs_of(request_id)
    running.kill_everything()
    running.let_go()
    running.start(CODE, DAEMON)
    request = running.wait_for(request_id, "succeeded")
    assert request.attempt == attempts
    running.assert_ended_once(request_id, "succeeded")

    def is_dead() -> bool:
        with dg.DagsterInstance.get() as instance:
            dead = instance.get_run_by_id(run.run_id)
            return dead is not None and dead.status == dg.DagsterRunStatus.FAILURE

    running.wait(is_dead, 60, "Dagster still takes the dead run for running")


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


@pytest.mark.parametrize(("step", "attempts"), [("upload", 2), ("put", 2), ("page", 2), ("finish", 1)])
def test_a_worker_that_slept_changes_nothing_when_it_wakes(running: Live, step: str, attempts: int) -> None:
    """SIGSTOP before the upload, within a file, before the page, behind it; its lease ends, another run deploys."""
    study_id = a_study(running, f"Slept at {step}")
    running.hold(step)
    request_id = running.request(study_id)
    sleeper = running.wait_until_held()
    os.kill(sleeper, signal.SIGSTOP)
    running.let_go()
    running.build_by(ANOTHER_BUILD)
    try:
        request = running.wait_for(request_id, "succeeded")
        assert request.attempt == attempts
        running.assert_ended_once(request_id, "succeeded")
        if attempts == 1:  # the sleeper's own page was live, and its build was finished for it
            running.wait_for(running.request(study_id), "succeeded")
    finally:
        running.build_well()
    assert b"another" in (running.page(study_id) or b"")
    files, rows = running.files_of(study_id), running.rows_of(study_id)
    assert b"User-agent: another" in files["robots.txt"]
    os.kill(sleeper, signal.SIGCONT)
    running.wait(lambda: sleeper not in running.run_processes(), 60, "the sleeper did not end")
    now = running.files_of(study_id)
    assert {path: now.get(path) for path in files} == files, "it may add files of its own, and touch no other"
    assert running.rows_of(study_id) == rows


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
