"""Grants and roles made by hand, on both databases: who may give and take what, what is recorded, what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select

from domain.errors import DomainError, InvalidRequest, PermissionDenied
from domain.models import GrantRecord, Lab, LabGrant, Role, RolePermission, SiteGrant, Study, StudyGrant, User
from domain.models.accounts import RoleScope
from domain.permissions.checks import has_permission
from domain.permissions.codes import LAB_PERMISSIONS, Permission
from domain.permissions.grants import (
    Effect,
    dry_run,
    grant,
    grant_first_admin,
    make_role,
    permissions_of,
    revoke,
)
from domain.permissions.held import Held, roles_of, roles_on
from domain.permissions.roles import grant_on_lab, grant_on_site, grant_on_study
from tests.support.site import Site

P = Permission
STUDY, LAB, SITE = "study", "lab", "site"
ROLE = {STUDY: "analysis", LAB: "guest", SITE: "site_admin"}
"""A role of each scope, to be given."""
WHERE = {
    STUDY: "on the study 'Apples and oranges' (",
    LAB: "on the lab 'Early Childhood Lab'",
    SITE: "platform-wide",
}


@pytest.fixture
def lab_admin(site: Site) -> int:
    with site.sessions.begin() as session:
        user = User(email="lab_admin@example.org", name="Lab Admin")
        session.add(user)
        session.flush()
        grant_on_lab(session, user, session.get_one(Lab, site.lab_id), "admin")
        return user.id


def act(site: Site, how: Callable[..., Any], acting: int, user: int, role: str, scope: str, **more: Any) -> Effect:
    """Let one person grant or revoke, on the site's study, its lab or platform-wide, in a transaction of its own."""
    with site.sessions.begin() as session:
        targets = {STUDY: session.get_one(Study, site.study_id), LAB: session.get_one(Lab, site.lab_id), SITE: None}
        by, of = session.get_one(User, acting), session.get_one(User, user)
        return how(session, by, of, role, targets[scope], **more)


def give(site: Site, acting: int, user: int, role: str, scope: str = STUDY) -> Effect:
    return act(site, grant, acting, user, role, scope)


def take(site: Site, acting: int, user: int, role: str, scope: str = STUDY) -> Effect:
    return act(site, revoke, acting, user, role, scope)


def held(site: Site, user_id: int) -> set[tuple[str, str]]:
    """The roles that somebody holds anywhere, with their scope."""
    with site.sessions.begin() as session:
        query = select(Role.scope, Role.name)
        kinds = (StudyGrant, LabGrant, SiteGrant)
        rows = [session.execute(query.join(kind).where(kind.user_id == user_id)) for kind in kinds]
        return {(scope, name) for found in rows for scope, name in found}


def records(site: Site) -> list[GrantRecord]:
    with site.sessions.begin() as session:
        return list(session.scalars(select(GrantRecord).order_by(GrantRecord.id)))


def by_hand(site: Site, scope: str, name: str, *codes: Permission) -> None:
    with site.sessions.begin() as session:
        role = Role(scope=scope, name=name)
        session.add(role)
        session.flush()
        session.add_all(RolePermission(role_id=role.id, code=code.value) for code in codes)


def refused(kind: type[DomainError], site: Site, attempt: Callable[[], Any]) -> str:
    """What the refusal says; nobody's roles may have changed, and nothing may have been recorded."""
    before = len(records(site)), every_grant(site)
    with pytest.raises(kind) as refusal:
        attempt()
    assert (len(records(site)), every_grant(site)) == before
    return str(refusal.value)


def every_grant(site: Site) -> list[Any]:
    with site.sessions.begin() as session:
        kinds = (StudyGrant, LabGrant, SiteGrant)
        return [tuple(row) for kind in kinds for row in session.execute(select(*kind.__table__.columns))]


