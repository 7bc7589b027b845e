"""The sensors on real parts: what becomes a run, what is ended for a run that ended, what an operator is told."""

from __future__ import annotations

import threading
import time
import unittest.mock
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import RunStatusSensorDefinition
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from sqlalchemy import update

from domain.db import database_now
from domain.models import (
    ArchiveKind,
    ArchiveRequest,
    BuildKind,
    BuildRequest,
    MailStatus,
    OutboxMail,
    RequestStatus,
    State,
    Study,
    User,
)
from lookit_ops.definitions import defs
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.jobs.build_zipfile_of_videos import build_zipfile_of_videos
from lookit_ops.jobs.deliver_mails import deliver_mails
from lookit_ops.jobs.end_dead_work import end_dead_work_job
from lookit_ops.jobs.prune_runs import prune_runs
from lookit_ops.run_tags import KIND_TAG, LOCK_TAG, REQUEST_TAG, SUBMISSION_TAG
from lookit_ops.runs.build import BuildRun
from lookit_ops.runs.dead_runs import IN_DAGSTER, end_requests_of, idle_runs
from lookit_ops.runs.in_use import output_folder
from lookit_ops.runs.interruption import Interruption, interruption_of
from lookit_ops.sensors.leases import leases
from lookit_ops.sensors.outbox import outbox
from lookit_ops.sensors.requests import archive_requests, build_requests
from lookit_ops.sensors.runs import end_of
from lookit_ops.sensors.watch import watch
from lookit_ops.services import Services
from lookit_ops.storage.errors import StorageError
from tests.support.footage import Footage
from tests.support.site import transition_as_read
from tests.support.workshop import Workshop

PREVIEW, DEPLOYMENT = BuildKind.PREVIEW, BuildKind.DEPLOYMENT


def requests_of(result: Any) -> list[dg.RunRequest]:
    return list(result.run_requests or [])


def reason_of(result: Any) -> str:
    return str(result.skip_message)


def the_run_for(workshop: Workshop, request: dg.RunRequest, **changes: Any) -> dg.DagsterRun:
    """The run that Dagster makes of it, without a process."""
    return workshop.instance.create_run_for_job(build_experiment, tags=dict(request.tags), **changes)


def the_queued_run_for(workshop: Workshop, request: dg.RunRequest) -> dg.DagsterRun:
    """The same, in Dagster's queue, where a run must say which code location it is from."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("lookit_ops"), "__repository__")
    origin = RemoteJobOrigin(repository, build_experiment.name)
    return the_run_for(workshop, request, status=dg.DagsterRunStatus.QUEUED, remote_job_origin=origin)


def status_of(workshop: Workshop, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = workshop.instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def move(workshop: Workshop, model: Any, **columns: timedelta) -> None:
    with workshop.site.sessions.begin() as session:
        session.execute(update(model).values({name: database_now(-ago) for name, ago in columns.items()}))


# -- requests ---------------------------------------------------------------------------------------------------------


def test_a_waiting_request_becomes_one_run_that_builds_it(workshop: Workshop) -> None:
    request_id = workshop.request()
    (asked,) = requests_of(workshop.tick(build_requests))
    assert asked.run_key == f"build-{request_id}-1"
    assert asked.tags[LOCK_TAG] == str(workshop.site.study().uuid)
    assert (asked.tags[KIND_TAG], asked.tags[REQUEST_TAG], asked.tags[SUBMISSION_TAG]) == (
        "build",
        str(request_id),
        "1",
    )
    assert requests_of(workshop.tick(build_requests)) == []
    assert workshop.run(**asked.run_config["ops"]["claim"]["config"]).success
    assert workshop.site.request(request_id).status == RequestStatus.SUCCEEDED


def test_two_daemons_at_once_ask_for_one_run(workshop: Workshop) -> None:
    workshop.request()
    workshop.services.build_queue, workshop.instance  # noqa: B018 - made before the threads need them
    together, asked = threading.Barrier(2), []

    def tick() -> None:
        together.wait()
        asked.extend(workshop.services.build_queue.submit(limit=10, at_once=2))

    daemons = [threading.Thread(target=tick) for _ in range(2)]
    for daemon in daemons:
        daemon.start()
    for daemon in daemons:
        daemon.join()
    assert len(asked) == 1


def test_a_second_run_for_the_same_request_finds_nothing_to_claim_and_ends_nothing(workshop: Workshop) -> None:
    """A second daemon takes the first one's tick for interrupted, and submits its runs again."""
    request_id = workshop.request()
    (asked,) = requests_of(workshop.tick(build_requests))
    first = the_run_for(workshop, asked, status=dg.DagsterRunStatus.STARTED)
    claim = workshop.ledger.claim(request_id, first.run_id, timedelta(minutes=5), submission=1)
    second = workshop.run(tags=asked.tags, request_id=request_id)
    assert not second.success
    failed = the_run_for(workshop, asked, status=dg.DagsterRunStatus.FAILURE)
    for why in (None, *Interruption):
        ended = end_of(workshop.services, failed, why)
        assert isinstance(ended, dg.SkipReason)
        assert "left nothing open" in str(ended.skip_message)
    workshop.ledger.finish(claim, {})
    request = workshop.site.request(request_id)
    assert (request.status, request.attempt, request.failed_attempts) == (RequestStatus.SUCCEEDED, 1, [])
    assert len(workshop.site.logs()) == 1


