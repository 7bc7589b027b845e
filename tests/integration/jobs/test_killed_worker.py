"""A worker that is killed, or sleeps too long: the next start rolls forward if its page is live, else back for good."""

from __future__ import annotations

import multiprocessing
import os
import signal
import unittest.mock
from collections.abc import Callable
from datetime import timedelta

import pytest

from domain.errors import LeaseLost
from domain.models import BuildKind, BuildRequest, RequestStatus, State
from ember_build.errors import BuildPlatformError
from lookit_ops.deployments.commit_point import fence
from lookit_ops.deployments.manifest import folder_of
from lookit_ops.runs.reconcile import end_build_of_run, reconcile_builds
from lookit_ops.storage.errors import GenerationMismatch, NoAnswer
from tests.support.leases import give_up
from tests.support.workshop import GOOD_BUILD, Workshop


def kill(_key: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def build_in_a_process_that_is_killed(workshop: Workshop, plan: Callable[[Workshop], None]) -> int:
    """Run a deployment in a process of its own, which the plan lets die by SIGKILL; the request's id."""
    request_id = workshop.request()
    workshop.engine.dispose()

    def worker() -> None:
        workshop.engine.dispose(close=False)  # connections of the parent are not ours to use
        plan(workshop)
        workshop.run(request_id=request_id)

    process = multiprocessing.get_context("fork").Process(target=worker)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    return request_id


def test_killed_between_page_and_finish_the_next_start_rolls_forward(workshop: Workshop) -> None:
    request_id = build_in_a_process_that_is_killed(workshop, lambda there: there.faults.after("write_page", kill))
    assert workshop.live(), "the page was written"
    assert workshop.site.study().state == State.DEPLOYING
    workshop.site.end_leases()

    workshop.end_dead_work()

    assert workshop.site.study().state == State.ACTIVE
    assert workshop.site.request(request_id).status == RequestStatus.SUCCEEDED
    (log,) = workshop.site.logs()
    assert (log.state_before, log.state_after) == ("approved", "active")
    assert "index.html was live when its worker stopped" in log.extra["note"]
    told = [mail for mail in workshop.site.mails() if mail.event == f"build_request:{request_id}:succeeded"]
    assert len(told) == 2


@pytest.mark.parametrize(
    ("method", "key"), [("put", "assets/"), ("put", "robots.txt"), ("put", "manifest"), ("page", "index.html")]
)
def test_killed_before_the_page_the_next_start_rolls_back(workshop: Workshop, method: str, key: str) -> None:
    assert workshop.build().success
    workshop.site.set_state(State.APPROVED)
    live = workshop.live()
    workshop.build_by(GOOD_BUILD.replace("var version", "var next_version"))

    def plan(there: Workshop) -> None:
        there.faults.after(method, lambda of: kill(of) if key in of else None)

    request_id = build_in_a_process_that_is_killed(workshop, plan)
    assert reconcile_builds(workshop.services).expired == (), "a lease that has not ended is not touched"
    workshop.site.end_leases()
    assert reconcile_builds(workshop.services).expired == (request_id,)

    assert workshop.site.study().state == State.APPROVED
    assert workshop.live() == live
    assert workshop.site.request(request_id).error_code == "worker_died"
    assert len(workshop.site.logs()) == 2
    assert workshop.build().success


@pytest.mark.parametrize("is_first", [True, False], ids=["the first deployment", "a later deployment"])
def test_a_worker_that_slept_before_its_page_can_no_longer_write_it(workshop: Workshop, is_first: bool) -> None:
    if not is_first:
        assert workshop.build().success
        workshop.site.set_state(State.PAUSED)
    before, live = workshop.site.study(), workshop.live()
    told = len(workshop.site.mails())
    workshop.build_by(GOOD_BUILD.replace("var version", "var next_version"))

    def sleep_until_given_up(_key: str) -> None:
        workshop.faults.allow("write_page")
        assert len(give_up(workshop.site.end_leases, lambda: reconcile_builds(workshop.services).expired)) == 1

    workshop.faults.before("write_page", sleep_until_given_up)
    assert not workshop.build().success

    assert workshop.site.study().state == before.state
    if is_first:
        assert b"This study is not available" in workshop.live()["index.html"]
    else:
        assert workshop.live() == live
    assert [log.extra["outcome"] for log in workshop.site.logs()][-1:] == ["failed"]
    assert {mail.template for mail in workshop.site.mails()[told:]} == {"build_failed"}
    assert reconcile_builds(workshop.services).rolled_forward == ()
    assert workshop.build().success, "the next build starts from the page as it is now"
    assert any(b"next_version" in content for content in workshop.live().values())


def test_a_bucket_that_cannot_be_fenced_keeps_the_build_open(workshop: Workshop) -> None:
    request_id = workshop.request()
    workshop.ledger.claim(request_id, "a run", timedelta(minutes=5))
    workshop.site.end_leases()
    workshop.faults.refuse("write_page")
    assert reconcile_builds(workshop.services).failed == (request_id,)
    assert workshop.site.study().state == State.DEPLOYING
    workshop.faults.allow("write_page")
    assert reconcile_builds(workshop.services).expired == (request_id,)


def test_a_fence_that_is_overtaken_looks_again(workshop: Workshop) -> None:
    """The sleeper wakes between the reconciler's look and its fence: its page is live, so the build is finished."""
    request_id = workshop.request()

    def write() -> None:
        folder, claim = (
            workshop.folder().relative_to(workshop.services.settings.local_bucket),
            workshop.site.request(request_id),
        )
        page = {"request_id": str(request_id), "fencing_token": str(claim.fencing_token), "manifest": ""}
        kinds = {"content_type": "text/html", "cache_control": "no-cache"}
        workshop.services.bucket.write_page(f"{folder}/index.html", b"live", metadata=page, if_generation=0, **kinds)

    def wake_up(_key: str) -> None:
        workshop.faults.allow("write_page")
        write()

    workshop.ledger.claim(request_id, "a run", timedelta(minutes=5))
    workshop.site.end_leases()
    workshop.faults.before("write_page", wake_up)
    assert reconcile_builds(workshop.services).rolled_forward == (request_id,)
    assert workshop.site.study().state == State.ACTIVE


def test_a_deployment_whose_own_files_are_gone_stops_no_other_build(workshop: Workshop) -> None:
    assert workshop.build().success
    workshop.site.set_state(State.APPROVED)
    workshop.build_by(GOOD_BUILD.replace("User-agent: *", "User-agent: nobody"))
    workshop.faults.refuse("copy")
    assert not workshop.build().success
    workshop.faults.allow("copy")
    for manifest in workshop.services.settings.local_bucket.rglob("manifest.json"):
        manifest.unlink()
    workshop.site.end_leases()

    workshop.end_dead_work()
    assert workshop.site.study().state == State.ACTIVE
    assert "deploy again" in workshop.site.logs()[-1].extra["note"]


def test_one_build_that_cannot_be_ended_stops_no_other(workshop: Workshop) -> None:
    first = workshop.request()
    workshop.ledger.claim(first, "a run", timedelta(minutes=5))
    other = workshop.site.another_study("Another", State.APPROVED)
    second = workshop.ledger.request(other, workshop.site.study_admin, BuildKind.PREVIEW)
    workshop.ledger.claim(second, "another run", timedelta(minutes=5))
    workshop.site.end_leases()
    workshop.faults.refuse("page", str(workshop.site.study().uuid))
    done = reconcile_builds(workshop.services)
    assert (done.failed, done.expired) == ((first,), (second,))
    third = workshop.ledger.request(other, workshop.site.study_admin, BuildKind.PREVIEW)
    assert workshop.run(request_id=third).success


def lose_the_answer(workshop: Workshop, key: str) -> None:
    """The write's answer is lost, and nobody can be asked: neither the page's reader nor a fence gets through."""
    workshop.faults.refuse("page", "index.html")
    raise NoAnswer(f"whether {key} was written is not known")


def answer_again(workshop: Workshop) -> None:
    workshop.faults.allow("page")
    workshop.faults.before("write_page", lambda _key: None)
    workshop.faults.after("write_page", lambda _key: None)


@pytest.mark.parametrize("storage_is_back", [True, False], ids=["storage back at once", "storage back later"])
def test_without_an_answer_the_request_stays_open_until_the_page_is_fenced(
    workshop: Workshop, storage_is_back: bool
) -> None:
    """The page's write is on its way still: a build that was called a failure now would go live later."""
    assert workshop.build().success
    live, generation = workshop.live(), page_generation(workshop)
    workshop.build_by(GOOD_BUILD.replace("var version", "var next_version"))
    logs, told = len(workshop.site.logs()), len(workshop.site.mails())

    def lose(key: str) -> None:
        if storage_is_back:  # the fence is refused, and right after it the page can be read: it is the old one yet
            workshop.faults.refuse("write_page")
            raise NoAnswer(f"whether {key} was written is not known")
        lose_the_answer(workshop, key)

    workshop.faults.before("write_page", lose)
    request_id = workshop.request()
    assert not workshop.run(request_id=request_id).success

    if not storage_is_back:
        workshop.faults.allow("page")
    workshop.faults.allow("write_page")
    assert workshop.site.request(request_id).status == RequestStatus.RUNNING
    assert workshop.site.study().state == State.DEPLOYING
    assert (len(workshop.site.logs()), len(workshop.site.mails())) == (logs, told)
    assert not reconcile_builds(workshop.services), "a lease that has not ended is not touched"
    workshop.site.end_leases()
    assert reconcile_builds(workshop.services).expired == (request_id,)
    assert (workshop.site.study().state, len(workshop.site.logs())) == (State.ACTIVE, logs + 1)
    with pytest.raises(GenerationMismatch):  # the write arrives at last
        late_write(workshop, generation)
    assert workshop.live() == live


def test_without_an_answer_to_a_write_that_went_through_the_build_is_finished(workshop: Workshop) -> None:
    request_id = workshop.request()
    workshop.faults.after("write_page", lambda key: lose_the_answer(workshop, key))
    assert not workshop.run(request_id=request_id).success
    assert workshop.site.request(request_id).status == RequestStatus.RUNNING
    answer_again(workshop)
    workshop.site.end_leases()
    assert reconcile_builds(workshop.services).rolled_forward == (request_id,)
    assert workshop.site.study().state == State.ACTIVE
    assert {mail.template for mail in workshop.site.mails()} == {"build_succeeded"}


def page_generation(workshop: Workshop) -> int:
    page = workshop.faults.real.page(f"experiments/{workshop.site.study().uuid}/index.html")
    return page.generation if page else 0


def late_write(workshop: Workshop, generation: int) -> None:
    workshop.services.bucket.write_page(
        f"experiments/{workshop.site.study().uuid}/index.html",
        b"late",
        content_type="text/html",
        cache_control="no-cache",
        metadata={},
        if_generation=generation,
    )


def test_a_reconciler_that_comes_late_does_not_fence_the_build_that_was_begun_anew(workshop: Workshop) -> None:
    """It has read the list of dead claims; another one ends and restarts the build before it writes its fence."""
    workshop.settings["attempts"] = 3
    request_id = workshop.request()
    dead = workshop.ledger.claim(request_id, "a run that died", timedelta(minutes=5))
    workshop.site.end_leases()
    (listed,) = workshop.services.ledger.running(expired_only=True)
    assert listed == dead
    assert reconcile_builds(workshop.services).expired == (request_id,)
    generations = []

    def be_late(_key: str) -> None:
        workshop.faults.before("put", lambda _key: None)
        with pytest.raises(LeaseLost):
            workshop.services.ledger.take_over(listed, timedelta(minutes=1), expired_only=True)
        assert end_build_of_run(workshop.services, "a run that died", None) is None
        # Even one that has passed that question, and is as late as can be, changes nothing in the bucket.
        folder = folder_of(dead.kind, dead.study_uuid)
        for _ in range(2):
            assert fence(workshop.services.bucket, folder, dead.page_owner, dead.fencing_token) is None
            page = workshop.services.bucket.page(f"{folder}/index.html")
            generations.append(page.generation if page else 0)

    workshop.faults.before("put", be_late)
    move_on(workshop, request_id)
    assert workshop.run(request_id=request_id).success
    assert generations[0] == generations[1] > 0
    assert workshop.site.study().state == State.ACTIVE


def test_a_worker_that_wakes_up_after_its_claim_was_taken_over_holds_nothing(workshop: Workshop) -> None:
    request_id = workshop.request()
    claim = workshop.ledger.claim(request_id, "a run", timedelta(minutes=5))
    held = workshop.services.ledger.take_over(claim, timedelta(minutes=5), expired_only=False)
    for act in (
        lambda: workshop.ledger.heartbeat(claim, timedelta(minutes=5)),
        lambda: workshop.ledger.finish(claim, {}),
        lambda: workshop.ledger.take_over(claim, timedelta(minutes=5), expired_only=False),
    ):
        with pytest.raises(LeaseLost):
            act()
    workshop.ledger.finish(held, {})
    assert workshop.site.request(request_id).status == RequestStatus.SUCCEEDED


def move_on(workshop: Workshop, request_id: int) -> None:
    """Let the time of the next attempt have come."""
    with workshop.site.sessions.begin() as session:
        session.get_one(BuildRequest, request_id).next_attempt_at = session.get_one(
            BuildRequest, request_id
        ).requested_at


def test_an_engine_that_hangs_keeps_no_dead_build_open(workshop: Workshop) -> None:
    """All have their end before the engine is asked for what they left."""
    first = workshop.request()
    workshop.ledger.claim(first, "a run", timedelta(minutes=5))
    other = workshop.site.another_study("Another", State.APPROVED)
    second = workshop.ledger.request(other, workshop.site.study_admin, BuildKind.PREVIEW)
    workshop.ledger.claim(second, "another run", timedelta(minutes=5))
    workshop.site.end_leases()
    open_while_asked = []

    def ask_the_engine(_is_running: object) -> None:
        open_while_asked.append(len(workshop.services.ledger.running(expired_only=False)))
        raise BuildPlatformError("the engine did not answer within 120 s")

    with unittest.mock.patch.object(workshop.services.builder, "remove_orphans", ask_the_engine):
        assert reconcile_builds(workshop.services).expired == (first, second)
    assert open_while_asked == [0]
