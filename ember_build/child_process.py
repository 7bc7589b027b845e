"""Runs one child process, tells its output line by line, and leaves nothing of it running.

Nothing means: no process of its group or session, and none that left them (`setsid`) but still carries the mark that
every descendant inherits in its environment.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from ember_build.output import Lines

MARK = "LOOKIT_CHILD"
"""The variable that marks a child and all its descendants."""

_PROC = Path("/proc")


class TimeLimitReached(Exception):
    """The child ran longer than it may, and was ended."""


class Cancelled(Exception):
    """The caller's event was set, and the child was ended."""


def run_child(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    time_limit: timedelta,
    cancelled: threading.Event | None = None,
    grace: timedelta = timedelta(seconds=5),
    mark: str | None = None,
) -> int:
    """Run `command` in `folder` with exactly `environment` and return its exit status (-n: ended by signal n).

    Standard output and error arrive at `on_line` in their order, decoded with replacements, lines cut at 4,000 bytes.
    However this call ends, by an error of `on_line` or an interrupt too, all that the child started gets SIGTERM and,
    after `grace`, SIGKILL. A background process that holds the output open does not delay the return.

    Raises:
        TimeLimitReached, Cancelled: the child was ended for this reason.
        OSError: the command cannot be started.
    """
    mark = mark or secrets.token_hex(16)
    process = subprocess.Popen(
        list(command),
        cwd=folder,
        env={**environment, MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        bufsize=0,
    )
    try:
        _follow(process, Lines(on_line), time_limit, cancelled)
    finally:
        try:
            end_processes(mark, process.pid, grace)
        finally:
            process.wait()
            if process.stdout:
                process.stdout.close()
    return process.returncode


def _follow(
    process: subprocess.Popen[bytes], lines: Lines, time_limit: timedelta, cancelled: threading.Event | None
) -> None:
    """Read until the child itself has ended; its descendants may still hold the pipe then."""
    if process.stdout is None:
        raise ValueError("the child needs a pipe to be followed")
    descriptor = process.stdout.fileno()
    os.set_blocking(descriptor, False)
    deadline = time.monotonic() + time_limit.total_seconds()
    open_end = True
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            # Asked before reading: what is read after the end is all that the child itself wrote.
            ended = _has_ended(process.pid)
            if open_end and selector.select(0 if ended else 0.1):
                data = os.read(descriptor, 1 << 16)
                lines.add(data)
                if not data:
                    open_end = False
                    selector.unregister(descriptor)
            elif ended:
                break
            elif not open_end:
                time.sleep(0.02)
            if cancelled is not None and cancelled.is_set():
                raise Cancelled
            if time.monotonic() > deadline:
                raise TimeLimitReached
    lines.close()


def _has_ended(pid: int) -> bool:
    """Ask without reaping, so that the number of the process, and of its group, cannot go to somebody else yet."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_processes(mark: str, group: int | None, grace: timedelta) -> None:
    """End all processes of the group (and session) and all that carry the mark: SIGTERM, and SIGKILL after `grace`."""
    try:
        for pid in _living(mark, group):
            _send(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace.total_seconds()
        while time.monotonic() < deadline and any(_living(mark, group)):
            time.sleep(0.05)
    finally:
        # More than once: a process may have forked between being listed and being ended.
        for _ in range(20):
            living = list(_living(mark, group))
            if not living:
                break
            for pid in living:
                _send(pid, signal.SIGKILL)
            time.sleep(0.02)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if pid < 0:
            os.killpg(-pid, number)
        else:
            os.kill(pid, number)


def _living(mark: str, group: int | None) -> Iterator[int]:
    """Yield the ids of the processes that are meant; without /proc, minus the number of the group while it has any."""
    if not (_PROC / "self" / "stat").exists():
        if group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, 0)
                yield -group
        return
    wanted = f"{MARK}={mark}".encode()
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # It may end while it is looked at, or be another user's.
        with contextlib.suppress(OSError):
            state, _, its_group, session = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:4]
            if state in (b"Z", b"X"):
                continue
            belongs = group is not None and group in (int(its_group), int(session))
            if belongs or wanted in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)