MAY = {
    STUDY: {"study_admin": True, "lab_admin": True, "superuser": True, "site_admin": False, "designer": False},
    LAB: {"lab_admin": True, "site_admin": True, "superuser": True, "study_admin": False, "designer": False},
    SITE: {"site_admin": True, "superuser": True, "lab_admin": False, "study_admin": False, "designer": False},
}
NEEDED = {STUDY: "studies.manage_study_researchers", LAB: "labs.manage_lab_researchers"}
NEEDED[SITE] = NEEDED[LAB]


@pytest.mark.parametrize("scope", MAY)
def test_who_manages_the_people_of_an_object_gives_and_takes_its_roles_and_nobody_else(
    site: Site, lab_admin: int, scope: str
) -> None:
    people = {"lab_admin": lab_admin}
    for who, may in (MAY[scope] | {"lab_member": False, "stranger": False, "inactive": False}).items():
        acting = people.get(who) or getattr(site, who)
        if may:
            give(site, acting, site.stranger, ROLE[scope], scope)
            assert held(site, site.stranger) == {(scope, ROLE[scope])}, who
            take(site, acting, site.stranger, ROLE[scope], scope)
            assert held(site, site.stranger) == set(), who
        else:
            said = refused(PermissionDenied, site, lambda: give(site, acting, site.stranger, ROLE[scope], scope))  # noqa: B023
            assert "is inactive" in said if who == "inactive" else f"{who}@example.org lacks {NEEDED[scope]}" in said
            assert who == "inactive" or WHERE[scope] in said


def test_who_may_not_give_may_not_take(site: Site) -> None:
    message = refused(PermissionDenied, site, lambda: take(site, site.stranger, site.designer, "design"))
    assert "stranger@example.org lacks studies.manage_study_researchers" in message
    assert held(site, site.designer) == {(STUDY, "design")}


@pytest.mark.parametrize("scope", [STUDY, LAB, SITE])
def test_each_grant_and_each_revocation_is_recorded_once(site: Site, scope: str) -> None:
    give(site, site.superuser, site.stranger, ROLE[scope], scope)
    take(site, site.superuser, site.stranger, ROLE[scope], scope)
    wanted = (site.superuser, site.stranger, ROLE[scope], scope)
    found = records(site)
    assert [(record.acting_id, record.user_id, record.role_name, record.scope) for record in found] == [wanted, wanted]
    assert [record.action for record in found] == ["grant", "revoke"]
    assert {record.study_id for record in found} == {site.study_id if scope == STUDY else None}
    assert {record.lab_id for record in found} == {site.lab_id if scope == LAB else None}
    assert found[0].created_at <= found[1].created_at


def test_a_grant_and_its_record_belong_to_one_transaction(site: Site) -> None:
    with site.sessions() as session:
        study, by = session.get_one(Study, site.study_id), session.get_one(User, site.study_admin)
        grant(session, by, session.get_one(User, site.stranger), "analysis", study)
        session.rollback()
    assert (held(site, site.stranger), records(site)) == (set(), [])


def test_the_effect_names_what_is_gained_or_lost_and_nothing_that_was_there_before(site: Site) -> None:
    effect = give(site, site.study_admin, site.designer, "analysis")
    assert effect == Effect(user="designer@example.org", gains=(P.VIEW_STUDY_RESPONSES,), loses=())
    lost = take(site, site.study_admin, site.designer, "design")
    assert lost == Effect(user="designer@example.org", gains=(), loses=(P.CHANGE_STUDY,))
    assert held(site, site.designer) == {(STUDY, "analysis")}


def test_a_superuser_gains_and_loses_nothing_by_roles(site: Site) -> None:
    for effect in (
        give(site, site.study_admin, site.superuser, "admin"),
        take(site, site.study_admin, site.superuser, "admin"),
    ):
        assert (effect.gains, effect.loses) == ((), ())
    assert [record.action for record in records(site)] == ["grant", "revoke"]


