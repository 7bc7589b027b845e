"""Two who act on one study at the same moment, on both databases: one wins, the other is refused in clear words.

In a chosen order (the first stops just before its commit until the second waits for it), and released together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from domain.db import Sessions
from domain.errors import DomainError, LeaseLost, PermissionDenied, StudyIsLocked, TransitionNotAllowed
from domain.models import BuildKind, Lab, State, Study, User
from domain.permissions.grants import grant, permissions_of
from domain.permissions.roles import grant_on_lab
from domain.requests.build_claim import BuildClaim
from domain.requests.builds import BuildLedger
from domain.requests.failure import Failure
from domain.studies.edit import edit
from domain.studies.labs import move_to_lab
from tests.support.contention import Act, one_after_the_other, together
from tests.support.leases import end_for_dead_worker
from tests.support.site import Site, transition_as_read

MINUTE = timedelta(minutes=1)
ROUNDS = 6
PREVIEW, DEPLOYMENT = BuildKind.PREVIEW, BuildKind.DEPLOYMENT


@pytest.fixture
def new_lab(site: Site) -> int:
    with site.sessions.begin() as session:
        lab = Lab(name="Infant Lab")
        session.add(lab)
        session.flush()
        grant_on_lab(session, session.get_one(User, site.study_admin), lab, "guest")
        return lab.id


def on_study(site: Site, user_id: int, how: Callable[..., Any]) -> Act:
    def act(sessions: Sessions) -> None:
        with sessions.begin() as session:
            how(session, session.get_one(Study, site.study_id), session.get_one(User, user_id))

    return act


def pull(site: Site, trigger: str) -> Act:
    return on_study(
        site, site.superuser, lambda session, study, user: transition_as_read(session, study, trigger, user)
    )


def change(site: Site) -> Act:
    return on_study(site, site.designer, lambda session, study, user: edit(session, study, user, {"purpose": "New"}))


def move(site: Site, lab_id: int) -> Act:
    return on_study(
        site,
        site.study_admin,
        lambda session, study, user: move_to_lab(session, study, session.get_one(Lab, lab_id), user),
    )


def claim(site: Site, kind: BuildKind) -> Act:
    """BuildClaim a request that waits already."""
    request_id = site.ledger.request(site.study_id, site.study_admin, kind)
    return lambda sessions: BuildLedger(sessions).claim(request_id, "run-1", MINUTE)


ACTS = {
    "approve": lambda site, lab: pull(site, "approve"),
    "retract": lambda site, lab: pull(site, "retract"),
    "reject": lambda site, lab: pull(site, "reject"),
    "pause": lambda site, lab: pull(site, "pause"),
    "archive": lambda site, lab: pull(site, "archive"),
    "edit": lambda site, lab: change(site),
    "move": lambda site, lab: move(site, lab),
    "preview": lambda site, lab: claim(site, PREVIEW),
    "deployment": lambda site, lab: claim(site, DEPLOYMENT),
}
# In both orders, the second has no way on from where the first leads.
PAIRS = [
    ("submitted", "approve", "retract"),
    ("submitted", "reject", "retract"),
    ("active", "pause", "pause"),
    ("active", "archive", "archive"),
    ("approved", "reject", "deployment"),
    ("approved", "archive", "preview"),
    ("approved", "edit", "deployment"),
    ("approved", "move", "deployment"),
]
AFTER = {
    "approve": "approved",
    "retract": "retracted",
    "reject": "rejected",
    "pause": "paused",
    "edit": "rejected",
    "archive": "archived",
    "move": "rejected",
    "preview": "previewing",
    "deployment": "deploying",
}
BUILDS = {"preview", "deployment"}
NOT_NOW = r"has just left the state '\w+': look at it again|is \w+, from where there is no|is \w+; a \w+ may start from"
LOCKED = r"is (previewing|deploying)"


def is_clear(refusal: DomainError) -> bool:
    """The refusal is of the right kind, names the study and says how it is."""
    said, wanted = str(refusal), LOCKED if isinstance(refusal, StudyIsLocked) else NOT_NOW
    names_it = "'Apples and oranges'" in said or "'Another'" in said
    return isinstance(refusal, StudyIsLocked | TransitionNotAllowed) and names_it and bool(re.search(wanted, said))


def only_it_happened(site: Site, winner: str) -> bool:
    """State, logs and mails are those of the winner alone; a claim leaves no log before it ends."""
    actions = [log.action for log in site.logs()]
    sent_back = {"edit": "reject", "move": "reject"}
    return site.study().state == AFTER[winner] and actions == (
        [] if winner in BUILDS else [sent_back.get(winner, winner)]
    )


@pytest.mark.parametrize(
    ("state", "first", "second"), [*PAIRS, *((state, two, one) for state, one, two in PAIRS if one != two)]
)
def test_who_comes_second_waits_and_is_then_refused(
    site: Site, database_url: str, new_lab: int, state: str, first: str, second: str
) -> None:
    site.set_state(State(state))
    one, other = one_after_the_other(database_url, ACTS[first](site, new_lab), ACTS[second](site, new_lab))
    assert one is None
    assert other is not None
    assert is_clear(other), other
    assert only_it_happened(site, first)


@pytest.mark.parametrize(("state", "one", "two"), PAIRS)
def test_of_two_who_start_together_exactly_one_wins(
    site: Site, database_url: str, new_lab: int, state: str, one: str, two: str
) -> None:
    for number in range(ROUNDS):
        here = replace(site, study_id=site.another_study("Another", State(state)))
        if one == "edit":  # the designer is none of every new study
            with site.sessions.begin() as session:
                session.get_one(User, site.designer).is_superuser = True
        outcomes = together(database_url, ACTS[one](here, new_lab), ACTS[two](here, new_lab))
        assert outcomes.count(None) == 1, (number, outcomes)
        (refusal,) = (outcome for outcome in outcomes if outcome is not None)
        assert is_clear(refusal), (number, refusal)
        assert only_it_happened(here, one if outcomes[0] is None else two), number


def test_an_edit_that_waited_for_an_approval_sends_the_study_back(site: Site, database_url: str) -> None:
    site.set_state(State.SUBMITTED)
    assert one_after_the_other(database_url, pull(site, "approve"), change(site)) == [None, None]
    assert (site.study().state, site.study().purpose) == ("rejected", "New")
    assert [log.action for log in site.logs()] == ["approve", "reject"]


def test_a_claim_that_waited_for_the_end_of_the_approval_ends_its_request(site: Site, database_url: str) -> None:
    request_id = site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT)

    def late(sessions: Sessions) -> None:
        BuildLedger(sessions).claim(request_id, "run-1", MINUTE)

    one_after_the_other(database_url, pull(site, "reject"), late)
    request = site.request(request_id)
    assert (request.status, request.error_code, request.run_id) == ("failed", "state_forbids", None)


ENDS: dict[str, Callable[[BuildLedger, BuildClaim], Any]] = {
    "finish": lambda ledger, claim: ledger.finish(claim, {}),
    "fail": lambda ledger, claim: ledger.fail(claim, Failure("build", "player_build_failed", "no"), {}),
    "cancelled": lambda ledger, claim: ledger.cancelled(claim, "Somebody", {}),
    "expire": end_for_dead_worker,
}
ENDED = {"finish": "succeeded", "fail": "failed", "cancelled": "cancelled", "expire": "failed"}


@pytest.mark.parametrize("second", list(ENDS))
@pytest.mark.parametrize("first", list(ENDS))
def test_of_two_who_end_a_build_the_second_finds_the_lease_lost(
    site: Site, database_url: str, first: str, second: str
) -> None:
    request_id = site.ledger.request(site.study_id, site.study_admin, DEPLOYMENT)
    claimed = site.ledger.claim(request_id, "run-1", timedelta(seconds=-1))

    def end(how: str) -> Act:
        return lambda sessions: ENDS[how](BuildLedger(sessions, site.ledger.retry_by), claimed)

    one, other = one_after_the_other(database_url, end(first), end(second))
    assert one is None
    assert isinstance(other, LeaseLost)
    assert site.request(request_id).status == ENDED[first]
    assert site.study().state == ("active" if first == "finish" else "approved")
    (log,) = site.logs()
    assert log.extra["outcome"] == ENDED[first]


# -- a move to another lab changes who may act ---------------------------------------------------------------------


@pytest.fixture
def lab_admin(site: Site) -> int:
    """Somebody who may do much on the study, but only through its lab."""
    with site.sessions.begin() as session:
        member = session.get_one(User, site.lab_member)
        grant_on_lab(session, member, session.get_one(Lab, site.lab_id), "admin")
        return member.id


def make_oneself_admin(site: Site, user_id: int) -> Act:
    return on_study(site, user_id, lambda session, study, user: grant(session, user, user, "admin", study))


HIJACKS: dict[str, Callable[[Site, int], Act]] = {
    "grant": make_oneself_admin,
    "edit": lambda site, user: on_study(
        site, user, lambda session, study, actor: edit(session, study, actor, {"purpose": "hijacked"})
    ),
    "submit": lambda site, user: on_study(
        site, user, lambda session, study, actor: transition_as_read(session, study, "submit", actor)
    ),
    "ask for a build": lambda site, user: (
        lambda sessions: BuildLedger(sessions).request(site.study_id, user, PREVIEW) and None
    ),
}


@pytest.mark.parametrize("hijack", HIJACKS)
def test_who_leaves_with_the_old_lab_takes_nothing_along(
    site: Site, database_url: str, new_lab: int, lab_admin: int, hijack: str
) -> None:
    site.set_state(State.CREATED)
    moved, refused = one_after_the_other(database_url, move(site, new_lab), HIJACKS[hijack](site, lab_admin))
    assert moved is None
    assert isinstance(refused, PermissionDenied), refused
    with site.sessions.begin() as session:
        study, user = session.get_one(Study, site.study_id), session.get_one(User, lab_admin)
        assert permissions_of(session, user, study) == frozenset()
        assert (study.state, study.purpose) == ("created", "")


# -- who waits for whom is the same everywhere: the study first, then its request ------------------------------------


def cancel(site: Site, request_id: int) -> Act:
    return lambda sessions: BuildLedger(sessions).cancel(request_id, site.study_admin)


def take(request_id: int) -> Act:
    return lambda sessions: BuildLedger(sessions).claim(request_id, "run-1", MINUTE)


def ask_again(site: Site) -> Act:
    return lambda sessions: BuildLedger(sessions).request(site.study_id, site.study_admin, PREVIEW)


@pytest.mark.parametrize("other", ["claim", "ask again"])
def test_who_cancels_and_who_takes_never_wait_for_each_other(site: Site, database_url: str, other: str) -> None:
    for number in range(3 * ROUNDS):
        here = replace(site, study_id=site.another_study("Another", State.APPROVED))
        request_id = here.ledger.request(here.study_id, here.study_admin, PREVIEW)
        acts = {"claim": take(request_id), "ask again": ask_again(here)}
        outcomes = together(database_url, cancel(here, request_id), acts[other])
        assert None in outcomes, (number, outcomes)