def test_a_tick_that_does_nothing_says_why(workshop: Workshop) -> None:
    workshop.settings["builds_at_once"] = 1
    assert reason_of(workshop.tick(build_requests)) == "no build request waits"
    first = workshop.request(DEPLOYMENT)
    other = workshop.site.another_study("Another", State.APPROVED)
    workshop.ledger.request(other, workshop.site.study_admin, PREVIEW)
    assert len(requests_of(workshop.tick(build_requests))) == 1
    assert reason_of(workshop.tick(build_requests)) == "1 wait; 0 of at most 1 run, 1 are about to"
    claim = workshop.ledger.claim(first, "run-1", timedelta(minutes=1))
    assert reason_of(workshop.tick(build_requests)) == "1 wait; 1 of at most 1 run"
    workshop.ledger.finish(claim, {})
    assert len(requests_of(workshop.tick(build_requests))) == 1


def test_a_run_that_dagster_still_queues_is_not_asked_for_twice(workshop: Workshop) -> None:
    workshop.request()
    (asked,) = requests_of(workshop.tick(build_requests))
    run = the_queued_run_for(workshop, asked)
    move(workshop, BuildRequest, submitted_at=timedelta(minutes=10))
    assert requests_of(workshop.tick(build_requests)) == []
    assert status_of(workshop, run) == dg.DagsterRunStatus.QUEUED


@pytest.mark.parametrize("end", ["cancelled", "replaced"])
def test_a_run_in_dagsters_queue_whose_request_has_ended_is_taken_out_of_it(workshop: Workshop, end: str) -> None:
    other = workshop.ledger.request(
        workshop.site.another_study("Another", State.APPROVED), workshop.site.study_admin, DEPLOYMENT
    )
    request_id = workshop.request()
    runs = {
        int(asked.tags[REQUEST_TAG]): the_queued_run_for(workshop, asked)
        for asked in requests_of(workshop.tick(build_requests))
    }
    if end == "cancelled":
        workshop.ledger.cancel(request_id, workshop.site.study_admin)
    else:
        workshop.request()
    workshop.tick(build_requests)
    assert status_of(workshop, runs[request_id]) == dg.DagsterRunStatus.CANCELED
    assert status_of(workshop, runs[other]) == dg.DagsterRunStatus.QUEUED
    said = end_requests_of(workshop.instance, workshop.services, runs[request_id], IN_DAGSTER)
    assert "nothing open" in said


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
def test_a_run_that_died_unnoticed_before_its_claim_is_told_to_be_dead_and_followed(
    workshop: Workshop, status: dg.DagsterRunStatus
) -> None:
    """Without a claim it has no lease, and a Dagster whose code location died with it would wait for an hour."""
    workshop.request()
    (asked,) = requests_of(workshop.tick(build_requests))
    run = the_run_for(workshop, asked, status=status)
    assert requests_of(workshop.tick(build_requests)) == []
    move(workshop, BuildRequest, submitted_at=timedelta(minutes=10))
    (again,) = requests_of(workshop.tick(build_requests))
    assert again.run_key == str(asked.run_key)[:-1] + "2"
    dead = workshop.instance.get_run_by_id(run.run_id)
    assert dead is not None
    assert dead.status == dg.DagsterRunStatus.FAILURE
    end_requests_of(workshop.instance, workshop.services, dead, None)
    assert workshop.site.request(1).submissions == 2, "the run that was asked for since is waited for"


