"""Two acts at the same moment, each with its own engine, as two processes would: in a chosen order, or in any."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.orm import Session

from domain.db import Sessions, engine_for, sessions_for
from domain.errors import DomainError

Act = Callable[[Sessions], Any]
PATIENCE = 30.0
"""Seconds after which something that should have happened never will."""


@contextmanager
def _sessions(url: str) -> Iterator[Sessions]:
    engine = engine_for(url)
    try:
        yield sessions_for(engine)
    finally:
        engine.dispose()


def outcome(act: Act, sessions: Sessions) -> DomainError | None:
    """Let the act happen; its refusal, if it is refused. Any other error is a finding and comes through."""
    try:
        act(sessions)
    except DomainError as refusal:
        return refusal
    return None


def one_after_the_other(url: str, first: Act, second: Act) -> list[DomainError | None]:
    """The first act stops before its commit until the second waits for it; then both go on. Returns both outcomes."""
    has_acted, may_commit = threading.Event(), threading.Event()

    def hold(_session: Session) -> None:
        has_acted.set()
        assert may_commit.wait(PATIENCE)

    with _sessions(url) as ones, _sessions(url) as others, ThreadPoolExecutor(2) as threads:
        event.listen(ones, "before_commit", hold, once=True)
        one = threads.submit(outcome, first, ones)
        try:
            assert has_acted.wait(PATIENCE)
            other = threads.submit(outcome, second, others)
            _until_it_waits(url, other)
        finally:
            may_commit.set()
        return [one.result(PATIENCE), other.result(PATIENCE)]


def _until_it_waits(url: str, other: Future[Any]) -> None:
    """Until the second transaction waits for the first: on PostgreSQL for its row, on SQLite for its beginning."""
    with _sessions(url) as sessions:
        if not url.startswith("postgresql"):
            time.sleep(0.05)  # nobody can look into a SQLite file that is being written; nor can the second act
            assert not other.done()
            return
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with sessions.begin() as session:
                if session.scalar(waiting):
                    return
            assert not other.done(), other.exception() or other.result()
            time.sleep(0.005)
        raise AssertionError("the second act never waited for the first")


def together(url: str, *acts: Act) -> list[DomainError | None]:
    """Release the acts at the same moment, in whichever order they come. Returns their outcomes."""
    barrier = threading.Barrier(len(acts))

    def run(act: Act) -> DomainError | None:
        with _sessions(url) as sessions:
            with sessions.begin() as session:
                session.execute(text("SELECT 1"))  # the connection is there before the start
            barrier.wait(PATIENCE)
            return outcome(act, sessions)

    with ThreadPoolExecutor(len(acts)) as threads:
        return list(threads.map(run, acts))
