"""Every state, every trigger, everybody, on both databases: allowed or refused exactly as the table says.

The table is written out once more here, and asked through `transition` and `allowed_triggers`, which must agree.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

import domain
from domain.db import database_now
from domain.errors import DomainError, InvalidRequest, PermissionDenied, StudyIsLocked, TransitionNotAllowed
from domain.models import Lab, OutboxMail, Role, RolePermission, State, Study, StudyLog, User
from domain.permissions.roles import grant_on_lab, grant_on_site, grant_on_study
from domain.studies.workflow import Passage, allowed_triggers, shared_machine
from tests.support.site import Site, transition_as_read

STATUS, APPROVE = "studies.change_study_status", "studies.approve_study"
WORKFLOW = ["created", "submitted", "rejected", "retracted", "approved", "active", "paused", "deactivated", "archived"]
LOCKED = ["previewing", "deploying"]
TABLE = {
    # trigger: (from, to, permission)
    "submit": (["created"], "submitted", STATUS),
    "resubmit": (["rejected", "retracted"], "submitted", STATUS),
    "retract": (["submitted"], "retracted", STATUS),
    "approve": (["submitted"], "approved", APPROVE),
    "reject": (["submitted", "active", "paused", "deactivated", "approved"], "rejected", APPROVE),
    "activate": (["approved", "paused"], "active", STATUS),
    "pause": (["active"], "paused", STATUS),
    "deactivate": (["active", "paused"], "deactivated", STATUS),
    "archive": ([state for state in WORKFLOW if state != "archived"], "archived", STATUS),
}
HOLDS = {
    # Who has which of the two permissions on the study: by a built-in role of the study, of its lab, of the site, …
    "preview": set(),
    "design": set(),
    "analysis": set(),
    "submission_processor": {STATUS},
    "researcher": {STATUS},
    "manager": {STATUS},
    "admin": {STATUS},
    "lab guest": set(),
    "lab readonly": set(),
    "lab member": set(),
    "lab admin": {STATUS},
    "site site_admin": {STATUS, APPROVE},
    # … by a role made by hand with just that permission …
    "status on the study": {STATUS},
    "approval on the study": {APPROVE},
    "status on the lab": {STATUS},
    "status on the site": {STATUS},
    "approval on the site": {APPROVE},
    # … by no role at all, or by one that does not count here.
    "superuser": {STATUS, APPROVE},
    "inactive superuser": set(),
    "inactive admin": set(),
    "inactive site_admin": set(),
    "stranger": set(),
    "admin of another study": set(),
    "admin of another lab": set(),
}
BY_HAND = {"status": STATUS, "approval": APPROVE}


@dataclass(frozen=True)
class World:
    """One study, everybody of HOLDS by that name, and a session whose transaction is never committed."""

    session: Session
    study: Study
    people: dict[str, User]

    def put(self, state: str, *, deployed: bool) -> None:
        self.session.execute(
            update(Study)
            .where(Study.id == self.study.id)
            .values(
                state=state,
                state_before_build="approved" if state in LOCKED else None,
                deployed_at=database_now() if deployed else None,
            )
        )
        self.session.refresh(self.study)

    def stands(self) -> tuple[str | None, int | None, int | None]:
        """The study's state, how many logs there are, how many mails."""
        logs, mails = (
            select(func.count()).select_from(kind).scalar_subquery()
            for kind in (StudyLog.__table__, OutboxMail.__table__)
        )
        row = self.session.execute(select(Study.state, logs, mails).where(Study.id == self.study.id)).one()
        return row[0], row[1], row[2]


@pytest.fixture
def world(site: Site) -> Iterator[World]:
    with site.sessions() as session:
        study, lab = session.get_one(Study, site.study_id), session.get_one(Lab, site.lab_id)
        elsewhere = Lab(name="Another lab")
        neighbour = Study(name="Of the same lab", lab_id=lab.id)
        people = {name: User(email=f"{name.replace(' ', '.')}@example.net", name=name) for name in HOLDS}
        session.add_all([elsewhere, neighbour, *people.values()])
        for scope in ("study", "lab", "site"):
            for name, code in BY_HAND.items():
                role = Role(scope=scope, name=name)
                session.add(role)
                session.flush()
                session.add(RolePermission(role_id=role.id, code=code))
        for name, user in people.items():
            give(session, name, user, study, lab, neighbour, elsewhere)
        session.flush()
        yield World(session, study, people)


def give(session: Session, name: str, user: User, study: Study, lab: Lab, neighbour: Study, elsewhere: Lab) -> None:
    """Let the person hold what their name in HOLDS says."""
    match name.split():
        case ["superuser"] | ["stranger"]:
            user.is_superuser = name == "superuser"
        case ["inactive", role]:
            user.is_active, user.is_superuser = False, role == "superuser"
            if role == "admin":
                grant_on_study(session, user, study, role)
                grant_on_lab(session, user, lab, role)
            elif role == "site_admin":
                grant_on_site(session, user, role)
        case ["admin", "of", "another", "study"]:
            grant_on_study(session, user, neighbour, "admin")
        case ["admin", "of", "another", "lab"]:
            grant_on_lab(session, user, elsewhere, "admin")
        case [role, "on", "the", "study"]:
            grant_on_study(session, user, study, role)
        case ["lab", role] | [role, "on", "the", "lab"]:
            grant_on_lab(session, user, lab, role)
        case ["site", role] | [role, "on", "the", "site"]:
            grant_on_site(session, user, role)
        case [role]:
            grant_on_study(session, user, study, role)
        case _:
            raise ValueError(name)