@pytest.mark.parametrize("scope", [STUDY, LAB, SITE])
def test_a_role_that_is_held_already_is_not_given_again(site: Site, scope: str) -> None:
    give(site, site.superuser, site.stranger, ROLE[scope], scope)
    said = refused(InvalidRequest, site, lambda: give(site, site.superuser, site.stranger, ROLE[scope], scope))
    assert said.startswith(f"stranger@example.org is {ROLE[scope]} {WHERE[scope]}")
    assert said.endswith("already")


@pytest.mark.parametrize("scope", [STUDY, LAB, SITE])
def test_a_role_that_is_not_held_cannot_be_taken(site: Site, scope: str) -> None:
    said = refused(InvalidRequest, site, lambda: take(site, site.superuser, site.stranger, ROLE[scope], scope))
    assert said.startswith(f"stranger@example.org is not {ROLE[scope]} {WHERE[scope]}")
    assert said.endswith("so there is nothing to revoke")


@pytest.mark.parametrize(
    ("scope", "there_are"),
    [
        (STUDY, "admin, analysis, design, manager, preview, researcher, submission_processor"),
        (LAB, "admin, guest, listener, member, readonly"),
        (SITE, "site_admin"),
    ],
)
@pytest.mark.parametrize("how", [grant, revoke])
def test_an_unknown_role_names_those_there_are_on_such_an_object(
    site: Site, scope: str, there_are: str, how: Callable[..., Effect]
) -> None:
    by_hand(site, LAB, "listener", P.VIEW_STUDY)
    said = refused(InvalidRequest, site, lambda: act(site, how, site.superuser, site.stranger, "wizard", scope))
    assert said == f"no {scope} role is called 'wizard'; there are {there_are}"


def test_a_role_of_one_kind_of_object_is_none_of_another(site: Site) -> None:
    said = refused(InvalidRequest, site, lambda: give(site, site.superuser, site.stranger, "guest", STUDY))
    assert said.startswith("no study role is called 'guest'")


def test_an_inactive_account_is_given_nothing_but_can_lose_what_it_has(site: Site) -> None:
    said = refused(InvalidRequest, site, lambda: give(site, site.study_admin, site.inactive, "design"))
    assert said == "the account of inactive@example.org is inactive: activate it before you give it a role"
    with site.sessions.begin() as session:
        session.get_one(User, site.designer).is_active = False
    assert take(site, site.study_admin, site.designer, "design").loses == ()
    assert held(site, site.designer) == set()


# -- approvals ---------------------------------------------------------------------------------------------------------


def test_a_role_that_approves_is_passed_on_only_by_who_approves(site: Site) -> None:
    by_hand(site, STUDY, "reviewer", P.APPROVE_STUDY, P.VIEW_STUDY)
    said = refused(PermissionDenied, site, lambda: give(site, site.study_admin, site.stranger, "reviewer"))
    assert said.startswith(
        "the role 'reviewer' holds studies.approve_study, which study_admin@example.org does not hold"
    )
    assert WHERE[STUDY] in said
    assert said.endswith("only who approves studies lets others approve them")
    # Who approves everywhere, but does not manage the study's people, does not either.
    said = refused(PermissionDenied, site, lambda: give(site, site.site_admin, site.stranger, "reviewer"))
    assert "site_admin@example.org lacks studies.manage_study_researchers" in said
    give(site, site.study_admin, site.site_admin, "manager")
    assert give(site, site.site_admin, site.stranger, "reviewer").gains == (P.APPROVE_STUDY, P.VIEW_STUDY)


def test_nobody_makes_a_reviewer_of_themselves(site: Site) -> None:
    by_hand(site, STUDY, "reviewer", P.APPROVE_STUDY)
    refused(PermissionDenied, site, lambda: give(site, site.study_admin, site.study_admin, "reviewer"))