def test_a_run_that_finds_no_room_gives_its_turn_back(workshop: Workshop) -> None:
    workshop.settings["builds_at_once"] = 1
    other = workshop.site.another_study("Another", State.APPROVED)
    waits = workshop.ledger.request(other, workshop.site.study_admin, PREVIEW)
    assert len(requests_of(workshop.tick(build_requests))) == 1
    claim = workshop.ledger.launch(
        workshop.site.study_id, workshop.site.study_admin, PREVIEW, "from the Launchpad", timedelta(minutes=1)
    )
    assert not workshop.run(request_id=waits).success
    request = workshop.site.request(waits)
    assert (request.status, request.submitted_at, request.failed_attempts) == ("queued", None, [])
    workshop.ledger.finish(claim, {})
    assert len(requests_of(workshop.tick(build_requests))) == 1


def test_a_run_that_comes_too_late_builds_nothing(workshop: Workshop) -> None:
    """Dagster was told that it is dead, and another one was asked for; it lives all the same."""
    request_id = workshop.request()
    (late,) = requests_of(workshop.tick(build_requests))
    move(workshop, BuildRequest, submitted_at=timedelta(minutes=10))
    (next_one,) = requests_of(workshop.tick(build_requests))
    assert not workshop.run(tags=late.tags, request_id=request_id).success
    request = workshop.site.request(request_id)
    assert (request.status, request.attempt, workshop.live()) == ("queued", 0, {})
    assert requests_of(workshop.tick(build_requests)) == [], "the run that was asked for is still waited for"
    assert workshop.run(tags=next_one.tags, request_id=request_id).success


@pytest.mark.parametrize("typed", ["abc", "9" * 30, ""])
def test_what_somebody_types_as_a_tag_stops_no_queue(workshop: Workshop, typed: str) -> None:
    workshop.request()
    asked = dg.RunRequest(tags={KIND_TAG: "build", REQUEST_TAG: typed, SUBMISSION_TAG: typed})
    odd = the_queued_run_for(workshop, asked)
    assert len(requests_of(workshop.tick(build_requests))) == 1
    assert status_of(workshop, odd) == dg.DagsterRunStatus.QUEUED
    assert "nothing open" in end_requests_of(workshop.instance, workshop.services, odd, None)


