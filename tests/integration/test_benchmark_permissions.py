"""The benchmark of permissions: its sides answer all questions alike and rightly, and ours sends few statements."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from benchmarks.frame import BenchmarkError
from benchmarks.permissions import OURS, PEERS, Size, Stage, about_new_studies, rows, staged
from benchmarks.permissions.population import Grants, Population, make_population
from benchmarks.permissions.processes import SideProcess, make_ours
from benchmarks.permissions.questions import (
    Check,
    Creation,
    Holders,
    Listing,
    Page,
    draw_checks,
    draw_creations,
    draw_holders,
    draw_listings,
    draw_pages,
    require_agreement,
)
from benchmarks.permissions.storage import MakeDatabase, size_of, tidy
from domain.models.accounts import RoleScope
from domain.permissions.codes import STUDY_PERMISSIONS, Permission
from domain.permissions.roles import BUILTIN_ROLES
from tests.support.databases import POSTGRESQL, SQLITE, create_database

ROOT = Path(__file__).parents[2]
TINY = Size(studies=6, users=10, labs=3, checks=8, others=3, runs=1)
PERMISSIONS = sorted(STUDY_PERMISSIONS)


def tiny_population() -> Population:
    """Somebody with each role, on studies and labs that do not all belong together, and all who are special."""
    on_studies = {(5 + number % 6, 1 + number % 6, role) for number, role in enumerate(roles(RoleScope.STUDY))}
    on_labs = {(5 + number % 6, 1 + number % 3, role) for number, role in enumerate(roles(RoleScope.LAB))}
    grants = Grants(
        on_studies=frozenset(on_studies | {(5, 1, "researcher"), (10, 1, "admin"), (4, 2, "admin")}),
        on_labs=frozenset(on_labs | {(7, 2, "member"), (10, 3, "admin"), (1, 1, "guest")}),
        on_site=frozenset({(3, "site_admin"), (10, "site_admin")}),
    )
    made = make_population(studies=TINY.studies, users=TINY.users, labs=TINY.labs)
    return replace(made, superusers=frozenset({1, 2}), inactive=frozenset({2, 10}), grants=grants)


def roles(scope: RoleScope) -> list[str]:
    return [name for of, name in BUILTIN_ROLES if of is scope]


def holds(population: Population, check: Check) -> bool:
    """The rule itself, from the grants."""
    user, permission, lab = check.user, check.permission, population.lab_of_study[check.study - 1]
    if user in population.inactive:
        return False
    if user in population.superusers:
        return True
    grants = population.grants
    held = [
        *(
            BUILTIN_ROLES[RoleScope.STUDY, role]
            for who, what, role in grants.on_studies
            if (who, what) == (user, check.study)
        ),
        *(BUILTIN_ROLES[RoleScope.LAB, role] for who, what, role in grants.on_labs if (who, what) == (user, lab)),
        *(BUILTIN_ROLES[RoleScope.SITE, role] for who, role in grants.on_site if who == user),
    ]
    return any(permission in permissions for permissions in held)


@pytest.fixture(scope="module")
def population() -> Population:
    return tiny_population()


@pytest.fixture(scope="module", params=[SQLITE, POSTGRESQL])
def make_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MakeDatabase:
    """A database of a new name at each call."""
    if request.param == SQLITE:
        folder = tmp_path_factory.mktemp("sides")
        return lambda name: f"sqlite:///{folder / name}_{uuid4().hex}.db"
    server = request.getfixturevalue("postgresql_server")
    return lambda name: create_database(server, f"{name}_{uuid4().hex}")


@pytest.fixture(scope="module")
def stage(make_database: MakeDatabase, population: Population) -> Iterator[Stage]:
    """All sides, loaded with the tiny site. Studies that a test makes stay."""
    with staged(make_database, population) as stage:
        yield stage


# --- all sides give the right answers


def test_every_check_is_answered_alike_and_rightly(stage, population):
    checks = [Check(*triple) for triple in product(population.everyone, PERMISSIONS, range(1, population.studies + 1))]
    expected = [holds(population, check) for check in checks]
    assert 0.2 < sum(expected) / len(expected) < 0.8
    assert {name: side.answers(checks) for name, side in stage.sides.items()} == dict.fromkeys(stage.sides, expected)


def test_every_list_holds_the_studies_of_which_the_check_is_true(stage, population):
    studies = range(1, population.studies + 1)
    for user, permission in product(population.everyone, PERMISSIONS):
        seen = tuple(study for study in studies if holds(population, Check(user, permission, study)))
        for side in stage.sides.values():
            (listed,) = side.answers([Listing(user, permission)])
            assert tuple(study for study in listed if study in studies) == seen
            (page,) = side.answers([Page(user, permission)])
            assert page == (len(listed), *reversed(listed))


def test_everyone_who_holds_a_permission_is_found(stage, population):
    for permission, study in product(PERMISSIONS, range(1, population.studies + 1)):
        holders = tuple(user for user in population.everyone if holds(population, Check(user, permission, study)))
        for side in stage.sides.values():
            assert side.answers([Holders(permission, study)]) == [holders]


def test_a_new_study_is_its_creators_on_every_side(stage):
    first = {name: side.answers([Creation(7, 2, "New")])[0] for name, side in stage.sides.items()}
    assert len(set(first.values())) == 1
    study = first[OURS]
    admin = BUILTIN_ROLES[RoleScope.STUDY, "admin"]
    for side in stage.sides.values():
        assert side.answers([Check(7, permission, study) for permission in PERMISSIONS]) == [
            permission in admin for permission in PERMISSIONS
        ]
    stage.agree([Holders(permission, study) for permission in PERMISSIONS])


def test_a_page_is_the_newest_twenty_and_says_how_many_there_are(make_database):
    population = make_population(studies=45, users=12, labs=2)
    with staged(make_database, population) as stage:
        for side in stage.sides.values():
            assert side.answers([Page(1, Permission.VIEW_STUDY)]) == [(45, *range(45, 25, -1))]
        for questions in (draw_pages(population, 10), draw_listings(population, 10), draw_checks(population, 40)):
            stage.agree(questions)


# --- statements


def test_ours_sends_one_statement_for_a_check_two_for_a_list_and_three_for_a_page(stage, population):
    side = stage.sides[OURS]
    people = list(product(population.everyone, PERMISSIONS))
    assert counts(side, [Check(user, permission, 1) for user, permission in people]) == {1}
    assert counts(side, [Listing(user, permission) for user, permission in people]) == {2}
    assert counts(side, [Page(user, permission) for user, permission in people]) == {3}
    assert counts(side, [Holders(permission, study) for permission, study in product(PERMISSIONS, (1, 2, 3))]) == {1}


@pytest.mark.parametrize("peer", PEERS)
def test_the_peer_keeps_a_permission_on_an_object_where_its_name_says(stage, peer):
    tables = stage.sides[peer].tables
    generic = "guardian_groupobjectpermission" in tables
    direct = {"direct_keys_studygrouppermission", "direct_keys_labgrouppermission"} <= set(tables)
    assert (generic, direct) == ((peer == "guardian_generic"), (peer == "guardian_direct"))
    (statements,) = stage.sides[peer].statements([Check(8, Permission.APPROVE_STUDY, 1)])
    assert any(("guardian_groupobjectpermission" if generic else "direct_keys_study") in sent for sent in statements)


def counts(side: SideProcess, questions: list) -> set[int]:
    return {len(statements) for statements in side.statements(questions)}


# --- the questions


def test_the_site_and_the_questions_are_the_same_each_time():
    def drawn() -> list:
        site = make_population(studies=30, users=60, labs=4)
        return [
            site,
            *(draw(site, 10) for draw in (draw_checks, draw_listings, draw_pages, draw_holders, draw_creations)),
        ]

    assert drawn() == drawn()


def test_the_site_has_everyone_who_is_special():
    site = Size.chosen(True).population()
    assert (site.studies, site.users, site.labs) == (500, 200, 10)
    assert site.superusers & site.inactive
    assert site.superusers - site.inactive
    assert site.inactive - site.superusers
    assert {role for *_, role in site.grants.on_studies} == set(roles(RoleScope.STUDY))
    assert {role for *_, role in site.grants.on_labs} == set(roles(RoleScope.LAB))
    assert not {1, 2, 3, 4, 50} & set(site.ordinary)


def test_three_of_four_checks_are_held_and_half_of_all_on_the_study_itself():
    site = Size.chosen(True).population()
    checks = draw_checks(site, 400)
    on_studies = {(user, study) for user, study, _ in site.grants.on_studies}
    assert sum((check.user, check.study) in on_studies for check in checks) >= 200
    assert 0.7 < sum(holds(site, check) for check in checks) / 400 < 0.85


def test_who_makes_a_study_may():
    site = Size.chosen(True).population()
    for creation in draw_creations(site, 50):
        held = {role for user, lab, role in site.grants.on_labs if (user, lab) == (creation.user, creation.lab)}
        assert any(Permission.CREATE_LAB_STUDY in BUILTIN_ROLES[RoleScope.LAB, role] for role in held)
        assert creation.user not in site.inactive


def test_about_a_new_study_everybody_is_asked(population):
    questions = about_new_studies(population, [Creation(7, 2, "New"), Creation(8, 1, "Another")])
    assert {(question.permission, question.study) for question in questions if isinstance(question, Holders)} == set(
        product(PERMISSIONS, (population.studies + 1, population.studies + 2))
    )
    assert {question.user for question in questions if isinstance(question, Page)} == {7, 8}


# --- the benchmark itself


def test_every_row_has_its_name_and_a_ratio(make_database):
    done = list(rows("sqlite", make_database, TINY))
    kinds = ("bytes", "check", "list", "page", "users", "create_study")
    assert [row.name for row in done] == [
        f"permissions.{kind}.sqlite.vs_{peer}" for kind, peer in product(kinds, ("guardian_direct", "guardian_generic"))
    ]
    assert all(row.ratio for row in done)
    assert all(row.note.startswith("statements each: 1, the peer ") for row in done if ".check." in row.name)


def test_sides_that_disagree_stop_the_benchmark():
    questions = [Check(1, Permission.VIEW_STUDY, 1), Check(2, Permission.VIEW_STUDY, 7)]
    require_agreement(questions, {"ours": [True, False], "peer": [True, False]})
    with pytest.raises(BenchmarkError, match=r"disagree about Check\(user=2, .*study=7\): ours: False; peer: True"):
        require_agreement(questions, {"ours": [True, False], "peer": [True, True]})


def test_what_a_side_raises_in_its_process_is_told_here(make_database, population):
    with SideProcess(make_ours, make_database(OURS)) as side:
        side.begin_loading(population)
        side.finish_loading()
        with pytest.raises(BenchmarkError, match="NoResultFound"):
            side.answers([Check(99, Permission.VIEW_STUDY, 1)])
        with pytest.raises(BenchmarkError, match="has ended"):
            side.answers([Check(1, Permission.VIEW_STUDY, 1)])


def test_only_the_tables_that_are_named_are_weighed(make_database):
    url = make_database("weights")
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for table in ("small", "large"):
            connection.execute(text(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, name VARCHAR(100))"))
        connection.execute(text("INSERT INTO small VALUES (1, 'one')"))
        connection.execute(
            text("INSERT INTO large VALUES (:id, :name)"), [{"id": n, "name": f"{n:0100}"} for n in range(10_000)]
        )
    tidy(url)
    small, large = size_of(url, ["small"]), size_of(url, ["large"])
    assert small < 100_000
    assert 1_000_000 < large < 3_000_000
    with engine.begin() as connection:
        connection.execute(text("CREATE INDEX by_name ON large (name)"))
    assert size_of(url, ["large"]) > 1.5 * large
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM small")).scalar() == 1


def test_finding_the_benchmarks_does_not_set_up_django():
    code = "import sys; from benchmarks.frame import load_benchmarks; load_benchmarks(); print('django' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
