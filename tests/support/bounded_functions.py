"""Functions that a child process of run_bounded calls: each goes wrong in one way, or tells what the child has."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path


def never_end(_: str) -> None:
    while True:
        pass


def sleep(seconds: str) -> None:
    time.sleep(float(seconds))


def eat_memory(_: str) -> int:
    return len([bytes(10_000_000) for _ in range(10_000)])


def say_much(_: str) -> str:
    return "x" * 5_000_000


def crash(_: str) -> None:
    ctypes.string_at(0)


def recurse(_: str) -> None:
    recurse(_)


def miss(path: str) -> str:
    return Path(path).read_text()


def be_wrong(_: str) -> None:
    raise KeyError("a fault of ours")


def tell_environment(_: str) -> dict[str, str]:
    return dict(os.environ)
