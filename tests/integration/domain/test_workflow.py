"""The workflow on both databases: which trigger leads where, who may pull it, what it writes, and who is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from sqlalchemy import text
from transitions import Machine

from domain.db import database_now
from domain.errors import DomainError, InvalidRequest, PermissionDenied, StudyIsLocked, TransitionNotAllowed
from domain.models import Lab, State, Study, User
from domain.models.studies import LOCK_STATES
from domain.permissions.roles import grant_on_lab, grant_on_site, grant_on_study
from domain.studies.workflow import active_table, machine_arguments, shared_machine, triggers_from
from domain.studies.workflow_file import table_from_yaml
from tests.support.site import Site, transition_as_read

# The table of the domain's facts, written out once more: (from, trigger) -> (to, who is told, permission).
SITE, RESEARCHERS, NOBODY = "site admins", "researchers", "nobody"
STATUS, APPROVE = "studies.change_study_status", "studies.approve_study"
MOVES = {
    ("created", "submit"): ("submitted", SITE, STATUS),
    ("rejected", "resubmit"): ("submitted", SITE, STATUS),
    ("retracted", "resubmit"): ("submitted", SITE, STATUS),
    ("submitted", "retract"): ("retracted", SITE, STATUS),
    ("submitted", "approve"): ("approved", RESEARCHERS, APPROVE),
    ("submitted", "reject"): ("rejected", RESEARCHERS, APPROVE),
    ("active", "reject"): ("rejected", RESEARCHERS, APPROVE),
    ("paused", "reject"): ("rejected", RESEARCHERS, APPROVE),
    ("deactivated", "reject"): ("rejected", RESEARCHERS, APPROVE),
    ("approved", "reject"): ("rejected", RESEARCHERS, APPROVE),
    ("approved", "activate"): ("active", SITE, STATUS),
    ("paused", "activate"): ("active", SITE, STATUS),
    ("active", "pause"): ("paused", SITE, STATUS),
    ("active", "deactivate"): ("deactivated", SITE, STATUS),
    ("paused", "deactivate"): ("deactivated", SITE, STATUS),
    ("created", "archive"): ("archived", NOBODY, STATUS),
    ("submitted", "archive"): ("archived", NOBODY, STATUS),
    ("rejected", "archive"): ("archived", NOBODY, STATUS),
    ("retracted", "archive"): ("archived", NOBODY, STATUS),
    ("approved", "archive"): ("archived", NOBODY, STATUS),
    ("active", "archive"): ("archived", NOBODY, STATUS),
    ("paused", "archive"): ("archived", NOBODY, STATUS),
    ("deactivated", "archive"): ("archived", NOBODY, STATUS),
}
TRIGGERS = ("submit", "resubmit", "retract", "approve", "reject", "activate", "pause", "deactivate", "archive")
ADDRESSES = {
    SITE: ["site_admin@example.org"],
    RESEARCHERS: ["lab_admin@example.org", "study_admin@example.org"],
    NOBODY: [],
}


def put(site: Site, state: str, *, deployed: bool = True) -> None:
    """Put the study into any state, lock states included."""
    with site.sessions.begin() as session:
        study = session.get_one(Study, site.study_id)
        study.state = state
        study.state_before_build = "approved" if state in LOCK_STATES else None
        study.deployed_at = session.scalar(database_now().select()) if deployed else None


def pull(site: Site, trigger: str, user_id: int, comment: str = "") -> None:
    with site.sessions.begin() as session:
        transition_as_read(
            session, session.get_one(Study, site.study_id), trigger, session.get_one(User, user_id), comment=comment
        )


def lab_admin(site: Site) -> int:
    with site.sessions.begin() as session:
        user = User(email="lab_admin@example.org", name="Lab Admin")
        session.add(user)
        session.flush()
        grant_on_lab(session, user, session.get_one(Lab, site.lab_id), "admin")
        return user.id


def told(site: Site) -> list[str]:
    return [mail.recipient.email for mail in site.mails()]


def nothing_happened(site: Site, state: str) -> bool:
    return (site.study().state, site.logs(), site.mails()) == (state, [], [])


@pytest.mark.parametrize("state", list(State))
def test_a_superuser_may_pull_exactly_the_triggers_of_the_table(site: Site, state: str) -> None:
    outcomes = {}
    for trigger in TRIGGERS:
        put(site, state)
        try:
            pull(site, trigger, site.superuser)
            outcomes[trigger] = site.study().state
        except (TransitionNotAllowed, StudyIsLocked) as refusal:
            told = f"is {state}" in str(refusal) and site.study().state == state
            outcomes[trigger] = type(refusal).__name__ if told else str(refusal)
    refused = "StudyIsLocked" if state in ("previewing", "deploying") else "TransitionNotAllowed"
    assert outcomes == {
        trigger: MOVES[state, trigger][0] if (state, trigger) in MOVES else refused for trigger in TRIGGERS
    }
    assert len(site.logs()) == sum(source == state for source, _ in MOVES)


@pytest.mark.parametrize(("source", "trigger"), list(MOVES))
def test_each_transition_leaves_one_log_and_tells_those_of_the_table(site: Site, source: str, trigger: str) -> None:
    dest, audience, _ = MOVES[source, trigger]
    lab_admin(site)
    put(site, source)
    before = site.study().state_changed_at
    time.sleep(0.002)  # SQLite's clock shows milliseconds
    pull(site, trigger, site.superuser, comment="Well thought out.")
    assert site.study().state == dest
    assert site.study().state_changed_at > before
    (log,) = site.logs()
    extra = {name: value for name, value in log.extra.items() if trigger != "approve" or name == "comment"}
    assert (log.action, log.state_before, log.state_after, log.user_id, log.build_request_id, extra) == (
        trigger,
        source,
        dest,
        site.superuser,
        None,
        {"comment": "Well thought out."},
    )
    assert told(site) == ADDRESSES[audience]
    for mail in site.mails():
        assert (mail.template, mail.study_id, mail.event) == ("study_moved", site.study_id, f"study_log:{log.id}")
        assert mail.context["comment"] == "Well thought out."
        assert (mail.context["state_before"], mail.context["state_after"]) == (source, dest)


def test_a_rescinded_approval_is_told_in_other_words_than_requested_changes(site: Site) -> None:
    put(site, "approved")
    pull(site, "reject", site.site_admin)
    put(site, "submitted")
    pull(site, "reject", site.site_admin)
    assert [mail.context["headline"] for mail in site.mails()] == ["approval rescinded", "changes requested"]


def test_a_transition_without_a_comment_stores_none(site: Site) -> None:
    put(site, "created")
    pull(site, "submit", site.study_admin)
    assert site.logs()[0].extra == {}


def test_a_person_who_is_meant_twice_gets_one_mail(site: Site) -> None:
    with site.sessions.begin() as session:
        study, user = session.get_one(Study, site.study_id), session.get_one(User, site.study_admin)
        grant_on_study(session, user, study, "manager")
        grant_on_lab(session, user, session.get_one(Lab, site.lab_id), "admin")
    put(site, "submitted")
    pull(site, "approve", site.site_admin)
    assert told(site) == ["study_admin@example.org"]


def test_inactive_people_are_not_told(site: Site) -> None:
    with site.sessions.begin() as session:
        grant_on_site(session, session.get_one(User, site.inactive), "site_admin")
        session.get_one(User, site.site_admin).is_active = False
    put(site, "created")
    pull(site, "submit", site.study_admin)
    assert told(site) == []


@pytest.mark.parametrize(("source", "trigger"), list(MOVES))
def test_each_trigger_asks_for_the_permission_of_the_table(site: Site, source: str, trigger: str) -> None:
    permission = MOVES[source, trigger][2]
    put(site, source)
    # The study's admin holds every study permission but approve_study; the designer holds change_study only.
    for user_id in (
        site.designer,
        site.stranger,
        site.inactive,
        *([site.study_admin] if permission == APPROVE else []),
    ):
        with pytest.raises(PermissionDenied, match="inactive" if user_id == site.inactive else permission):
            pull(site, trigger, user_id)
    assert nothing_happened(site, source)
    pull(site, trigger, site.site_admin if permission == APPROVE else site.study_admin)
    assert site.study().state == MOVES[source, trigger][0]


@pytest.mark.parametrize("source", ["approved", "paused"])
def test_a_study_that_was_never_deployed_is_not_activated(site: Site, source: str) -> None:
    put(site, source, deployed=False)
    with pytest.raises(TransitionNotAllowed, match=r"never been deployed.*request a deployment"):
        pull(site, "activate", site.superuser)
    assert nothing_happened(site, source)


def test_who_may_not_activate_hears_of_the_permission_not_of_the_deployment(site: Site) -> None:
    put(site, "approved", deployed=False)
    with pytest.raises(PermissionDenied):
        pull(site, "activate", site.stranger)


def test_a_transition_that_the_state_forbids_changes_nothing_and_says_what_is_possible(site: Site) -> None:
    put(site, "approved")
    with pytest.raises(TransitionNotAllowed, match=r"no 'pause'; from here there is reject, activate, archive"):
        pull(site, "pause", site.superuser)
    assert nothing_happened(site, "approved")
    put(site, "archived")
    with pytest.raises(TransitionNotAllowed, match="no way on"):
        pull(site, "submit", site.superuser)
    assert nothing_happened(site, "archived")


def test_an_unknown_trigger_names_those_there_are(site: Site) -> None:
    with pytest.raises(InvalidRequest, match="'publish'") as refusal:
        pull(site, "publish", site.superuser)
    assert all(trigger in str(refusal.value) for trigger in TRIGGERS)
    assert nothing_happened(site, "approved")


@pytest.mark.parametrize("lock", LOCK_STATES)
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_no_trigger_moves_a_study_that_is_being_built(site: Site, lock: str, trigger: str) -> None:
    put(site, lock)
    with pytest.raises(StudyIsLocked, match=rf"'Apples and oranges' is {lock}"):
        pull(site, trigger, site.superuser)
    assert nothing_happened(site, lock)


def test_a_transition_belongs_to_its_transaction_and_vanishes_with_it(site: Site) -> None:
    put(site, "created")
    with site.sessions() as session:
        study = session.get_one(Study, site.study_id)
        transition_as_read(session, study, "submit", session.get_one(User, site.study_admin))
        assert study.state == "submitted"
        session.rollback()
    assert nothing_happened(site, "created")


def test_a_session_that_read_the_state_too_early_is_refused(site: Site) -> None:
    put(site, "submitted")
    refusals: list[Exception] = []

    def retract() -> None:
        try:
            pull(site, "retract", site.study_admin)
        except DomainError as refusal:
            refusals.append(refusal)

    late = threading.Thread(target=retract)
    with site.sessions.begin() as session:
        transition_as_read(
            session, session.get_one(Study, site.study_id), "approve", session.get_one(User, site.site_admin)
        )
        late.start()
        wait_for_the_other(site)
    late.join(timeout=30)
    assert site.study().state == "approved"
    (refusal,) = refusals
    assert isinstance(refusal, TransitionNotAllowed)
    assert "is approved, from where there is no 'retract'" in str(refusal)
    assert [log.action for log in site.logs()] == ["approve"]


def wait_for_the_other(site: Site) -> None:
    """Until the other transaction waits: for the row on PostgreSQL, for its beginning on SQLite."""
    engine = site.sessions.kw["bind"]
    if engine.dialect.name == "sqlite":
        time.sleep(0.1)
        return
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    for _ in range(500):
        with engine.connect() as connection:
            if connection.scalar(waiting):
                return
        time.sleep(0.01)
    raise AssertionError("the second transition never waited for the first")


def test_of_many_who_move_a_study_at_once_one_wins_and_the_others_are_refused_clearly(site: Site) -> None:
    put(site, "active")
    together = threading.Barrier(6)

    def pause(_: int) -> str:
        together.wait()
        try:
            pull(site, "pause", site.study_admin)
        except TransitionNotAllowed as refusal:
            return str(refusal)
        return "won"

    with ThreadPoolExecutor(6) as threads:
        outcomes = list(threads.map(pause, range(6)))
    losers = [outcome for outcome in outcomes if outcome != "won"]
    assert len(losers) == 5
    assert all("has just left the state 'active'" in loser or "is paused, from where" in loser for loser in losers)
    assert [log.action for log in site.logs()] == ["pause"]
    assert told(site) == ["site_admin@example.org"]


def test_no_trigger_steps_around_the_workflow() -> None:
    assert sorted(shared_machine().events) == sorted(TRIGGERS)


def test_a_study_starts_as_created(site: Site) -> None:
    assert site.study(site.another_study("A new one")).state == "created"
    assert shared_machine().initial == "created"
    assert triggers_from("created") == ["submit", "archive"]
    assert triggers_from("previewing") == []


def test_the_machine_is_one_for_all_studies() -> None:
    assert shared_machine() is shared_machine()
    assert shared_machine().models == []


def test_the_table_is_json_all_the_way_down() -> None:
    assert json.loads(json.dumps(active_table())) == active_table()


def test_the_table_comes_back_from_yaml_as_it_was_and_makes_the_same_machine() -> None:
    table = table_from_yaml(yaml.safe_dump(active_table(), sort_keys=False))
    assert table == active_table()
    machine = Machine(model=None, **machine_arguments(table))
    assert edges(machine) == edges(shared_machine())


def edges(machine: Machine) -> Sequence[tuple[str, str, str]]:
    return [
        (name, passage.source, passage.dest)
        for name, event in machine.events.items()
        for passages in event.transitions.values()
        for passage in passages
    ]


ROW = "- {trigger: submit, source: [created], dest: submitted, permission: studies.change_study_status"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "a list of transitions"),
        ("trigger: submit", "a list of transitions"),
        ("- {trigger: submit", "cannot be read as YAML"),
        ("- submit", "not 'submit'"),
        ("- {trigger: submit, source: [created], dest: submitted}", "permission"),
        (f"{ROW}, undo: true}}", "undo"),
        (ROW.replace("[created]", "[born]") + "}", "no state 'born'"),
        (ROW.replace("[created]", "created") + "}", "source"),
        (ROW.replace("[created]", "null") + "}", "source"),
        (ROW.replace("[created]", "[]") + "}", "source"),
        (ROW.replace("dest: submitted", "dest: deploying") + "}", "no state 'deploying'"),
        (ROW.replace("dest: submitted", "dest: [submitted]") + "}", "no state"),
        (ROW.replace("trigger: submit", "trigger: 7") + "}", "trigger"),
        (ROW.replace("studies.change_study_status", "studies.fly") + "}", "no permission 'studies.fly'"),
        (ROW.replace("studies.change_study_status", "[studies.view_study]") + "}", "no permission"),
        (f"{ROW}, needs_deployment: perhaps}}", "needs_deployment"),
        (f"{ROW}, notice: everybody}}", "notice"),
        (f"{ROW}, notice: {{audience: everybody, headline: h, sentence: s}}}}", "everybody"),
        (f"{ROW}, notice: {{audience: [site_admins], headline: h, sentence: s}}}}", "audience"),
        (f"{ROW}, notice: {{audience: site_admins}}}}", "notice"),
    ],
)
def test_a_malformed_table_is_refused_with_what_is_wrong(document: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        table_from_yaml(document)
    assert message in str(refusal.value)
