"""Each side in a process of its own: Django can be set up only once in one, and no side meets another's garbage.

The processes wait while they are not asked, so the sides still take turns.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from benchmarks.frame import BenchmarkError
from benchmarks.permissions.population import Population
from benchmarks.permissions.questions import Answer, Question
from benchmarks.permissions.side import Side

MakeSide = Callable[[str], Side]
"""Makes the side on the database of this URL. Called in the new process."""


def make_ours(url: str) -> Side:
    """The domain's permissions."""
    from benchmarks.permissions.ours import OurSide

    return OurSide(url)


def make_guardian_direct(url: str) -> Side:
    """django-guardian with direct foreign keys."""
    return _make_guardian(url, direct_keys=True)


def make_guardian_generic(url: str) -> Side:
    """django-guardian with generic foreign keys."""
    return _make_guardian(url, direct_keys=False)


def _make_guardian(url: str, *, direct_keys: bool) -> Side:
    from benchmarks.permissions.site_settings import configure

    configure(url, direct_keys=direct_keys)
    from benchmarks.permissions.guardian import GuardianSide  # cannot be imported before

    return GuardianSide()


class SideProcess(AbstractContextManager["SideProcess"]):
    """A side in its process. What it raises there is a BenchmarkError here."""

    def __init__(self, make: MakeSide, url: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, url, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join()

    def begin_loading(self, population: Population) -> None:
        """Let it load while others do; `finish_loading` waits for it."""
        self._send("load", population)

    def finish_loading(self) -> None:
        """Wait until it has loaded."""
        self._received()

    @property
    def tables(self) -> list[str]:
        """The tables that tell who holds what."""
        return self._call("tables")

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """See `Side`."""
        return self._call("answers", questions)

    def seconds(self, questions: Sequence[Question]) -> float:
        """See `Side`."""
        return self._call("seconds", questions)

    def statements(self, questions: Sequence[Question]) -> list[list[str]]:
        """See `Side`."""
        return self._call("statements", questions)

    def _call(self, name: str, *arguments: object) -> Any:
        self._send(name, *arguments)
        return self._received()

    def _send(self, name: str, *arguments: object) -> None:
        try:
            self._connection.send((name, arguments))
        except OSError as gone:
            raise BenchmarkError("the process of a side has ended") from gone

    def _received(self) -> Any:
        try:
            error, value = self._connection.recv()
        except (EOFError, OSError) as gone:
            raise BenchmarkError("the process of a side has ended") from gone
        if error:
            raise BenchmarkError(f"a side failed: {error}")
        return value


def _serve(make: MakeSide, url: str, connection: Connection) -> None:
    try:
        side = make(url)
        while True:
            name, arguments = connection.recv()
            connection.send(("", side.tables if name == "tables" else getattr(side, name)(*arguments)))
    except EOFError:  # nobody asks any more
        return
    except Exception:  # the process that waits for an answer tells it, and this one ends
        connection.send((traceback.format_exc(), None))
