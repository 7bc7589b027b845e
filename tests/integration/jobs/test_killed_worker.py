"""A worker that is killed: the next start rolls forward if its page is live, and back if it is not."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable

import pytest

from domain.models import BuildKind, RequestStatus, State
from lookit_ops.reconcile import reconcile_builds
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

    other = workshop.site.another_study("The next start", State.APPROVED)
    assert workshop.run(request_id=workshop.ledger.request(other, workshop.site.study_admin, BuildKind.PREVIEW)).success

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
    assert reconcile_builds(workshop.platform).expired == (), "a lease that has not ended is not touched"
    workshop.site.end_leases()
    assert reconcile_builds(workshop.platform).expired == (request_id,)

    assert workshop.site.study().state == State.APPROVED
    assert workshop.live() == live
    assert workshop.site.request(request_id).error_code == "worker_died"
    assert len(workshop.site.logs()) == 2
    assert workshop.build().success