def test_a_run_that_dagster_cannot_update_stops_no_queue(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = workshop.request()
    (asked,) = requests_of(workshop.tick(build_requests))
    the_queued_run_for(workshop, asked)
    workshop.ledger.cancel(stuck, workshop.site.study_admin)
    other = workshop.site.another_study("Another", State.APPROVED)
    waits = workshop.ledger.request(other, workshop.site.study_admin, PREVIEW)

    def broken(*_: object) -> None:
        raise RuntimeError("the storage of runs is away")

    monkeypatch.setattr(workshop.instance, "report_run_canceling", broken)
    (asked,) = requests_of(workshop.tick(build_requests))
    assert asked.tags[REQUEST_TAG] == str(waits)


# -- runs that ended --------------------------------------------------------------------------------------------------


def test_cancelled_in_dagsters_queue_cancels_the_request(workshop: Workshop) -> None:
    request_id = workshop.request()
    (asked,) = requests_of(workshop.tick(build_requests))
    run = the_run_for(workshop, asked, status=dg.DagsterRunStatus.CANCELED)
    said = end_requests_of(workshop.instance, workshop.services, run, IN_DAGSTER)
    assert f"with it request {request_id}" in said
    assert workshop.site.request(request_id).status == RequestStatus.CANCELLED
    (log,) = workshop.site.logs()
    assert log.extra["cancelled_by"] == IN_DAGSTER
    assert "nothing open" in end_requests_of(workshop.instance, workshop.services, run, IN_DAGSTER)


def test_a_run_that_died_before_its_claim_is_followed_by_another(workshop: Workshop) -> None:
    workshop.settings["attempts"] = 2
    request_id = workshop.request()
    for number in (1, 2):
        move(workshop, BuildRequest, next_attempt_at=timedelta(minutes=1))
        (asked,) = requests_of(workshop.tick(build_requests))
        run = the_run_for(workshop, asked, status=dg.DagsterRunStatus.FAILURE)
        end_requests_of(workshop.instance, workshop.services, run, None)
        assert workshop.site.request(request_id).status == ("queued" if number == 1 else "failed")
    assert workshop.site.request(request_id).error_code == "run_not_started"
    assert len(workshop.site.logs()) == 1


@pytest.mark.parametrize(("cancelled_by", "outcome"), [(None, "failed"), (IN_DAGSTER, "cancelled")])
def test_what_a_run_held_that_ended_is_ended_before_its_lease(
    workshop: Workshop, cancelled_by: str | None, outcome: str
) -> None:
    run = workshop.instance.create_run_for_job(build_experiment)
    workshop.services.ledger.claim(workshop.request(), run.run_id, timedelta(hours=1))
    end_requests_of(workshop.instance, workshop.services, run, cancelled_by)
    assert workshop.site.study().state == State.APPROVED
    (log,) = workshop.site.logs()
    assert log.extra["outcome"] == outcome


def test_what_a_dead_run_held_is_finished_if_its_page_is_live(workshop: Workshop) -> None:
    """As after SIGKILL right behind the page's write: neither `finish` nor the teardown were ever run."""
    request_id = workshop.request()
    with unittest.mock.patch.object(BuildRun, "end_with"):
        workshop.faults.after("write_page", die)
        assert not workshop.run(request_id=request_id).success
    assert workshop.site.study().state == State.DEPLOYING
    run = workshop.instance.get_run_by_id(str(workshop.site.request(request_id).run_id))
    assert run is not None
    end_requests_of(workshop.instance, workshop.services, run, None)
    assert workshop.site.study().state == State.ACTIVE
    assert workshop.instance.get_latest_materialization_event(dg.AssetKey("experiment_deployment")) is not None


def die(_key: str) -> None:
    raise RuntimeError("the process is gone")


# -- leases -----------------------------------------------------------------------------------------------------------


def test_a_lease_that_ran_out_is_ended_and_dagster_is_told_of_the_dead_run(workshop: Workshop) -> None:
    assert reason_of(workshop.tick(leases)) == "no lease has run out"
    run = workshop.instance.create_run_for_job(build_experiment, status=dg.DagsterRunStatus.STARTED)
    request_id = workshop.request()
    workshop.services.ledger.claim(request_id, run.run_id, timedelta(minutes=1))
    workshop.site.end_leases()
    assert len(requests_of(workshop.tick(leases))) == 1
    under_way = workshop.instance.create_run_for_job(end_dead_work_job, tags={"lookit/ends": "all"})
    assert "on its way" in reason_of(workshop.tick(leases))
    workshop.instance.delete_run(under_way.run_id)
    assert workshop.end_dead_work() == [f"builds given up: {request_id}", "dead runs: 1"]
    ended = workshop.instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.status == dg.DagsterRunStatus.FAILURE
    assert workshop.site.study().state == State.APPROVED


def test_a_run_that_holds_nothing_for_minutes_is_dead(workshop: Workshop) -> None:
    idle = workshop.instance.create_run_for_job(build_experiment, status=dg.DagsterRunStatus.STARTED)
    works = workshop.instance.create_run_for_job(build_experiment, status=dg.DagsterRunStatus.STARTED)
    claim = workshop.services.ledger.claim(workshop.request(), works.run_id, timedelta(minutes=1))
    at_once = timedelta(seconds=-1)
    assert idle_runs(workshop.instance, workshop.services) == [], "it may just have begun"
    assert idle_runs(workshop.instance, workshop.services, at_once) == [idle.run_id]
    workshop.services.ledger.finish(claim, {})
    assert workshop.services.ledger.works_for(works.run_id, timedelta(minutes=1)), "it is tearing down"
    assert not workshop.services.ledger.works_for(works.run_id, at_once)


def test_a_bundle_that_nobody_makes_any_more_goes_and_that_of_a_running_build_stays(workshop: Workshop) -> None:
    claim = workshop.services.ledger.claim(workshop.request(), "a run", timedelta(minutes=1))
    folder = workshop.services.settings.home_folder / "ember_build" / "deployments"
    alive, dead = folder / output_folder(claim), folder / output_folder(replace(claim, fencing_token=7))
    for path in (alive, dead):
        path.mkdir(parents=True)
    workshop.tick(leases)
    assert list(folder.iterdir()) == [alive]


def test_a_wish_to_cancel_outlives_a_bucket_that_is_away(workshop: Workshop) -> None:
    workshop.settings["attempts"] = 3
    run = workshop.instance.create_run_for_job(build_experiment)
    request_id = workshop.request()
    workshop.services.ledger.claim(request_id, run.run_id, timedelta(minutes=1))
    workshop.faults.refuse("page")
    with pytest.raises(StorageError):
        end_requests_of(workshop.instance, workshop.services, run, IN_DAGSTER)
    workshop.faults.allow("page")
    workshop.site.end_leases()
    workshop.end_dead_work()
    assert workshop.site.request(request_id).status == RequestStatus.CANCELLED
    assert [log.extra["outcome"] for log in workshop.site.logs()] == ["cancelled"]


@pytest.mark.parametrize(
    ("ran_for", "why"), [(10, Interruption.OPERATOR), (3601, Interruption.TOO_LONG), (None, Interruption.OPERATOR)]
)
@pytest.mark.parametrize("is_over", [False, True])
def test_a_run_that_took_too_long_was_not_cancelled_by_an_operator(
    ran_for: float | None, why: Interruption, is_over: bool
) -> None:
    """Whenever it is asked: for a run that has ended, the time until then counts."""
    began = ran_for and time.time() - ran_for - (86_400 if is_over else 0)
    run = unittest.mock.Mock(status=dg.DagsterRunStatus.CANCELED, tags={"dagster/max_runtime": "3600"})
    record = unittest.mock.Mock(
        dagster_run=run, start_time=began, end_time=began + ran_for if began and ran_for and is_over else None
    )
    assert interruption_of(record) is why


def test_a_limit_that_a_person_typed_wrongly_stops_no_sensor() -> None:
    run = unittest.mock.Mock(status=dg.DagsterRunStatus.CANCELED, tags={"dagster/max_runtime": "1h"})
    assert interruption_of(unittest.mock.Mock(dagster_run=run, start_time=1.0, end_time=2.0)) is Interruption.OPERATOR


def test_a_run_that_was_not_cancelled_was_interrupted_by_a_shutdown() -> None:
    run = unittest.mock.Mock(status=dg.DagsterRunStatus.STARTED, tags={"dagster/max_runtime": "3600"})
    assert interruption_of(unittest.mock.Mock(dagster_run=run, start_time=1.0, end_time=None)) is None


@pytest.mark.parametrize("kind", ["build", "archive"])
def test_what_took_too_long_says_so_and_is_tried_again(workshop: Workshop, kind: str) -> None:
    workshop.settings["attempts"] = 2
    job = build_experiment if kind == "build" else build_zipfile_of_videos
    run = workshop.instance.create_run_for_job(job, status=dg.DagsterRunStatus.CANCELED)
    if kind == "build":
        request_id = workshop.request()
        workshop.services.ledger.claim(request_id, run.run_id, timedelta(minutes=1))
    else:
        footage = Footage(workshop.site)
        footage.video(footage.response("accepted"))
        archives = workshop.services.archive_ledger
        request_id = archives.request(workshop.site.study_id, workshop.site.study_admin, ArchiveKind.ALL)
        archives.claim(request_id, run.run_id, timedelta(minutes=1))
    asked = end_of(workshop.services, run, Interruption.TOO_LONG)
    assert isinstance(asked, dg.RunRequest)
    result = end_dead_work_job.execute_in_process(
        run_config=asked.run_config, instance=workshop.instance, resources={"services": workshop.services}
    )
    assert result.success
    with workshop.site.sessions.begin() as session:
        request = session.get_one(BuildRequest if kind == "build" else ArchiveRequest, request_id)
        assert (request.status, request.failed_attempts[0]["code"]) == (RequestStatus.QUEUED, "run_too_long")


# -- runs that a person has cancelled, while the one reaction to that failed ------------------------------------------


@pytest.mark.parametrize("kind", ["build", "archive"])
def test_before_what_was_claimed_is_tried_again_dagster_is_asked_whether_it_was_cancelled(
    workshop: Workshop, kind: str
) -> None:
    workshop.settings["attempts"] = 3
    job = build_experiment if kind == "build" else build_zipfile_of_videos
    model = BuildRequest if kind == "build" else ArchiveRequest
    request_id = waiting(workshop, kind)
    ledger = workshop.services.ledger if kind == "build" else workshop.services.archive_ledger
    run = workshop.instance.create_run_for_job(job, status=dg.DagsterRunStatus.CANCELED)
    ledger.claim(request_id, run.run_id, timedelta(minutes=5))
    move(workshop, model, claimed_at=timedelta(minutes=3), lease_expires_at=timedelta(minutes=2))
    workshop.end_dead_work()
    assert became(workshop, model, request_id) == RequestStatus.CANCELLED


@pytest.mark.parametrize("kind", ["build", "archive"])
@pytest.mark.parametrize("cancelled", [True, False])
def test_before_what_was_submitted_is_submitted_again_dagster_is_asked_whether_it_was_cancelled(
    workshop: Workshop, kind: str, cancelled: bool
) -> None:
    sensor, job, model = {
        "build": (build_requests, build_experiment, BuildRequest),
        "archive": (archive_requests, build_zipfile_of_videos, ArchiveRequest),
    }[kind]
    request_id = waiting(workshop, kind)
    (asked,) = requests_of(workshop.tick(sensor))
    status = dg.DagsterRunStatus.CANCELED if cancelled else dg.DagsterRunStatus.FAILURE
    workshop.instance.create_run_for_job(job, tags=asked.tags, status=status)
    move(workshop, model, submitted_at=timedelta(minutes=10))
    again = workshop.tick(sensor)
    if cancelled:
        assert requests_of(again) == []
        assert became(workshop, model, request_id) == RequestStatus.CANCELLED
    else:
        assert len(requests_of(again)) == 1


def test_a_run_that_was_cancelled_for_an_earlier_submission_ends_no_later_one(workshop: Workshop) -> None:
    request_id = waiting(workshop, "build")
    (asked,) = requests_of(workshop.tick(build_requests))
    move(workshop, BuildRequest, submitted_at=timedelta(minutes=10))
    assert len(requests_of(workshop.tick(build_requests))) == 1
    workshop.instance.create_run_for_job(build_experiment, tags=asked.tags, status=dg.DagsterRunStatus.CANCELED)
    move(workshop, BuildRequest, submitted_at=timedelta(minutes=10))
    assert len(requests_of(workshop.tick(build_requests))) == 1
    assert became(workshop, BuildRequest, request_id) == RequestStatus.QUEUED


def waiting(workshop: Workshop, kind: str) -> int:
    """A request of this kind that waits."""
    if kind == "build":
        return workshop.request()
    footage = Footage(workshop.site)
    footage.video(footage.response("accepted"))
    return workshop.services.archive_ledger.request(workshop.site.study_id, workshop.site.study_admin, ArchiveKind.ALL)


def became(workshop: Workshop, model: type[BuildRequest | ArchiveRequest], request_id: int) -> str:
    with workshop.site.sessions.begin() as session:
        return session.get_one(model, request_id).status


# -- mails ------------------------------------------------------------------------------------------------------------


def test_due_mails_start_one_run_that_delivers_them_all(workshop: Workshop) -> None:
    assert "no mail is due" in reason_of(workshop.tick(outbox))
    assert workshop.build().success
    assert len(requests_of(workshop.tick(outbox))) == 1
    run = workshop.instance.create_run_for_job(deliver_mails, status=dg.DagsterRunStatus.STARTED)
    assert "on its way" in reason_of(workshop.tick(outbox))
    workshop.instance.delete_run(run.run_id)
    done = deliver_mails.execute_in_process(instance=workshop.instance, resources={"services": workshop.services})
    assert done.success
    assert {mail.status for mail in workshop.site.mails()} == {"sent"}
    assert "no mail is due" in reason_of(workshop.tick(outbox))


# -- what an operator watches -----------------------------------------------------------------------------------------

WATCHED_ASSETS = ("request_queue", "build_outcomes", "archive_outcomes", "outbox", "workers")


def verdicts(result: Any) -> dict[str, bool]:
    """What was found of each asset."""
    return {
        event.asset_key.to_user_string(): event.passed
        for event in result.asset_events
        if isinstance(event, dg.AssetCheckEvaluation)
    }


def test_the_watch_reports_at_first_and_then_what_changes(workshop: Workshop) -> None:
    first = workshop.tick(watch)
    assert verdicts(first) == dict.fromkeys(WATCHED_ASSETS, True)
    assert verdicts(workshop.tick(watch, first.cursor)) == {}
    workshop.request()
    second = workshop.tick(watch, first.cursor)
    assert list(verdicts(second)) == ["request_queue"]


def test_the_watch_warns_of_what_needs_somebody(workshop: Workshop) -> None:
    workshop.settings["attempts"] = 1
    user, lease, dead = workshop.site.study_admin, timedelta(minutes=1), []
    builds, archives, footage = workshop.ledger, workshop.services.archive_ledger, Footage(workshop.site)
    for number in range(5):
        study = workshop.site.another_study(f"Study {number}", State.APPROVED)
        dead.append((builds, builds.claim(builds.request(study, user, PREVIEW), "a run", lease)))
        footage.video(footage.response("accepted", study_id=study))
        dead.append((archives, archives.claim(archives.request(study, user, ArchiveKind.ALL), "a run", lease)))
    for model in (BuildRequest, ArchiveRequest):
        move(workshop, model, claimed_at=timedelta(minutes=3), lease_expires_at=timedelta(minutes=2))
    workshop.end_dead_work()
    workshop.request()
    move(workshop, BuildRequest, next_attempt_at=timedelta(hours=2))
    with workshop.site.sessions.begin() as session:
        session.execute(update(OutboxMail).values(status=MailStatus.FAILED, last_error="refused"))
    seen = workshop.tick(watch)
    assert verdicts(seen) == dict.fromkeys(WATCHED_ASSETS, False)
    told = {
        event.asset_key.to_user_string(): event.description
        for event in seen.asset_events
        if isinstance(event, dg.AssetCheckEvaluation)
    }
    assert told["build_outcomes"] == "of 5 builds within a day, 100% failed by the platform's fault"
    assert told["archive_outcomes"] == "of 5 archives within a day, 100% failed by the platform's fault"
    assert told["workers"] == "10 workers stopped answering within a day"
    assert "mail list" in told["outbox"]


# -- history ----------------------------------------------------------------------------------------------------------


def test_the_newest_success_of_each_study_outlives_the_history(workshop: Workshop) -> None:
    assert workshop.build(DEPLOYMENT).success
    workshop.site.set_state(State.PAUSED)
    assert workshop.build(DEPLOYMENT).success
    prune = {"ops": {"prune": {"config": {"older_than_days": 1e-9}}}}
    assert prune_runs.execute_in_process(instance=workshop.instance, run_config=prune).success
    key = dg.AssetKey("experiment_deployment")
    assert workshop.instance.get_materialized_partitions(key) == {str(workshop.site.study().uuid)}
    assert len(workshop.instance.fetch_materializations(key, limit=10).records) == 1


def test_old_runs_are_forgotten_and_new_and_running_ones_stay(workshop: Workshop) -> None:
    for status in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED):
        workshop.instance.create_run_for_job(build_experiment, status=status)

    def prune(**config: Any) -> int:
        run = prune_runs.execute_in_process(
            instance=workshop.instance, run_config={"ops": {"prune": {"config": config}}}
        )
        (event,) = [event for event in run.events_for_node("prune") if event.is_successful_output]
        return int(event.step_output_data.metadata["runs"].value)

    assert prune(older_than_days=1) == 0
    assert prune(older_than_days=1e-9, dry_run=True) >= 2
    assert prune(older_than_days=1e-9) >= 2
    statuses = {run.status for run in workshop.instance.get_runs()}
    assert dg.DagsterRunStatus.STARTED in statuses
    assert dg.DagsterRunStatus.FAILURE not in statuses


