"""Workers of a real Dagster that are killed, or sleep: whatever dies, each request gets its one end."""

from __future__ import annotations

import os
import signal

import dagster as dg
import pytest

from tests.e2e.conftest import a_study
from tests.support.live import CODE, DAEMON, Live
from tests.support.live_definitions import STEPS
from tests.support.workshop import GOOD_BUILD

ANOTHER_BUILD = GOOD_BUILD.replace("<html>", "<html>another").replace("User-agent: *", "User-agent: another")
"""A build whose script is the same, as in a second attempt, but not the files that have no fingerprint."""


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
