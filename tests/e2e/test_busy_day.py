"""Many requests on a real Dagster and a real database, with crashes at random: nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import free_port
from tests.support.busy_day import live_through
from tests.support.databases import create_database
from tests.support.live import CODE, DAEMON, live


@pytest.mark.parametrize(
    ("requests", "crash_every", "crashes"), [(12, 8, 2), pytest.param(100, 12, 5, marks=pytest.mark.soak)]
)
def test_nothing_is_lost_and_nothing_happens_twice_on_a_busy_day(
    tmp_path: Path, postgresql_server: str, requests: int, crash_every: float, crashes: int
) -> None:
    url = create_database(postgresql_server, f"busy_day_{requests}")
    limits = {"LOOKIT_BUILDS_AT_ONCE": "4", "LOOKIT_ATTEMPTS": "6", "LOOKIT_LEASE": "10"}
    with live(tmp_path / "home", url, port=free_port(), **limits) as living:
        living.start(CODE, DAEMON)
        day = live_through(living, requests=requests, studies=requests // 2, crash_every=crash_every, seconds=1500)
    print(day)  # noqa: T201 - pytest shows it with -s
    assert day.succeeded >= 0.95 * requests
    assert sum(day.crashes.values()) >= crashes