def test_who_does_not_approve_does_not_take_approvals_away_either(site: Site) -> None:
    by_hand(site, STUDY, "reviewer", P.APPROVE_STUDY)
    give(site, site.superuser, site.stranger, "reviewer")
    said = refused(PermissionDenied, site, lambda: take(site, site.study_admin, site.stranger, "reviewer"))
    assert "only who approves studies" in said
    assert take(site, site.superuser, site.stranger, "reviewer").loses == (P.APPROVE_STUDY,)


def test_who_manages_people_platform_wide_without_approving_makes_no_site_admin(site: Site) -> None:
    by_hand(site, SITE, "personnel", P.MANAGE_LAB_RESEARCHERS)
    give(site, site.site_admin, site.stranger, "personnel", SITE)
    said = refused(PermissionDenied, site, lambda: give(site, site.stranger, site.designer, "site_admin", SITE))
    assert "'site_admin' holds studies.approve_study" in said
    assert give(site, site.stranger, site.designer, "personnel", SITE).gains == (P.MANAGE_LAB_RESEARCHERS,)


def test_a_role_on_a_lab_never_makes_anybody_approve_its_studies(site: Site) -> None:
    by_hand(site, LAB, "patron", P.APPROVE_STUDY, P.VIEW_STUDY)
    with site.sessions.begin() as session:
        user, study = session.get_one(User, site.stranger), session.get_one(Study, site.study_id)
        grant_on_lab(session, user, session.get_one(Lab, site.lab_id), "patron")
        session.flush()
        assert permissions_of(session, user, study) == {P.VIEW_STUDY}
        assert not has_permission(session, user, P.APPROVE_STUDY, study)


# -- the first site admin ----------------------------------------------------------------------------------------------


def make_first(site: Site, user_id: int) -> Effect:
    with site.sessions.begin() as session:
        return grant_first_admin(session, session.get_one(User, user_id))


def test_the_first_site_admin_is_made_once_and_recorded(site: Site) -> None:
    act(site, revoke, site.superuser, site.site_admin, "site_admin", SITE, force=True)
    effect = make_first(site, site.stranger)
    assert P.APPROVE_STUDY in effect.gains
    assert held(site, site.stranger) == {(SITE, "site_admin")}
    record = records(site)[-1]
    assert (record.acting_id, record.user_id) == (None, site.stranger)
    assert (record.role_name, record.scope, record.action) == ("site_admin", SITE, "grant")
    said = refused(InvalidRequest, site, lambda: make_first(site, site.designer))
    assert "stranger@example.org is site_admin already" in said
    give(site, site.stranger, site.designer, "site_admin", SITE)


def test_an_inactive_account_is_neither_made_the_first_site_admin_nor_in_the_way_of_one(site: Site) -> None:
    act(site, revoke, site.superuser, site.site_admin, "site_admin", SITE, force=True)
    assert "is inactive" in refused(InvalidRequest, site, lambda: make_first(site, site.inactive))
    with site.sessions.begin() as session:
        grant_on_site(session, session.get_one(User, site.inactive), "site_admin")
    make_first(site, site.stranger)
    assert held(site, site.stranger) == {(SITE, "site_admin")}


def test_of_two_first_site_admins_at_once_one_is_made(site: Site) -> None:
    act(site, revoke, site.superuser, site.site_admin, "site_admin", SITE, force=True)
    together = threading.Barrier(2)

    def attempt(user_id: int) -> str:
        together.wait(timeout=30)
        try:
            make_first(site, user_id)
        except InvalidRequest as refusal:
            return str(refusal)
        return "done"

    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(attempt, [site.stranger, site.designer]))
    assert outcomes.count("done") == 1
    (refusal,) = (outcome for outcome in outcomes if outcome != "done")
    assert "is site_admin already" in refusal


# -- what goes with a role ---------------------------------------------------------------------------------------------