def expected(state: str, trigger: str, who: str, *, deployed: bool) -> type[DomainError] | str:
    """Where the table lets this person lead the study, or the kind of the refusal."""
    if trigger not in TABLE:
        return InvalidRequest
    if state in LOCKED:
        return StudyIsLocked
    sources, dest, permission = TABLE[trigger]
    if state not in sources:
        return TransitionNotAllowed
    if permission not in HOLDS[who]:
        return PermissionDenied
    if trigger == "activate" and not deployed:
        return TransitionNotAllowed
    return dest


@pytest.mark.parametrize("state", [*WORKFLOW, *LOCKED])
def test_everybody_may_pull_exactly_the_triggers_of_the_table(world: World, state: str) -> None:
    wrong = []
    for deployed in (True, False):
        world.put(state, deployed=deployed)
        for who, user in world.people.items():
            for trigger in (*TABLE, "to_active", "deploy"):
                wanted = expected(state, trigger, who, deployed=deployed)
                savepoint = world.session.begin_nested()
                try:
                    transition_as_read(world.session, world.study, trigger, user)
                    found: type[DomainError] | str = world.study.state
                except DomainError as refusal:
                    found = type(refusal)
                stands = world.stands()
                if isinstance(wanted, str):
                    right = found == wanted == stands[0] and stands[1] == 1
                else:
                    right = found is wanted and stands == (state, 0, 0) and world.study.state == state
                savepoint.rollback()
                if not right:
                    wrong.append(f"{who}, {trigger}, deployed={deployed}: {found}, not {wanted}; {stands}")
    assert wrong == []


@pytest.mark.parametrize("who", list(HOLDS))
def test_what_is_said_to_be_allowed_is_what_the_table_says(world: World, who: str) -> None:
    user, wrong = world.people[who], []
    for state in (*WORKFLOW, *LOCKED):
        for deployed in (True, False):
            world.put(state, deployed=deployed)
            choices = {choice.trigger: choice for choice in allowed_triggers(world.session, world.study, user)}
            assert list(choices) == list(TABLE)
            for trigger, choice in choices.items():
                wanted = expected(state, trigger, who, deployed=deployed)
                starts = state in TABLE[trigger][0]
                right = (
                    choice.allowed == isinstance(wanted, str)
                    and choice.dest == (TABLE[trigger][1] if starts else None)
                    and choice.allowed == (choice.reason == "")
                )
                if not right:
                    wrong.append(f"{trigger} from {state}, deployed={deployed}: {choice}, not {wanted}")
            assert world.stands() == (state, 0, 0)
    assert wrong == []


@pytest.mark.parametrize("state", [*WORKFLOW, *LOCKED])
def test_the_reason_of_a_choice_is_the_refusal_of_the_transition(world: World, state: str) -> None:
    world.put(state, deployed=False)
    for who in ("stranger", "inactive superuser", "manager", "approval on the study", "superuser"):
        user = world.people[who]
        for choice in allowed_triggers(world.session, world.study, user):
            if choice.allowed:
                continue
            with pytest.raises(DomainError) as refusal:
                transition_as_read(world.session, world.study, choice.trigger, user)
            if choice.dest is None:
                assert f"is {state}" in choice.reason
                assert f"is {state}" in str(refusal.value)
            else:
                assert choice.reason == str(refusal.value), who


def test_no_other_trigger_and_no_other_way_exists() -> None:
    machine = shared_machine()
    ways = {
        (name, passage.source, passage.dest)
        for name, event in machine.events.items()
        for passages in event.transitions.values()
        for passage in passages
    }
    assert set(machine.events) == set(TABLE)
    assert ways == {(trigger, source, dest) for trigger, (sources, dest, _) in TABLE.items() for source in sources}
    assert set(machine.states) == set(WORKFLOW)
    assert set(State) == {*WORKFLOW, *LOCKED}


def test_nothing_that_moves_through_the_machine_has_automatic_triggers() -> None:
    for kind in (Passage, Study, type(shared_machine())):
        assert [name for name in dir(kind) if name.startswith(("to_", "may_")) or name in TABLE] == []
    assert not hasattr(shared_machine(), "to_active")
    assert shared_machine().models == []


def test_only_these_functions_write_the_state_of_a_study() -> None:
    root = Path(domain.__file__).parents[1]
    writers = set()
    for room in ("domain", "lookit_ops"):
        for path in (root / room).rglob("*.py"):
            for function in ast.walk(ast.parse(path.read_text())):
                if isinstance(function, ast.FunctionDef) and any(map(writes_a_state, ast.walk(function))):
                    writers.add((path.relative_to(root).as_posix(), function.name))
    assert writers == {
        ("domain/studies/workflow.py", "finalize_state_change"),
        ("domain/studies/edit.py", "_send_back"),
        ("domain/requests/build_claim.py", "lock_study"),
        ("domain/requests/build_claim.py", "unlock_study"),
    }


def writes_a_state(node: ast.AST) -> bool:
    """`x.state = …`, or `….values(state=…)`."""
    match node:
        case ast.Assign(targets=targets):
            return any(isinstance(target, ast.Attribute) and target.attr == "state" for target in targets)
        case ast.Call(func=ast.Attribute(attr="values"), keywords=keywords):
            return any(keyword.arg == "state" for keyword in keywords)
        case _:
            return False
