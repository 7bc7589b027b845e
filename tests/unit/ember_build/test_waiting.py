"""Waits hear a cancellation within a fraction of a second, and else return what they waited for."""

from __future__ import annotations

import fcntl
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from ember_build.errors import BuildCancelled
from ember_build.local.toolchain import install_toolchain, toolchain_key
from ember_build.waiting import Grace, answer_of, lock


@pytest.fixture
def stop() -> threading.Event:
    """An event that is set after half a second."""
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    return stop


def test_an_answer_and_an_error_arrive() -> None:
    def fail() -> None:
        raise KeyError("what went wrong")

    for cancelled in (None, threading.Event()):
        assert answer_of(lambda: 7, cancelled, "it asked") == 7
        with pytest.raises(KeyError, match="what went wrong"):
            answer_of(fail, cancelled, "it asked")


def test_an_answer_that_does_not_come_is_left_alone(stop: threading.Event) -> None:
    never = threading.Event()
    began = time.monotonic()
    with pytest.raises(BuildCancelled, match="Cancelled while it asked"):
        answer_of(lambda: never.wait(30), stop, "it asked")
    assert time.monotonic() - began < 0.5 + 2
    never.set()


def test_what_is_under_way_when_the_stop_comes_has_a_moment_left(stop: threading.Event) -> None:
    grace = Grace(stop)

    def answer() -> str:
        stop.wait()
        time.sleep(0.3)
        return "just in time"

    assert answer_of(answer, grace, "it asked") == "just in time"
    began = time.monotonic()
    with pytest.raises(BuildCancelled):
        answer_of(threading.Event().wait, grace, "it asked")
    assert time.monotonic() - began < 2


def test_a_lock_that_another_holds_is_waited_for_until_the_cancellation(stop: threading.Event, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as held, path.open("w") as wanted:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BuildCancelled, match="Cancelled while it waited"):
            lock(wanted, stop, "it waited")
        fcntl.flock(held, fcntl.LOCK_UN)
        lock(wanted, stop, "it waited")
        lock(wanted, None, "it waited")


def test_a_build_that_waits_for_the_tools_of_another_hears_its_cancellation(
    stop: threading.Event, tmp_path: Path
) -> None:
    path = tmp_path / "toolchain" / f"{toolchain_key()}.lock"
    path.parent.mkdir()
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(BuildCancelled, match="another one installed its tools"):
            install_toolchain(tmp_path, print, timedelta(minutes=1), stop)
        assert time.monotonic() - began < 0.5 + 2