@pytest.fixture
def leaver(site: Site, lab_admin: int) -> int:
    """A person with one role in the lab, and two on its studies; the lab keeps another admin."""
    with site.sessions.begin() as session:
        user = User(email="leaver@example.org", name="Leaver")
        session.add(user)
        session.flush()
        grant_on_lab(session, user, session.get_one(Lab, site.lab_id), "member")
        grant_on_study(session, user, session.get_one(Study, site.study_id), "analysis")
        return user.id


def test_with_the_last_role_in_a_lab_go_the_roles_on_its_studies(site: Site, leaver: int, lab_admin: int) -> None:
    other = site.another_study("Pears")
    give(site, lab_admin, leaver, "researcher")
    with site.sessions.begin() as session:
        grant_on_study(session, session.get_one(User, leaver), session.get_one(Study, other), "preview")
    said = act(site, dry_run, lab_admin, leaver, "member", LAB, giving=False)
    dropped = [(one.role, one.name) for one in said.dropped]
    assert dropped == [("analysis", "Apples and oranges"), ("researcher", "Apples and oranges"), ("preview", "Pears")]
    assert len(held(site, leaver)) == 4
    assert take(site, lab_admin, leaver, "member", LAB) == said
    assert held(site, leaver) == set()
    assert [record.action for record in records(site)][-4:] == ["revoke"] * 4
    with site.sessions.begin() as session:
        study = session.get_one(Study, site.study_id)
        assert not has_permission(session, session.get_one(User, leaver), P.VIEW_STUDY_RESPONSES, study)


def test_while_another_role_in_the_lab_is_held_nothing_else_goes(site: Site, leaver: int, lab_admin: int) -> None:
    give(site, lab_admin, leaver, "guest", LAB)
    assert take(site, lab_admin, leaver, "guest", LAB).dropped == ()
    assert (STUDY, "analysis") in held(site, leaver)


def test_roles_on_another_labs_studies_stay(site: Site, leaver: int, lab_admin: int) -> None:
    with site.sessions.begin() as session:
        lab = Lab(name="Another Lab")
        session.add(lab)
        session.flush()
        study = Study(name="Elsewhere", lab_id=lab.id, creator_id=leaver)
        session.add(study)
        session.flush()
        grant_on_study(session, session.get_one(User, leaver), study, "preview")
    take(site, lab_admin, leaver, "member", LAB)
    assert held(site, leaver) == {(STUDY, "preview")}


@pytest.mark.parametrize(
    ("who", "role", "scope", "where"),
    [
        ("study_admin", "admin", STUDY, "on the study 'Apples and oranges'"),
        ("lab_admin", "admin", LAB, "on the lab 'Early Childhood Lab'"),
        ("site_admin", "site_admin", SITE, "platform-wide"),
    ],
)
def test_the_last_admin_stays_unless_it_is_forced(
    site: Site, lab_admin: int, who: str, role: str, scope: str, where: str
) -> None:
    user = lab_admin if who == "lab_admin" else getattr(site, who)
    before = every_grant(site)
    for how in (revoke, lambda *asked: dry_run(*asked, giving=False)):
        with pytest.raises(InvalidRequest, match="is the last admin") as refusal:
            act(site, how, site.superuser, user, role, scope)
        assert where in str(refusal.value)
        assert "--force" in str(refusal.value)
    assert (every_grant(site), records(site)) == (before, [])
    give(site, site.superuser, site.designer, role, scope)
    take(site, site.superuser, user, role, scope)
    act(site, revoke, site.superuser, site.designer, role, scope, force=True)


def test_an_inactive_admin_is_none(site: Site) -> None:
    with site.sessions.begin() as session:
        grant_on_site(session, session.get_one(User, site.inactive), "site_admin")
    assert "is the last admin" in refused(
        InvalidRequest, site, lambda: take(site, site.superuser, site.site_admin, "site_admin", SITE)
    )
    take(site, site.superuser, site.inactive, "site_admin", SITE)


