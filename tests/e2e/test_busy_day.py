"""A hundred requests on a real Dagster and a real database, with crashes at random: nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import free_port
from tests.support.busy_day import live_through
from tests.support.databases import create_database
from tests.support.live import CODE, DAEMON, live


def test_nothing_is_lost_and_nothing_happens_twice_on_a_busy_day(tmp_path: Path, postgresql_server: str) -> None:
    url = create_database(postgresql_server, "busy_day")
    limits = {"LOOKIT_BUILDS_AT_ONCE": "4", "LOOKIT_ATTEMPTS": "6", "LOOKIT_LEASE": "10"}
    with live(tmp_path / "home", url, port=free_port(), **limits) as living:
        living.start(CODE, DAEMON)
        day = live_through(living, requests=100, studies=50, crash_every=12, seconds=1500)
    print(day)  # noqa: T201 - pytest shows it with -s
    assert day.succeeded >= 95
    assert sum(day.crashes.values()) >= 5
