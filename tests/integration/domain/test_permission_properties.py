"""For any people, roles and grants, on both databases: every question agrees with every other and with plain Python.

The plain Python is `tests/support/naive_permissions.py`. Each example builds its world inside a savepoint and takes it
back; the examples are the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from domain.db import Sessions
from domain.errors import InvalidRequest, PermissionDenied
from domain.models import GrantRecord, LabGrant, SiteGrant, Study, StudyGrant
from domain.permissions.checks import (
    has_permission,
    require_permission,
    studies_with_permission,
    users_with_permission,
)
from domain.permissions.codes import Permission
from domain.permissions.explain import explain_permission
from domain.permissions.grants import Effect, dry_run, grant, permissions_of, revoke
from tests.support import budget
from tests.support.naive_permissions import (
    BUILTIN,
    LAB,
    MANAGES,
    SITE,
    STUDY,
    Held,
    Place,
    Rows,
    World,
    asked,
    codes,
    holdings,
    worlds,
)
from tests.support.statements import statements_of

PAGE = 20


pytestmark = budget.budgeted


@pytest.fixture
def session(sessions: Sessions) -> Iterator[Session]:
    """A session whose transaction is never committed."""
    with sessions() as session:
        yield session


def for_any(session: Session, *drawn: st.SearchStrategy[Any], examples: int) -> Callable[[Callable[..., None]], None]:
    """Run the function below with many drawn arguments, now; PostgreSQL, slower and the same code, gets a third."""
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    some = settings(
        max_examples=budget.examples(examples if is_sqlite else examples // 3),
        derandomize=True,
        deadline=None,  # what takes long is the database, and the machine may be busy …
        suppress_health_check=[HealthCheck.too_slow],  # … also while the examples are drawn; their number is bounded
        phases=[Phase.explicit, Phase.generate, Phase.shrink],  # to explain a failure would take minutes
    )
    return lambda check: some(given(*drawn)(check))()


@contextmanager
def built(session: Session, world: World) -> Iterator[Rows]:
    """The world as rows, until the block ends."""
    savepoint = session.begin_nested()
    try:
        yield world.build(session)
    finally:
        savepoint.rollback()
        session.expunge_all()


def test_a_check_everyone_who_and_an_explanation_say_what_plain_python_says(session: Session) -> None:
    @for_any(session, worlds().flatmap(asked), examples=100)
    def _(example: tuple[World, list[str]]) -> None:
        world, asked_about = example
        with built(session, world) as rows:
            for code in map(Permission, asked_about):
                for place in world.places:
                    target, holders = rows.at(place), world.holders(code, place)
                    found = users_with_permission(session, code, target)
                    assert found == [rows.users[number] for number in sorted(holders)], (code, place)
                    for number, user in enumerate(rows.users):
                        case = (number, code, place)
                        holds = number in holders
                        assert has_permission(session, user, code, target) is holds, case
                        assert is_let_pass(session, user, code, target) is holds, case
                        explanation = explain_permission(session, user, code, target)
                        assert explanation.held is holds, case
                        assert len(explanation.reasons) == reasons_for(world, *case), (case, explanation)


def is_let_pass(session: Session, *question: Any) -> bool:
    try:
        require_permission(session, *question)
    except PermissionDenied:
        return False
    return True


def reasons_for(world: World, user: int, code: str, place: Place) -> int:
    """How many sentences an explanation has: one for each way in which it is held, or else what is missing and who."""
    account = world.accounts[user]
    if not account.is_active:
        return 1
    held = account.is_superuser + world.ways(user, code, place)
    return held or (2 if is_about_another_object(code, place) else 3)


def is_about_another_object(code: str, place: Place) -> bool:
    return place.scope == STUDY and code.startswith("labs.")


def test_all_that_somebody_holds_is_the_sum_of_the_single_checks(session: Session) -> None:
    @for_any(session, worlds(), examples=100)
    def _(world: World) -> None:
        with built(session, world) as rows:
            for number, user in enumerate(rows.users):
                for place in world.places:
                    found = permissions_of(session, user, rows.at(place))
                    assert {code.value for code in found} == world.held_by(number, place), (number, place)


def test_the_list_of_studies_is_the_studies_whose_single_check_passes(session: Session) -> None:
    @for_any(session, worlds(studies=6).flatmap(asked), examples=100)
    def _(example: tuple[World, list[str]]) -> None:
        world, asked_about = example
        with built(session, world) as rows:
            for code in map(Permission, asked_about):
                for number, user in enumerate(rows.users):
                    wanted = {rows.studies[study].id for study in world.studies_of(number, code)}
                    query = studies_with_permission(session, user, code)
                    ids = list(session.scalars(query.with_only_columns(Study.id)))
                    assert sorted(ids) == sorted(wanted), (number, code)  # each once
                    assert {study.id for study in session.scalars(query)} == wanted


def test_the_list_composes_with_filters_order_pages_and_count(session: Session) -> None:
    @for_any(session, worlds(studies=8).flatmap(asked), st.integers(1, 4), st.integers(0, 3), examples=60)
    def _(example: tuple[World, list[str]], size: int, page: int) -> None:
        world, (code, *_) = example
        with built(session, world) as rows:
            for number, user in enumerate(rows.users):
                mine = sorted(study for study in world.studies_of(number, code) if study != 1)
                query = studies_with_permission(session, user, Permission(code)).where(Study.name != "Study 1")
                newest_first = query.order_by(Study.id.desc()).limit(size).offset(page * size)
                found = [study.name for study in session.scalars(newest_first)]
                assert found == [f"Study {study}" for study in mine[::-1]][page * size :][:size]
                assert session.scalar(select(func.count()).select_from(query.subquery())) == len(mine)
                for lab in rows.labs:
                    in_lab = {study for study in mine if rows.labs[world.studies[study]] is lab}
                    of_lab = session.scalars(query.where(Study.lab_id == lab.id))
                    assert {study.name for study in of_lab} == {f"Study {study}" for study in in_lab}


def test_a_check_is_one_statement_a_list_two_at_most_a_page_with_its_count_three(session: Session) -> None:
    @for_any(session, worlds().flatmap(asked), examples=60)
    def _(example: tuple[World, list[str]]) -> None:
        world, (code, *_) = example
        permission = Permission(code)
        with built(session, world) as rows:
            for user in rows.users:
                for place in world.places:
                    for ask in (has_permission, is_let_pass):
                        with statements_of(session) as seen:
                            ask(session, user, permission, rows.at(place))
                        assert len(seen) == 1, (ask, place)
                    with statements_of(session) as seen:
                        permissions_of(session, user, rows.at(place))
                        users_with_permission(session, permission, rows.at(place))
                    assert len(seen) == 2, place
                with statements_of(session) as seen:
                    session.scalars(studies_with_permission(session, user, permission)).all()
                assert len(seen) <= 2
                with statements_of(session) as seen:
                    query = studies_with_permission(session, user, permission)
                    session.scalars(query.order_by(Study.id).limit(PAGE)).all()
                    session.scalar(select(func.count()).select_from(query.subquery()))
                assert len(seen) <= 3


@st.composite
def acts(draw: Callable[..., Any], world: World) -> tuple[int, Held, bool]:
    """Who acts, what is given or taken, and which of the two; mostly somebody who manages people there."""
    held = draw(st.sampled_from(sorted(world.grants)) | holdings(world) if world.grants else holdings(world))
    anybody = st.integers(0, len(world.accounts) - 1)
    managers = sorted(world.holders(MANAGES[held.place.scope], held.place))
    return draw(st.sampled_from(managers) | anybody if managers else anybody), held, draw(st.booleans())


def expected(world: World, acting: int, held: Held, *, giving: bool) -> type[Exception] | tuple[set[str], set[str]]:
    """What the act must do: be refused, or let the user gain and lose these permissions at the place."""
    if not world.may_manage(acting, world.roles[held.place.scope, held.role], held.place):
        return PermissionDenied
    if giving == (held in world.grants) or (giving and not world.accounts[held.user].is_active):
        return InvalidRequest
    if not giving and world.loses_its_last_admin(held):
        return InvalidRequest
    before = world.held_by(held.user, held.place)
    after = world.changed(held, giving=giving).held_by(held.user, held.place)
    return after - before, before - after


def outcome(act: Callable[[], Effect]) -> type[Exception] | tuple[set[str], set[str]]:
    try:
        effect = act()
    except (InvalidRequest, PermissionDenied) as refusal:
        return type(refusal)
    assert list(effect.gains) == sorted(effect.gains)
    assert list(effect.loses) == sorted(effect.loses)
    return {*effect.gains}, {*effect.loses}


def rows_of_grants(session: Session) -> list[Any]:
    kinds = (StudyGrant, LabGrant, SiteGrant, GrantRecord)
    return [tuple(row) for kind in kinds for row in session.execute(select(*kind.__table__.columns))]


def test_a_dry_run_says_exactly_what_then_happens_and_changes_nothing(session: Session) -> None:
    drawn = worlds().flatmap(lambda world: st.tuples(st.just(world), acts(world)))

    @for_any(session, drawn, examples=300)
    def _(example: tuple[World, tuple[int, Held, bool]]) -> None:
        world, (acting, held, giving) = example
        with built(session, world) as rows:
            by, user, target = rows.users[acting], rows.users[held.user], rows.at(held.place)
            before = rows_of_grants(session)
            said = outcome(lambda: dry_run(session, by, user, held.role, target, giving=giving))
            assert rows_of_grants(session) == before
            assert {*permissions_of(session, user, target)} == world.held_by(held.user, held.place)
            then = outcome(lambda: (grant if giving else revoke)(session, by, user, held.role, target))
            assert said == then == expected(world, acting, held, giving=giving)
            is_refused = isinstance(then, type)
            after = world if is_refused else world.changed(held, giving=giving)
            assert {*permissions_of(session, user, target)} == after.held_by(held.user, held.place)
            assert (rows_of_grants(session) == before) is is_refused


def test_after_any_grants_and_revocations_the_database_says_what_plain_python_says(session: Session) -> None:
    drawn = worlds(grants=4).flatmap(lambda world: st.tuples(st.just(world), st.lists(acts(world), max_size=8)))

    @for_any(session, drawn, examples=60)
    def _(example: tuple[World, list[tuple[int, Held, bool]]]) -> None:
        world, wanted = example
        done = 0
        with built(session, world) as rows:
            for acting, held, giving in wanted:
                by, user, target = rows.users[acting], rows.users[held.user], rows.at(held.place)
                then = outcome(lambda: (grant if giving else revoke)(session, by, user, held.role, target))  # noqa: B023
                assert then == expected(world, acting, held, giving=giving)
                if not isinstance(then, type):
                    changed = world.changed(held, giving=giving)
                    world, done = changed, done + len(world.grants ^ changed.grants)
            for number, user in enumerate(rows.users):
                for place in world.places:
                    found = {code.value for code in Permission if has_permission(session, user, code, rows.at(place))}
                    assert found == world.held_by(number, place)
            assert session.scalar(select(func.count(GrantRecord.id))) == done


def test_who_is_said_to_be_able_to_grant_really_is(session: Session) -> None:
    @for_any(session, worlds(grants=9), codes, examples=240)
    def _(world: World, code: str) -> None:
        with built(session, world) as rows:
            for number, user in enumerate(rows.users):
                for place in world.places:
                    if not world.accounts[number].is_active or world.holds(number, code, place):
                        continue
                    if is_about_another_object(code, place):
                        continue
                    explanation = explain_permission(session, user, Permission(code), rows.at(place))
                    role, where = narrowest(world, code, place)
                    if role:
                        assert role in explanation.reasons[1]
                    everyone = range(len(world.accounts))
                    given_by_it = BUILTIN[where.scope, role] if role else frozenset({code})
                    could = {acting for acting in everyone if world.may_manage(acting, given_by_it, where)}
                    named = {acting for acting in could if rows.users[acting].email in explanation.reasons[2]}
                    assert named == could, explanation
                    assert ("Nobody" in explanation.reasons[2]) == (not could)
                    if role and could:  # and it helps
                        with session.begin_nested() as savepoint:
                            grant(session, rows.users[min(could)], user, role, rows.at(where))
                            assert has_permission(session, user, Permission(code), rows.at(place))
                            savepoint.rollback()


def narrowest(world: World, code: str, place: Place) -> tuple[str, Place]:
    """A built-in role that gives the permission, and where: the study before its lab before the site."""
    around = [place] if place.scope != SITE else []
    if place.scope == STUDY:
        around.append(Place(LAB, world.studies[place.number]))
    for where in [*around, Place(SITE)]:
        for (scope, name), held in sorted(BUILTIN.items()):
            if scope == where.scope and code in held:
                return name, where
    return "", Place(SITE)