def test_the_files_of_a_forgotten_run_go_with_it(tmp_path: Path) -> None:
    prune = {"ops": {"prune": {"config": {"older_than_days": 1e-9}}}}
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        first = prune_runs.execute_in_process(instance=instance).run_id
        stored = Path(instance.storage_directory()) / first
        stored.mkdir(parents=True, exist_ok=True)
        (stored / "a result").write_text("x")
        events = tmp_path / "history" / "runs"
        assert list(events.glob(f"{first}.db*"))
        second = prune_runs.execute_in_process(instance=instance, run_config=prune)
        assert second.success
        assert not list(events.glob(f"{first}.db*"))
        assert not stored.exists()
        assert list(events.glob(f"{second.run_id}.db*")), "those of another run stay"


# -- outages ----------------------------------------------------------------------------------------------------------


class Unreachable(Services):
    """A platform with its database alone: a sensor that asks for anything else fails the test."""

    def _wait(self) -> Any:
        raise AssertionError("a sensor has asked for a service that may hang")

    bucket = property(_wait)
    archives = property(_wait)
    videos = property(_wait)
    github = property(_wait)
    checkouts = property(_wait)
    builder = property(_wait)
    docker_builder = property(_wait)
    transport = property(_wait)


SENSORS = {sensor.name: sensor for sensor in defs.sensors or [] if isinstance(sensor, dg.SensorDefinition)}


