"""Keeps several processes running: starts them in order, restarts what dies, and leaves nothing behind at the end.

Each process is the leader of a group of its own, so that what it started (Dagster's runs) ends with it at the stop. On
Linux a process also ends when this one is killed and can no longer stop it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a process that died is started again; the pause doubles with each death in a row."""
SETTLED = 60.0
"""Seconds after which a process counts as running, so that its next death is the first again."""
LOOK = 0.5
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded before any fork


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep running; the next one is started first when somebody listens at `listens_at`."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    listens_at: tuple[str, int] | None = None


class _Kept:
    """A program, the process that runs it, and when to start the next."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.process: subprocess.Popen[bytes] | None = None
        self.groups: list[int] = []
        self.began = 0.0
        self.due = 0.0
        self.pause = SHORTEST_PAUSE

    def start(self) -> None:
        self.groups = [group for group in self.groups if _exists(group)]
        self.process = subprocess.Popen(
            self.program.command,
            env={**os.environ, **self.program.environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        self.groups.append(self.process.pid)
        self.began = time.monotonic()

    def wait_for_restart(self) -> float:
        """Plan the next start; returns the seconds until then."""
        if time.monotonic() - self.began > SETTLED:
            self.pause = SHORTEST_PAUSE
        pause, self.pause = self.pause, min(self.pause * 2, LONGEST_PAUSE)
        self.process, self.due = None, time.monotonic() + pause
        return pause

    def tell(self, number: int) -> None:
        """Send a signal to all that this program started."""
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)

    def is_gone(self) -> bool:
        """Whether nothing of it runs any more."""
        if self.process is not None:
            self.process.poll()
        return not any(map(_exists, self.groups))


def _exists(group: int) -> bool:
    """Whether any process of the group runs."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _die_with_parent() -> None:
    """In the new process: let the kernel end it when its parent is gone."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def supervise(
    programs: Sequence[Program],
    stop: threading.Event,
    tell: Callable[[str], None],
    *,
    stop_time: float = 30.0,
) -> None:
    """Run the programs until `stop` is set; then end them, the last first, and what is left after `stop_time` seconds.

    `tell` is told of each death, in a sentence.
    """
    kept = [_Kept(program) for program in programs]
    try:
        for each in kept:
            each.start()
            _wait_for(each, stop)
        while not stop.wait(LOOK):
            for each in kept:
                _look_after(each, tell)
    finally:
        _end(kept, stop_time)


def _wait_for(each: _Kept, stop: threading.Event) -> None:
    """Until it listens, or has ended, or has had time enough: then it goes on without."""
    address, deadline = each.program.listens_at, time.monotonic() + SETTLED
    while address and time.monotonic() < deadline and not stop.is_set():
        if each.process is None or each.process.poll() is not None:
            return
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            return
        stop.wait(0.2)


def _look_after(each: _Kept, tell: Callable[[str], None]) -> None:
    if each.process is None:
        if time.monotonic() >= each.due:
            try:
                each.start()
            except OSError as error:  # no room for a process now
                tell(
                    f"{each.program.name} cannot be started ({error}); trying again in {each.wait_for_restart():.0f} s"
                )
        return
    status = each.process.poll()
    if status is None:
        return
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    tell(f"{each.program.name} ended {how}; starting it again in {each.wait_for_restart():.0f} s")


def _end(kept: Sequence[_Kept], stop_time: float) -> None:
    for each in reversed(kept):
        each.tell(signal.SIGTERM)
    deadline = time.monotonic() + stop_time
    while time.monotonic() < deadline and not all(each.is_gone() for each in kept):
        time.sleep(0.1)
    for each in kept:
        each.tell(signal.SIGKILL)
        if each.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.process.wait(5)
