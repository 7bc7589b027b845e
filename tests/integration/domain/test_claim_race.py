"""Many processes claim one study's build at the same moment, many times: exactly one wins each time."""

from __future__ import annotations

from collections import Counter

import pytest

from domain.models import BuildKind, RequestStatus, State
from tests.support.claimers import LOST, WON, race
from tests.support.site import Site

PROCESSES = 16


def one_winner(processes: int) -> Counter[str]:
    return Counter({WON: 1, LOST: processes - 1})


def requests_for_rounds(site: Site, rounds: int) -> list[int]:
    """A study with a waiting request for each round."""
    studies = [site.another_study(f"Study {number}", State.APPROVED) for number in range(rounds)]
    return [site.ledger.request(study_id, site.study_admin, BuildKind.DEPLOYMENT) for study_id in studies]


@pytest.mark.parametrize(("processes", "rounds"), [(PROCESSES, 15), pytest.param(50, 100, marks=pytest.mark.soak)])
def test_exactly_one_process_wins_each_round(site: Site, database_url: str, processes: int, rounds: int) -> None:
    request_ids = requests_for_rounds(site, rounds)
    site.sessions.kw["bind"].dispose()  # a connection must not be shared with the processes
    outcomes = race(database_url, request_ids, processes)
    assert outcomes == [one_winner(processes)] * rounds
    for request_id in request_ids:
        request = site.request(request_id)
        assert (request.status, request.attempt, request.fencing_token) == (RequestStatus.RUNNING, 1, 1)


def test_the_race_above_notices_a_claim_without_its_condition(site: Site, database_url: str) -> None:
    request_ids = requests_for_rounds(site, 3)
    site.sessions.kw["bind"].dispose()
    outcomes = race(database_url, request_ids, PROCESSES, without_condition=True)
    # Then the CHECKs of the tables are the last defence: the others run into them instead of a clear refusal.
    assert all(outcome != one_winner(PROCESSES) for outcome in outcomes)
    assert all(outcome[LOST] == 0 for outcome in outcomes)
