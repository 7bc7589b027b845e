"""Waits that hear a cancellation: for a lock on a file, and for an answer that may never come."""

from __future__ import annotations

import fcntl
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Protocol, TypeVar

from ember_build.errors import BuildCancelled

T = TypeVar("T")

_POLL_SECONDS = 0.1
GRACE_SECONDS = 1.5


class Cancelled(Protocol):
    """What tells that work is to end."""

    def is_set(self) -> bool: ...


class Grace:
    """Set some seconds after `stop` is: a service that answers may finish what was begun, one that hangs is left."""

    def __init__(self, stop: threading.Event, seconds: float = GRACE_SECONDS) -> None:
        self._stop = stop
        self._seconds = seconds
        self._since: float | None = None

    def is_set(self) -> bool:
        """Whether the time is over."""
        if not self._stop.is_set():
            return False
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return now - self._since >= self._seconds


def lock(file: IO[Any], cancelled: threading.Event | None, what: str) -> None:
    """Lock a file; the operating system lets go of it when it is closed. `what` completes "cancelled while …".

    Raises:
        BuildCancelled: `cancelled` was set while another process held the lock.
    """
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if cancelled is None:
                time.sleep(_POLL_SECONDS)
            elif cancelled.wait(_POLL_SECONDS):
                raise BuildCancelled(f"Cancelled while {what}.") from None
        else:
            return


def answer_of(ask: Callable[[], T], cancelled: Cancelled | None, what: str) -> T:
    """Return what `ask` returns, and raise what it raises. `what` completes "cancelled while …".

    After a cancellation the question goes on in a thread of its own until it is answered or runs into its timeout, and
    its answer is dropped: so it must be one that may be left alone.

    Raises:
        BuildCancelled: `cancelled` was set before the answer came.
    """
    if cancelled is None:
        return ask()
    answers: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer = ask()
        except BaseException as error:  # raised again where it is waited for
            raised = error

            def fail() -> T:
                raise raised

            answers.put(fail)
        else:
            answers.put(lambda: answer)

    threading.Thread(target=run, name=what, daemon=True).start()
    while True:
        with suppress(queue.Empty):
            answer = answers.get(timeout=_POLL_SECONDS)
            return answer()
        if cancelled.is_set():
            raise BuildCancelled(f"Cancelled while {what}.")