def test_leaving_a_lab_does_not_leave_a_study_of_it_without_an_admin(site: Site, lab_admin: int) -> None:
    give(site, lab_admin, site.study_admin, "guest", LAB)
    before = every_grant(site)
    said = refused(InvalidRequest, site, lambda: take(site, lab_admin, site.study_admin, "guest", LAB))
    assert "study_admin@example.org is the last admin on the study 'Apples and oranges'" in said
    assert every_grant(site) == before
    effect = act(site, revoke, lab_admin, site.study_admin, "guest", LAB, force=True)
    assert [one.role for one in effect.dropped] == ["admin"]


def test_two_admins_who_take_the_role_from_each_other_at_once_leave_one(site: Site) -> None:
    give(site, site.superuser, site.designer, "site_admin", SITE)
    together = threading.Barrier(2)

    def attempt(acting: int, user: int) -> str:
        together.wait(timeout=30)
        try:
            take(site, acting, user, "site_admin", SITE)
        except DomainError as refusal:
            return type(refusal).__name__
        return "done"

    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(attempt, [site.designer, site.site_admin], [site.site_admin, site.designer]))
    assert outcomes.count("done") == 1
    with site.sessions.begin() as session:
        assert session.scalar(select(func.count()).select_from(SiteGrant)) == 1


def test_all_that_a_person_holds(site: Site, leaver: int) -> None:
    with site.sessions.begin() as session:
        user = session.get_one(User, leaver)
        grant_on_site(session, user, "site_admin")
        study, lab = session.get_one(Study, site.study_id), session.get_one(Lab, site.lab_id)
        assert roles_of(session, user) == [
            Held(RoleScope.SITE, "site_admin"),
            Held(RoleScope.LAB, "member", lab.name, str(lab.uuid)),
            Held(RoleScope.STUDY, "analysis", study.name, str(study.uuid)),
        ]


# -- dry runs ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_change_and_keeps_nothing(site: Site) -> None:
    before = every_grant(site)
    said = act(site, dry_run, site.study_admin, site.stranger, "design", STUDY, giving=True)
    assert (every_grant(site), records(site)) == (before, [])
    assert said == give(site, site.study_admin, site.stranger, "design")
    would = act(site, dry_run, site.study_admin, site.stranger, "design", STUDY, giving=False)
    assert held(site, site.stranger) == {(STUDY, "design")}
    assert would == take(site, site.study_admin, site.stranger, "design")
    assert would.loses == said.gains


@pytest.mark.parametrize("giving", [True, False])
def test_a_dry_run_is_refused_as_the_act_would_be(site: Site, giving: bool) -> None:
    def attempt(acting: int, role: str) -> Callable[[], Effect]:
        return lambda: act(site, dry_run, acting, site.designer, role, STUDY, giving=giving)

    assert "lacks studies.manage" in refused(PermissionDenied, site, attempt(site.stranger, "design"))
    assert "'wizard'" in refused(InvalidRequest, site, attempt(site.study_admin, "wizard"))
    role = "design" if giving else "analysis"
    assert ("already" if giving else "nothing to revoke") in refused(
        InvalidRequest, site, attempt(site.study_admin, role)
    )


# -- looking -----------------------------------------------------------------------------------------------------------


def test_the_roles_on_an_object_are_those_given_on_just_that_object(site: Site, lab_admin: int) -> None:
    give(site, site.study_admin, site.designer, "analysis")
    with site.sessions.begin() as session:
        shown = {
            scope: [(user.email, role.name) for user, role in roles_on(session, target)]
            for scope, target in {
                STUDY: session.get_one(Study, site.study_id),
                LAB: session.get_one(Lab, site.lab_id),
                SITE: None,
            }.items()
        }
    assert shown == {
        STUDY: [
            ("designer@example.org", "analysis"),
            ("designer@example.org", "design"),
            ("study_admin@example.org", "admin"),
        ],
        LAB: [("lab_admin@example.org", "admin"), ("lab_member@example.org", "member")],
        SITE: [("site_admin@example.org", "site_admin")],
    }


