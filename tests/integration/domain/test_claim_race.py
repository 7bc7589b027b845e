"""Fifty processes claim one study's build at the same moment, a hundred times: exactly one wins each time."""

from __future__ import annotations

from collections import Counter

from domain.models import BuildKind, RequestStatus, State
from tests.support.claimers import LOST, WON, race
from tests.support.site import Site

PROCESSES = 50
ROUNDS = 100
ONE_WINNER = Counter({WON: 1, LOST: PROCESSES - 1})


def requests_for_rounds(site: Site, rounds: int) -> list[int]:
    """A study with a waiting request for each round."""
    studies = [site.another_study(f"Study {number}", State.APPROVED) for number in range(rounds)]
    return [site.ledger.request(study_id, site.study_admin, BuildKind.DEPLOYMENT) for study_id in studies]


def test_exactly_one_of_fifty_processes_wins_each_of_a_hundred_rounds(site: Site, database_url: str) -> None:
    request_ids = requests_for_rounds(site, ROUNDS)
    site.sessions.kw["bind"].dispose()  # a connection must not be shared with the processes
    outcomes = race(database_url, request_ids, PROCESSES)
    assert outcomes == [ONE_WINNER] * ROUNDS
    for request_id in request_ids:
        request = site.request(request_id)
        assert (request.status, request.attempt, request.fencing_token) == (RequestStatus.RUNNING, 1, 1)


def test_the_race_above_notices_a_claim_without_its_condition(site: Site, database_url: str) -> None:
    request_ids = requests_for_rounds(site, 3)
    site.sessions.kw["bind"].dispose()
    outcomes = race(database_url, request_ids, PROCESSES, without_condition=True)
    # Then the CHECKs of the tables are the last defence: the others run into them instead of a clear refusal.
    assert all(outcome != ONE_WINNER for outcome in outcomes)
    assert all(outcome[LOST] == 0 for outcome in outcomes)
