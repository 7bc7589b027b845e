"""How soon a request is worked on, what a tick costs when thousands wait, and how soon a killed build goes on."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from sqlalchemy import insert, update

from benchmarks.frame import Result, benchmark
from domain.models import BuildKind, BuildRequest, RequestStatus, State, Study
from lookit_ops.definitions import defs
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.sensors.requests import build_requests
from tests.support.busy_day import live_through
from tests.support.live import CODE, DAEMON, Live, live

WAITING, HISTORY = 5000, 10_000
RUN_KEY_TAG = "dagster/run_key"
NO_PEER = None


@contextmanager
def _living(**settings: Any) -> Generator[Live]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
        with live(Path(folder) / "home", port=port, **settings) as living:
            living.start(CODE, DAEMON)
            first = living.request(kind=BuildKind.PREVIEW)  # whatever has to be made and loaded once
            living.wait_for(first, "succeeded", seconds=180)
            yield living


@benchmark("queue.request_to_first_op_s")
def request_to_first_op(quick: bool) -> Iterator[Result]:
    """From the INSERT of a request to the claim by its run, on an idle machine."""
    seconds = []
    with _living() as living:
        for number in range(3 if quick else 10):
            study_id = living.site.another_study(f"Study {number}", State.APPROVED)
            request = living.wait_for(living.request(study_id, BuildKind.PREVIEW), "succeeded")
            assert request.claimed_at
            seconds.append((request.claimed_at - request.requested_at).total_seconds())
            time.sleep(number % 5)  # not in step with the sensor
    note = "daemon, code location and run on one machine; a tick every 5 s, a process for each run"
    yield Result.of("queue.request_to_first_op_s", "s", seconds, [], NO_PEER, note)


@benchmark("queue.recovery_s")
def recovery(quick: bool) -> Iterator[Result]:
    """From SIGKILL of a build's process to the claim of the next attempt, the wait between attempts left out."""
    seconds = []
    with _living(LOOKIT_RETRY_AFTER="0.001") as living:
        for number in range(2 if quick else 7):
            study_id = living.site.another_study(f"Study {number}", State.APPROVED)
            living.hold("build")
            request_id = living.request(study_id)
            os.kill(living.wait_until_held(), signal.SIGKILL)
            living.let_go()
            began = time.monotonic()
            living.wait(lambda asked=request_id: living.site.request(asked).attempt == 2, 120, "it was not tried again")
            seconds.append(time.monotonic() - began)
            living.wait_for(request_id, "succeeded")
    note = "noticed by the code location, ended by the sensor failed_runs, asked for again by build_requests"
    yield Result.of("queue.recovery_s", "s", seconds, [], NO_PEER, note)


@benchmark("queue.tick_5000_waiting_s")
def tick(quick: bool) -> Iterator[Result]:
    """A tick of the sensor, with the look-ups of run keys that the daemon makes for what it returns."""
    waiting, history = (500, 1000) if quick else (WAITING, HISTORY)
    seconds = []
    with (
        tempfile.TemporaryDirectory() as folder,
        live(Path(folder) / "home", port=1, LOOKIT_BUILDS_AT_ONCE="10") as living,
        dg.DagsterInstance.get() as runs,
    ):
        for number in range(history):
            tags = {RUN_KEY_TAG: f"old-{number}"}
            runs.create_run_for_job(build_experiment, status=dg.DagsterRunStatus.SUCCESS, tags=tags)
        _let_wait(living, waiting)
        for _ in range(3 if quick else 7):
            began = time.monotonic()
            resources = {"services": living.services}
            with dg.build_sensor_context(instance=runs, definitions=defs, resources=resources) as context:
                asked = build_requests.evaluate_tick(context).run_requests or []
            for request in asked:
                runs.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: str(request.run_key)}), limit=1)
            seconds.append(time.monotonic() - began)
            assert len(asked) == 10
            _give_back(living)
    note = f"{waiting:,} requests wait, {history:,} runs in Dagster's history; 10 runs asked for; both on SQLite"
    yield Result.of("queue.tick_5000_waiting_s", "s", seconds, [], NO_PEER, note)


def _let_wait(living: Live, count: int) -> None:
    site = living.site
    with site.sessions.begin() as session:
        rows = [{"name": f"Study {number}", "lab_id": site.lab_id, "state": "approved"} for number in range(count)]
        ids = list(session.scalars(insert(Study).returning(Study.id), rows))
        asked = [{"study_id": id_, "requested_by_id": site.superuser, "kind": "preview"} for id_ in ids]
        session.execute(insert(BuildRequest), asked)


def _give_back(living: Live) -> None:
    with living.site.sessions.begin() as session:
        waits = BuildRequest.status == RequestStatus.QUEUED
        session.execute(update(BuildRequest).where(waits).values(submitted_at=None))


@benchmark("queue.busy_day")
def busy_day(quick: bool) -> Iterator[Result]:
    """A simulated busy day with crashes: how many requests an hour, only the build's command shortened."""
    requests, studies = (40, 20) if quick else (1000, 200)
    with _living(LOOKIT_BUILDS_AT_ONCE="4", LOOKIT_ATTEMPTS="6", LOOKIT_LEASE="10") as living:
        day = live_through(living, requests, studies, crash_every=20, seconds=4 * 3600)
    yield Result.of("queue.busy_day", "requests/s", [day.requests / day.seconds], [], NO_PEER, str(day))