# -- roles made by hand ------------------------------------------------------------------------------------------------


def make(site: Site, acting: int, scope: RoleScope, name: str, *codes: Permission) -> None:
    with site.sessions.begin() as session:
        made = make_role(session, session.get_one(User, acting), scope, name, codes)
        assert (made.scope, made.name, made.is_builtin) == (scope, name, False)


def roles_made(site: Site) -> dict[tuple[str, str], set[str]]:
    with site.sessions.begin() as session:
        query = select(Role.scope, Role.name, RolePermission.code).join(RolePermission).where(~Role.is_builtin)
        found: dict[tuple[str, str], set[str]] = {}
        for scope, name, code in session.execute(query):
            found.setdefault((scope, name), set()).add(code)
        return found


@pytest.mark.parametrize("scope", list(RoleScope))
def test_a_role_made_by_hand_holds_exactly_its_permissions_and_can_be_given(site: Site, scope: RoleScope) -> None:
    chosen = [P.VIEW_STUDY_RESPONSES, P.VIEW_STUDY, P.VIEW_STUDY]
    make(site, site.site_admin, scope, "listener", *chosen)
    assert roles_made(site) == {(scope.value, "listener"): {"studies.view_study", "studies.view_study_responses"}}
    effect = give(site, site.superuser, site.stranger, "listener", scope.value)
    assert effect.gains == (P.VIEW_STUDY, P.VIEW_STUDY_RESPONSES)


@pytest.mark.parametrize("who", ["study_admin", "lab_member", "stranger", "inactive"])
def test_only_who_manages_people_platform_wide_makes_roles(site: Site, who: str) -> None:
    with pytest.raises(PermissionDenied, match=r"inactive|lacks labs\.manage_lab_researchers platform-wide"):
        make(site, getattr(site, who), RoleScope.STUDY, "listener", P.VIEW_STUDY)
    assert roles_made(site) == {}


def test_a_lab_admin_makes_no_roles(site: Site, lab_admin: int) -> None:
    with pytest.raises(PermissionDenied, match="platform-wide"):
        make(site, lab_admin, RoleScope.LAB, "listener", P.VIEW_STUDY)
    assert roles_made(site) == {}


def test_a_role_that_approves_is_made_only_by_who_approves(site: Site) -> None:
    make(site, site.site_admin, RoleScope.SITE, "personnel", P.MANAGE_LAB_RESEARCHERS)
    give(site, site.site_admin, site.stranger, "personnel", SITE)
    with pytest.raises(PermissionDenied, match=r"stranger@example\.org lacks studies\.approve_study platform-wide"):
        make(site, site.stranger, RoleScope.STUDY, "reviewer", P.APPROVE_STUDY, P.VIEW_STUDY)
    make(site, site.stranger, RoleScope.STUDY, "viewer", P.VIEW_STUDY)
    make(site, site.site_admin, RoleScope.STUDY, "reviewer", P.APPROVE_STUDY)
    assert set(roles_made(site)) == {(SITE, "personnel"), (STUDY, "viewer"), (STUDY, "reviewer")}


@pytest.mark.parametrize("code", sorted(LAB_PERMISSIONS))
def test_what_is_held_on_labs_is_no_part_of_a_role_on_studies(site: Site, code: Permission) -> None:
    with pytest.raises(InvalidRequest, match=rf"{code} cannot be held on a study; make a role for labs"):
        make(site, site.site_admin, RoleScope.STUDY, "listener", P.VIEW_STUDY, code)
    assert roles_made(site) == {}


