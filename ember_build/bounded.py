"""Runs a function that reads a stranger's files in a child process, with limits of CPU time, memory, output and time.

A parser that a hostile file keeps busy would otherwise hold up the whole process: heartbeats, cancellation and the
build's time limit among them. The child gets none of the platform's environment variables.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import IO, Any

from ember_build.errors import (
    BuildCancelled,
    BuildError,
    BuildPlatformError,
    InvalidPlayer,
    NotStampable,
    PlayerBuildFailed,
)

MB = 1_000_000

SCRIPT_CPU_SECONDS = 30
"""That parsing one script of a bundle may take; 10 MB take about one."""
LIMITED_CPU = ("/bin/sh", "-c", 'ulimit -S -t "$0" && exec "$@"')
"""What begins a command whose CPU time is limited; the seconds and the command follow."""

_POLL_SECONDS = 0.1
_ENDED = {error.__name__: error for error in (InvalidPlayer, PlayerBuildFailed, NotStampable, BuildPlatformError)}
_CRASHED = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGFPE, -signal.SIGILL}


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that reading may take; sizes in MB of 1,000,000 bytes."""

    cpu_seconds: int = 10
    seconds: float = 60
    """From start to end, for a disk that is slow or hangs."""
    memory_mb: int = 2000
    result_mb: int = 100


def run_bounded(
    function: FunctionType,
    *arguments: str,
    subject: str,
    bounds: Bounds | None = None,
    deadline: float | None = None,
    cancelled: threading.Event | None = None,
) -> Any:
    """Call a module-level function in a child process and return its result, which must be JSON.

    `subject` names in messages what is read, such as "package.json". `deadline` is the build's, by time.monotonic().

    Raises:
        InvalidPlayer, PlayerBuildFailed, NotStampable, BuildPlatformError: the function raised it.
        PlayerBuildFailed: a bound was reached, or the parser crashed on the files.
        BuildPlatformError: this machine could not start the child or read its disk, or killed the child.
        BuildCancelled: `cancelled` was set; the child is ended within a fraction of a second.
    """
    bounds = bounds or Bounds()
    order = {"module": function.__module__, "function": function.__name__, "arguments": arguments}
    limits = [bounds.cpu_seconds, bounds.memory_mb * MB, bounds.result_mb * MB]
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", "-m", "ember_build.bounded", json.dumps(order), json.dumps(limits)],
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=errors,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONUTF8": "1"},
                start_new_session=True,
            )
        except OSError as error:
            raise BuildPlatformError(f"This machine could not start a process to read {subject}: {error}.") from error
        status = wait_for(child, subject, bounds.seconds, deadline, cancelled)
        return _result(status, subject, bounds, answer, errors)


def wait_for(
    child: subprocess.Popen[bytes],
    subject: str,
    seconds: float,
    deadline: float | None,
    cancelled: threading.Event | None,
) -> int:
    """Wait for a child process that reads `subject`, and return its exit status; it has ended however this returns.

    Raises:
        PlayerBuildFailed: the build's time is over.
        BuildPlatformError: it took more than `seconds`.
        BuildCancelled: `cancelled` was set.
    """
    until = time.monotonic() + seconds
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=_POLL_SECONDS)
            if cancelled is not None and cancelled.is_set():
                raise BuildCancelled(f"The build was cancelled while {subject} was read.")
            if deadline is not None and time.monotonic() > deadline:
                raise PlayerBuildFailed(f"The build reached its time limit while {subject} was read.")
            if time.monotonic() > until:
                # It does nothing but read and compute, and its CPU time is limited: it waits for a disk or a processor.
                raise BuildPlatformError(
                    f"This machine did not read {subject} within {seconds:,.0f} s; its disk or processors are"
                    " overloaded."
                )
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _result(status: int, subject: str, bounds: Bounds, answer: IO[bytes], errors: IO[bytes]) -> Any:
    answer.seek(0)
    errors.seek(0)
    if status == -signal.SIGXCPU:
        raise _too_much(subject, f"takes more than {bounds.cpu_seconds} s of CPU time")
    if status in _CRASHED:
        raise PlayerBuildFailed(f"{subject} could not be read: the parser crashed on it (signal {-status}).")
    if status < 0:
        raise BuildPlatformError(
            f"The process that read {subject} was killed from outside (signal {-status}), most likely for want of"
            " memory."
        )
    if status != 0:
        told = errors.read(100_000).decode("utf-8", "replace").strip()
        raise RuntimeError(f"reading {subject} ended with status {status}:\n{told[-3000:]}")
    said = json.loads(answer.read())
    if "result" in said:
        return said["result"]
    if "exceeds" in said:
        raise _too_much(subject, said["exceeds"])
    if "disk" in said:
        raise BuildPlatformError(f"This machine could not read {subject}: {said['disk']}.")
    raise _ENDED[said["error"]](said["message"])


def _too_much(subject: str, what: str) -> PlayerBuildFailed:
    return PlayerBuildFailed(
        f"{subject} could not be read: reading it {what}. Make it smaller and simpler; a file of an ordinary player"
        " takes a small part of that."
    )


def read_limited(file: Path, most_bytes: int) -> bytes:
    """Return the contents of a regular file.

    Raises:
        PlayerBuildFailed: it has more than `most_bytes`.
    """
    with file.open("rb") as stream:
        contents = stream.read(most_bytes + 1)
    if len(contents) > most_bytes:
        raise PlayerBuildFailed(
            f"{file.name} has {file.stat().st_size:,} bytes; at most {most_bytes:,} are read. Make it smaller."
        )
    return contents


def _main(order: str, limits: str) -> None:
    """Limit this process, call the function, and write what came of it as JSON to standard output."""
    cpu_seconds, memory_bytes, result_bytes = json.loads(limits)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 2))
    with contextlib.suppress(ValueError):  # macOS has no such limit that could be set
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (result_bytes, result_bytes))
    wanted = json.loads(order)
    try:
        function = getattr(importlib.import_module(wanted["module"]), wanted["function"])
        said = json.dumps({"result": function(*wanted["arguments"])})
    except BuildError as error:
        said = json.dumps({"error": type(error).__name__, "message": str(error)})
    except MemoryError:
        said = json.dumps({"exceeds": f"needs more than {memory_bytes // MB:,} MB of memory"})
    except RecursionError:
        said = json.dumps({"exceeds": "goes deeper than a parser can follow: something in it is nested too often"})
    except OSError as error:
        said = json.dumps({"disk": str(error)})
    except Exception:  # the parent raises it as what it is: a fault in the function
        traceback.print_exc()
        sys.exit(1)
    try:
        sys.stdout.write(said)
        sys.stdout.flush()
    except OSError:  # RLIMIT_FSIZE
        os.ftruncate(1, 0)
        os.lseek(1, 0, os.SEEK_SET)
        os.write(1, json.dumps({"exceeds": f"gives more than {result_bytes // MB:,} MB of results"}).encode())
        os._exit(0)


if __name__ == "__main__":
    _main(*sys.argv[1:3])
