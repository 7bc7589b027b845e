"""A bucket that hangs in the middle of a run: a cancellation ends the run in seconds, and nothing half done counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from dagster import DagsterExecutionInterruptedError

from domain.models import ArchiveRequest, BuildKind, RequestStatus, State
from lookit_ops.deployments.commit_point import fence
from lookit_ops.deployments.manifest import folder_of, live_deployment
from lookit_ops.runs.build import BuildRun
from lookit_ops.runs.interruption import Interruption
from lookit_ops.storage.cancellable import CancellableExperimentBucket
from lookit_ops.storage.errors import NoAnswer
from lookit_ops.storage.local.archives import LocalArchiveBucket
from lookit_ops.storage.local.videos import LocalVideoBucket
from lookit_ops.storage.parallel import in_parallel
from tests.support.faulty_bucket import FaultyBucket
from tests.support.reels import Reels
from tests.support.workshop import GOOD_BUILD, Workshop

SECONDS = 2 + 2 + 2
"""A heartbeat is at most 2 s away, 2 s are left then, and the machine may be busy."""


@contextmanager
def cancelled_when(cancel: Callable[[], object], reached: Callable[[], bool], ended: list[float]) -> Iterator[None]:
    """Cancel once the call that hangs was made; `ended` gets the seconds from there to the end of the block."""
    began: list[float] = []

    def wait_and_cancel() -> None:
        deadline = time.monotonic() + 60
        while not reached() and time.monotonic() < deadline:
            time.sleep(0.02)
        began.append(time.monotonic())
        cancel()

    canceller = threading.Thread(target=wait_and_cancel)
    canceller.start()
    yield
    canceller.join()
    ended.append(time.monotonic() - began[0])


@pytest.mark.parametrize(
    ("method", "key"),
    [("page", "index.html"), ("files", ""), ("put", "assets/"), ("put", "robots.txt"), ("put", "manifest.json")],
)
def test_a_build_is_cancelled_before_its_page_is_written(workshop: Workshop, method: str, key: str) -> None:
    request_id = workshop.request()
    released = workshop.faults.hang(method, key)
    ended: list[float] = []
    with cancelled_when(
        lambda: workshop.ledger.cancel(request_id, workshop.site.study_admin),
        lambda: any(name == method and key in asked for name, asked in workshop.faults.calls),
        ended,
    ):
        assert not workshop.run(request_id=request_id).success
    assert ended[0] < SECONDS
    assert workshop.site.request(request_id).status == RequestStatus.CANCELLED
    assert workshop.site.study().state == State.APPROVED
    released.set()
    assert workshop.live() == {}


def test_a_build_whose_page_hangs_is_left_to_the_reconciler_and_not_tried_again(workshop: Workshop) -> None:
    workshop.settings["attempts"] = 3
    request_id = workshop.request()
    released = workshop.faults.hang("write_page", "index.html")
    ended: list[float] = []
    with cancelled_when(
        lambda: workshop.ledger.cancel(request_id, workshop.site.study_admin),
        lambda: any(name == "write_page" for name, _ in workshop.faults.calls),
        ended,
    ):
        assert not workshop.run(request_id=request_id).success
    assert ended[0] < SECONDS
    assert workshop.site.request(request_id).status == RequestStatus.RUNNING, "the page may yet be written"
    assert workshop.site.study().state == State.DEPLOYING, "so nobody else builds"
    workshop.faults.allow("write_page")
    workshop.site.end_leases()
    assert workshop.end_dead_work() == [f"builds given up: {request_id}"]
    released.set()  # and the write arrives after all
    time.sleep(0.5)
    live = live_deployment(workshop.faults.real, folder_of(BuildKind.DEPLOYMENT, workshop.site.study().uuid))
    assert live is not None
    assert live.request_id == "", "the fence is there, and keeps it out"
    assert workshop.site.request(request_id).status == RequestStatus.CANCELLED
    assert workshop.site.study().state == State.APPROVED


def test_a_build_whose_page_went_live_counts(workshop: Workshop) -> None:
    """The bucket hangs with the answer, not with the write."""
    request_id = workshop.request()
    hung = threading.Event()
    workshop.faults.after("write_page", lambda key: hung.wait(60 if key.endswith("index.html") else 0))
    ended: list[float] = []
    with cancelled_when(
        lambda: workshop.ledger.cancel(request_id, workshop.site.study_admin),
        lambda: workshop.live() != {},
        ended,
    ):
        workshop.run(request_id=request_id)
    assert ended[0] < SECONDS
    hung.set()
    workshop.site.end_leases()
    workshop.end_dead_work()
    assert workshop.site.request(request_id).status == RequestStatus.SUCCEEDED
    assert workshop.site.study().state == State.ACTIVE
    assert workshop.live()


def test_a_cancellation_while_public_names_are_copied_comes_too_late(workshop: Workshop) -> None:
    """The page is live then: the deployment counts, and families get all of its files."""
    assert workshop.build(BuildKind.DEPLOYMENT).success
    workshop.site.set_state(State.PAUSED)
    public = workshop.folder() / "robots.txt"
    assert public.read_text() == "User-agent: *\n"
    workshop.build_by(f"{GOOD_BUILD}\necho 'User-agent: new' > \"$OUTPUT_DIR/robots.txt\"")
    request_id = workshop.request()
    workshop.faults.before("copy", lambda _key: time.sleep(4))
    ended: list[float] = []
    with cancelled_when(
        lambda: workshop.ledger.cancel(request_id, workshop.site.study_admin),
        lambda: any(name == "copy" for name, _ in workshop.faults.calls),
        ended,
    ):
        workshop.run(request_id=request_id)
    assert workshop.site.request(request_id).status == RequestStatus.SUCCEEDED
    assert workshop.site.study().state == State.ACTIVE
    assert public.read_text() == "User-agent: new\n"


def test_so_it_does_when_the_answer_to_the_page_was_lost(workshop: Workshop) -> None:
    """Only a look at the page tells then that it is live."""
    assert workshop.build(BuildKind.DEPLOYMENT).success
    public = workshop.folder() / "robots.txt"
    workshop.site.set_state(State.PAUSED)
    workshop.build_by(f"{GOOD_BUILD}\necho 'User-agent: new' > \"$OUTPUT_DIR/robots.txt\"")
    request_id = workshop.request()

    def lose(key: str) -> None:
        raise NoAnswer(f"the answer about {key} was lost")

    workshop.faults.after("write_page", lose)
    workshop.faults.before("copy", lambda _key: time.sleep(4))
    with cancelled_when(
        lambda: workshop.ledger.cancel(request_id, workshop.site.study_admin),
        lambda: any(name == "copy" for name, _ in workshop.faults.calls),
        [],
    ):
        workshop.run(request_id=request_id)
    assert workshop.site.request(request_id).status == RequestStatus.SUCCEEDED
    assert workshop.site.study().state == State.ACTIVE
    assert public.read_text() == "User-agent: new\n"


def test_a_fence_is_no_reason_to_wait_for_a_bucket_that_hangs() -> None:
    stop, never = threading.Event(), threading.Event()
    stop.set()
    bucket = CancellableExperimentBucket(lambda: _Hanging(never), stop)  # ty: ignore[invalid-argument-type]
    assert fence(bucket, "folder", "7", 7) is None
    began = time.monotonic()
    with pytest.raises(NoAnswer):
        bucket.read("a")
    assert time.monotonic() - began < SECONDS
    never.set()


def test_an_operator_who_ends_the_run_in_dagster_while_the_page_hangs_is_remembered(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.settings["attempts"] = 3
    request_id = workshop.request()
    sessions: list[BuildRun] = []
    opened = BuildRun.open

    def open_session(self: BuildRun) -> None:
        sessions.append(self)
        self._interruption = lambda: Interruption.OPERATOR
        opened(self)

    monkeypatch.setattr(BuildRun, "open", open_session)

    def interrupt(_key: str) -> None:
        workshop.faults.hang("page", "index.html")
        raise DagsterExecutionInterruptedError

    workshop.faults.before("write_page", interrupt)
    began = time.monotonic()
    workshop.run(request_id=request_id)
    assert time.monotonic() - began < 30
    assert sessions[0].stop.is_set()
    assert workshop.site.request(request_id).status == RequestStatus.RUNNING
    for method in ("write_page", "page"):
        workshop.faults.allow(method)
    workshop.site.end_leases()
    workshop.end_dead_work()
    assert workshop.site.request(request_id).status == RequestStatus.CANCELLED


def test_an_interruption_does_not_wait_for_the_threads_beside_it() -> None:
    stop, never = threading.Event(), threading.Event()
    bucket = CancellableExperimentBucket(lambda: FaultyBucket(_Hanging(never)), stop)  # ty: ignore[invalid-argument-type]
    answers: list[BaseException] = []

    def read() -> None:
        try:
            bucket.read("a")
        except NoAnswer as error:
            answers.append(error)
            raise

    acts = [lambda: None, read, read]
    began = time.monotonic()
    under_way = in_parallel(acts, 4)
    next(under_way)
    with pytest.raises(DagsterExecutionInterruptedError):
        under_way.throw(DagsterExecutionInterruptedError())  # ty: ignore[unresolved-attribute] - a generator
    assert time.monotonic() - began < 1 + SECONDS
    stop.set()
    never.set()


class _Hanging:
    name = "hanging"

    def __init__(self, never: threading.Event) -> None:
        self.never = never

    def read(self, _key: str) -> bytes:
        self.never.wait(30)
        return b""

    def page(self, _key: str) -> None:
        """There is none."""

    def write_page(self, _key: str, _content: bytes, **_named: object) -> int:
        return 1


@pytest.mark.parametrize("where", ["list", "read", "part", "compose", "delete"])
def test_an_archive_hears_its_cancellation(reels: Reels, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reels.film(2)
    hung, reached = threading.Event(), threading.Event()
    owner, method = {
        "list": (LocalVideoBucket, "videos"),
        "read": (LocalVideoBucket, "blocks"),
        "part": (LocalArchiveBucket, "put_part"),
        "compose": (LocalArchiveBucket, "compose"),
        "delete": (LocalArchiveBucket, "delete"),
    }[where]
    real = getattr(owner, method)

    def hang(*arguments: Any, **named: Any) -> Any:
        reached.set()
        hung.wait(60)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, method, hang)
    ledger, ended = reels.services.archive_ledger, []
    request_id = reels.request()
    with cancelled_when(lambda: ledger.cancel(request_id, reels.site.study_admin), reached.is_set, ended):
        reels.run(request_id=request_id)
    hung.set()
    assert ended[0] < SECONDS
    with reels.site.sessions.begin() as session:
        status = session.get_one(ArchiveRequest, request_id).status
    assert status == (RequestStatus.SUCCEEDED if where == "delete" else RequestStatus.CANCELLED)