@pytest.mark.parametrize(
    ("name", "codes", "message"),
    [
        ("", [P.VIEW_STUDY], "needs a name"),
        (" \n", [P.VIEW_STUDY], "needs a name"),
        ("listener", [], "at least one permission"),
        ("design", [P.VIEW_STUDY], "there is a study role 'design' already"),
        ("x" * 101, [P.VIEW_STUDY], "100 characters at most"),
    ],
)
def test_a_role_that_cannot_be_is_refused_with_what_is_wrong(
    site: Site, name: str, codes: list[Permission], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make(site, site.site_admin, RoleScope.STUDY, name, *codes)
    assert roles_made(site) == {}


def test_a_name_is_taken_only_within_its_kind_of_object(site: Site) -> None:
    make(site, site.site_admin, RoleScope.LAB, "design", P.CHANGE_STUDY)
    with pytest.raises(InvalidRequest, match="there is a lab role 'design' already"):
        make(site, site.site_admin, RoleScope.LAB, "design", P.VIEW_STUDY)
    assert roles_made(site) == {(LAB, "design"): {"studies.change_study"}}


# -- two at once -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "role"), [(grant, "analysis"), (revoke, "design")])
def test_of_two_who_give_or_take_the_same_at_once_one_does_and_one_hears_that_it_is_done(
    site: Site, how: Callable[..., Effect], role: str
) -> None:
    together = threading.Barrier(2)

    def attempt(acting: int) -> str:
        with site.sessions() as session:
            by, user = session.get_one(User, acting), session.get_one(User, site.designer)
            study = session.get_one(Study, site.study_id)
            session.rollback()  # SQLite lets one transaction in at a time: both must have none when they start
            together.wait(timeout=30)
            try:
                how(session, by, user, role, study)
                session.commit()
            except InvalidRequest as refusal:
                return str(refusal)
            return "done"

    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(attempt, [site.study_admin, site.superuser]))
    assert outcomes.count("done") == 1
    (refusal,) = (outcome for outcome in outcomes if outcome != "done")
    assert ("already" if how is grant else "nothing to revoke") in refusal
    assert len(records(site)) == 1


# -- what stays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["study", "lab", "user", "role"])
def test_the_record_of_a_grant_stays_when_what_it_is_about_is_gone(site: Site, gone: str) -> None:
    with site.sessions.begin() as session:
        session.add(Lab(name="Short-lived"))
        session.add(User(email="temp@example.org", name="Temp"))
        session.flush()
        lab = session.scalars(select(Lab).where(Lab.name == "Short-lived")).one()
        user = session.scalars(select(User).where(User.email == "temp@example.org")).one()
        study = Study(name="Short-lived", lab_id=lab.id)
        session.add(study)
        session.flush()
        by = session.get_one(User, site.superuser)
        role = make_role(session, by, RoleScope.STUDY, "listener", [P.VIEW_STUDY])
        grant(session, by, user, "guest", lab)
        grant(session, by, user, "listener", study)
        for row in {"study": [study], "lab": [study, lab], "user": [user], "role": [role]}[gone]:
            session.delete(row)
            session.flush()
    on_lab, on_study = records(site)
    assert (on_lab.role_name, on_study.role_name) == ("guest", "listener")
    assert (on_study.study_id is None) == (gone in ("study", "lab"))
    assert (on_lab.lab_id is None) == (gone == "lab")
    assert (on_lab.user_id is None) == (gone == "user")
    with site.sessions.begin() as session:
        left = session.scalar(select(func.count()).select_from(StudyGrant).join(Role).where(Role.name == "listener"))
    assert left == 0


def test_a_site_grant_reaches_every_lab_and_every_study(site: Site) -> None:
    with site.sessions.begin() as session:
        grant_on_site(session, session.get_one(User, site.stranger), "site_admin")
    for scope in (STUDY, LAB, SITE):
        with site.sessions.begin() as session:
            target = {STUDY: session.get_one(Study, site.study_id), LAB: session.get_one(Lab, site.lab_id), SITE: None}
            user = session.get_one(User, site.stranger)
            assert P.APPROVE_STUDY in permissions_of(session, user, target[scope])