@pytest.mark.parametrize("name", sorted(SENSORS))
def test_no_sensor_asks_for_a_bucket_an_engine_github_or_a_mail_server(workshop: Workshop, name: str) -> None:
    """With work of every kind to be done: a build and an archive that died, one that waits, a mail, a list to write."""
    runs = {job.name: workshop.instance.create_run_for_job(job) for job in (build_experiment, build_zipfile_of_videos)}
    workshop.ledger.claim(workshop.request(), runs["build_experiment"].run_id, timedelta(minutes=5))
    footage = Footage(workshop.site)
    footage.video(footage.response("accepted"))
    archive = workshop.services.archive_ledger.request(
        workshop.site.study_id, workshop.site.study_admin, ArchiveKind.ALL
    )
    run_id = runs["build_zipfile_of_videos"].run_id
    workshop.services.archive_ledger.claim(archive, run_id, timedelta(minutes=5))
    workshop.site.end_leases()
    move(workshop, ArchiveRequest, lease_expires_at=timedelta(minutes=1))
    other = workshop.site.another_study("Another", State.SUBMITTED)
    workshop.ledger.request(other, workshop.site.study_admin, PREVIEW)
    with workshop.site.sessions.begin() as session:
        study = session.get_one(Study, other)
        transition_as_read(session, study, "approve", session.get_one(User, workshop.site.site_admin))
    real = workshop.services
    services = Unreachable(real.settings)
    services.__dict__["engine"] = workshop.engine
    sensor = SENSORS[name]
    if isinstance(sensor, RunStatusSensorDefinition):
        for ended in runs.values():
            asked = end_of(services, ended, Interruption.OPERATOR if name == "cancelled_runs" else None)
            assert isinstance(asked, dg.RunRequest)
        return
    context = dg.build_sensor_context(instance=workshop.instance, resources={"services": services}, definitions=defs)
    with context:
        ticked = sensor.evaluate_tick(context)
    if name in ("build_requests", "leases", "outbox", "public_list"):
        assert len(ticked.run_requests or []) == 1
