"""A server of a benchmark in a process of its own, so that it takes none of the client's time under Python's lock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.frame import BenchmarkError

_ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def serving(module: str, *arguments: str) -> Generator[str]:
    """The URL that `python -m module arguments` prints; it ends when its input does. Raises BenchmarkError."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise BenchmarkError(f"the server {module} of the benchmark does not start; it says why above")
            yield url
        finally:
            process.stdin.close()
            process.wait(30)
