"""What `allowed_triggers` says for the rest: why not, in a sentence, and who could; on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from domain.db import database_now
from domain.models import Lab, State, Study, User
from domain.models.studies import LOCK_STATES
from domain.permissions.roles import grant_on_lab, grant_on_study
from domain.studies.workflow import Choice, allowed_triggers
from tests.support.site import Site
from tests.support.statements import statements_of

IN_ORDER = ["submit", "resubmit", "retract", "approve", "reject", "activate", "pause", "deactivate", "archive"]
SITE_ADMIN, STUDY_ADMIN, SUPERUSER = "site_admin@example.org", "study_admin@example.org", "superuser@example.org"


def choices(site: Site, user_id: int, state: str, *, deployed: bool = False) -> dict[str, Choice]:
    with site.sessions.begin() as session:
        study = session.get_one(Study, site.study_id)
        study.state = state
        study.state_before_build = "approved" if state in LOCK_STATES else None
        study.deployed_at = session.scalar(select(database_now())) if deployed else None
        session.flush()
        return {choice.trigger: choice for choice in allowed_triggers(session, study, session.get_one(User, user_id))}


def test_every_trigger_stands_there_once_in_the_order_of_the_table(site: Site) -> None:
    for state in State:
        assert list(choices(site, site.stranger, state)) == IN_ORDER


def test_what_may_be_done_needs_no_reason_and_nobody_else(site: Site) -> None:
    found = choices(site, site.study_admin, "submitted")
    assert found["retract"] == Choice(trigger="retract", dest="retracted", allowed=True, reason="", who_could=())
    assert [name for name, choice in found.items() if choice.allowed] == ["retract", "archive"]


def test_a_missing_permission_names_it_and_who_could(site: Site) -> None:
    approve = choices(site, site.study_admin, "submitted")["approve"]
    assert (approve.allowed, approve.dest) == (False, "approved")
    assert approve.reason.startswith("study_admin@example.org lacks studies.approve_study on the study 'Apples and")
    assert approve.who_could == (SITE_ADMIN, SUPERUSER)
    retract = choices(site, site.designer, "submitted")["retract"]
    assert "lacks studies.change_study_status" in retract.reason
    assert retract.who_could == (SITE_ADMIN, STUDY_ADMIN, SUPERUSER)


def test_who_could_are_people_by_any_kind_of_grant_each_once_and_none_inactive(site: Site) -> None:
    with site.sessions.begin() as session:
        member, admin, inactive = (
            session.get_one(User, user_id) for user_id in (site.lab_member, site.study_admin, site.inactive)
        )
        grant_on_lab(session, member, session.get_one(Lab, site.lab_id), "admin")
        grant_on_study(session, admin, session.get_one(Study, site.study_id), "manager")
        grant_on_study(session, inactive, session.get_one(Study, site.study_id), "manager")
    could = choices(site, site.stranger, "created")["submit"].who_could
    assert could == ("lab_member@example.org", SITE_ADMIN, STUDY_ADMIN, SUPERUSER)


def test_an_inactive_superuser_hears_that_the_account_is_inactive(site: Site) -> None:
    submit = choices(site, site.inactive, "created")["submit"]
    assert submit.reason == "the account of inactive@example.org is inactive: it holds no permission at all"
    assert submit.who_could == (SITE_ADMIN, STUDY_ADMIN, SUPERUSER)


def test_a_state_that_forbids_says_from_where_it_starts(site: Site) -> None:
    found = choices(site, site.superuser, "approved")
    assert found["resubmit"].reason == "the study is approved; resubmit starts from rejected, retracted"
    assert found["pause"].reason == "the study is approved; pause starts from active"
    assert {name for name, choice in found.items() if choice.dest is None} == set(IN_ORDER) - {
        "reject",
        "activate",
        "archive",
    }


@pytest.mark.parametrize("trigger", ["reject", "archive"])
def test_a_trigger_that_starts_from_many_states_names_them_all(site: Site, trigger: str) -> None:
    starts = {
        "reject": "active, approved, deactivated, paused, submitted",
        "archive": "active, approved, created, deactivated, paused, rejected, retracted, submitted",
    }
    state = {"reject": "created", "archive": "archived"}[trigger]
    found = choices(site, site.superuser, state)[trigger]
    assert found.reason == f"the study is {state}; {trigger} starts from {starts[trigger]}"
    assert found.who_could == ()


@pytest.mark.parametrize("lock", LOCK_STATES)
def test_while_a_build_runs_there_is_nothing_to_do_but_wait(site: Site, lock: State) -> None:
    for choice in choices(site, site.superuser, lock).values():
        assert (choice.allowed, choice.dest, choice.who_could) == (False, None, ())
        assert choice.reason == f"the study is {lock}: wait until its build has ended"


def test_a_study_that_was_never_deployed_says_what_to_do_and_nobody_could(site: Site) -> None:
    activate = choices(site, site.study_admin, "approved")["activate"]
    assert (activate.allowed, activate.dest, activate.who_could) == (False, "active", ())
    assert "never been deployed" in activate.reason
    assert "request a deployment" in activate.reason
    assert choices(site, site.study_admin, "approved", deployed=True)["activate"].allowed


@pytest.mark.parametrize("deployed", [True, False])
def test_everybody_who_is_said_to_could_really_could(site: Site, deployed: bool) -> None:
    wrong = set()
    with site.sessions.begin() as session:
        people = {user.email: user.id for user in session.scalars(select(User))}
    for state in State:
        named: set[tuple[str, str]] = set()
        for user_id in (site.stranger, site.designer, site.study_admin):
            found = choices(site, user_id, state, deployed=deployed)
            named |= {(choice.trigger, email) for choice in found.values() for email in choice.who_could}
        allowed = {
            (choice.trigger, email)
            for email in {email for _, email in named}
            for choice in choices(site, people[email], state, deployed=deployed).values()
            if choice.allowed
        }
        wrong |= {(state.value, trigger, email) for trigger, email in named - allowed}
    assert wrong == set()


def test_asking_changes_nothing_and_costs_two_statements_at_most_for_each_open_trigger(site: Site) -> None:
    with site.sessions.begin() as session:
        study, user = session.get_one(Study, site.study_id), session.get_one(User, site.stranger)
        with statements_of(session) as seen:
            found = allowed_triggers(session, study, user)
        starting = [choice for choice in found if choice.dest is not None]
        assert len(starting) == 3
        assert len(seen) <= 2 * len(starting)
        assert not session.dirty
    assert (site.study().state, site.logs(), site.mails()) == ("approved", [], [])
