"""Explanations in plain words, on both databases: each way to hold a permission, and each way to get one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from domain.models import Lab, Role, RolePermission, Study, User
from domain.permissions.codes import Permission
from domain.permissions.explain import Explanation, explain_permission
from domain.permissions.roles import grant_on_lab, grant_on_site, grant_on_study
from tests.support.site import Site

P = Permission
LAB = "its lab 'Early Childhood Lab', whose permissions hold for every study of the lab"
ON_LAB = "on the lab 'Early Childhood Lab'"


def explain(site: Site, user_id: int, code: Permission, on: str = "study") -> Explanation:
    with site.sessions.begin() as session:
        study, lab = session.get_one(Study, site.study_id), session.get_one(Lab, site.lab_id)
        target = {"study": study, "lab": lab, "site": None}[on]
        return explain_permission(session, session.get_one(User, user_id), code, target)


def on_study(site: Site) -> str:
    return f"on the study 'Apples and oranges' ({site.study().uuid})"


def person(site: Site, name: str, give: Callable[[Any, User], None] | None = None) -> int:
    with site.sessions.begin() as session:
        user = User(email=f"{name}@example.org", name=name)
        session.add(user)
        session.flush()
        if give:
            give(session, user)
        return user.id


def by_hand(site: Site, scope: str, name: str, *codes: Permission) -> None:
    with site.sessions.begin() as session:
        role = Role(scope=scope, name=name)
        session.add(role)
        session.flush()
        session.add_all(RolePermission(role_id=role.id, code=code.value) for code in codes)


# -- held --------------------------------------------------------------------------------------------------------------


def test_held_by_a_role_of_the_study(site: Site) -> None:
    found = explain(site, site.designer, P.CHANGE_STUDY)
    assert found.held
    assert found.reasons == (
        f"designer@example.org holds studies.change_study {on_study(site)}: as design of the study.",
    )


def test_held_by_a_role_of_its_lab(site: Site) -> None:
    found = explain(site, site.lab_member, P.VIEW_STUDY)
    assert found.reasons == (f"lab_member@example.org holds studies.view_study {on_study(site)}: as member of {LAB}.",)


def test_held_platform_wide(site: Site) -> None:
    held = "site_admin@example.org holds studies.approve_study"
    assert explain(site, site.site_admin, P.APPROVE_STUDY).reasons == (
        f"{held} {on_study(site)}: as site_admin, platform-wide.",
    )
    assert explain(site, site.site_admin, P.APPROVE_STUDY, "site").reasons == (
        f"{held} platform-wide: as site_admin, platform-wide.",
    )


def test_held_on_a_lab(site: Site) -> None:
    assert explain(site, site.lab_member, P.CREATE_LAB_STUDY, "lab").reasons == (
        f"lab_member@example.org holds labs.create_lab_study {ON_LAB}: as member of the lab.",
    )
    assert explain(site, site.site_admin, P.CHANGE_LAB, "lab").reasons == (
        f"site_admin@example.org holds labs.change_lab {ON_LAB}: as site_admin, platform-wide.",
    )


@pytest.mark.parametrize("on", ["study", "lab", "site"])
def test_held_as_a_superuser(site: Site, on: str) -> None:
    found = explain(site, site.superuser, P.APPROVE_STUDY, on)
    assert found.held
    (reason,) = found.reasons
    assert reason.endswith(": as a superuser, who passes every check.")


def test_held_in_several_ways_gives_each_of_them(site: Site) -> None:
    by_hand(site, "site", "auditor", P.VIEW_STUDY)

    def give(session: Any, user: User) -> None:
        user.is_superuser = True
        grant_on_study(session, user, session.get_one(Study, site.study_id), "preview")
        grant_on_study(session, user, session.get_one(Study, site.study_id), "design")
        grant_on_lab(session, user, session.get_one(Lab, site.lab_id), "readonly")
        grant_on_lab(session, user, session.get_one(Lab, site.lab_id), "guest")  # holds no such permission
        grant_on_site(session, user, "auditor")

    found = explain(site, person(site, "everything", give), P.VIEW_STUDY)
    assert [reason.partition(": ")[2] for reason in found.reasons] == [
        "as a superuser, who passes every check.",
        "as design of the study.",
        "as preview of the study.",
        f"as readonly of {LAB}.",
        "as auditor, platform-wide.",
    ]
    assert str(found) == "\n".join(found.reasons)


def test_a_role_made_by_hand_is_named_like_any_other(site: Site) -> None:
    by_hand(site, "study", "listener", P.VIEW_STUDY_RESPONSES)
    listener = person(
        site,
        "l",
        lambda session, user: grant_on_study(session, user, session.get_one(Study, site.study_id), "listener"),
    )
    assert explain(site, listener, P.VIEW_STUDY_RESPONSES).reasons[0].endswith(": as listener of the study.")


# -- lacking -----------------------------------------------------------------------------------------------------------


def test_an_inactive_account_needs_no_other_reason(site: Site) -> None:
    found = explain(site, site.inactive, P.VIEW_STUDY)
    assert (found.held, found.reasons) == (
        False,
        ("inactive@example.org is inactive, and an inactive account holds no permission.",),
    )


def test_lacking_on_a_study_names_its_groups_and_who_could(site: Site) -> None:
    assert explain(site, site.designer, P.CHANGE_STUDY_STATUS) == Explanation(
        held=False,
        reasons=(
            f"designer@example.org lacks studies.change_study_status {on_study(site)}.",
            f"Groups {on_study(site)} that hold it: admin, manager, researcher, submission_processor.",
            "Who could put somebody into one: study_admin@example.org, superuser@example.org.",
        ),
    )


def test_lacking_an_approval_names_the_group_of_the_site_and_only_who_approves(site: Site) -> None:
    by_hand(site, "site", "personnel", P.MANAGE_LAB_RESEARCHERS)
    person(site, "personnel", lambda session, user: grant_on_site(session, user, "personnel"))
    assert explain(site, site.study_admin, P.APPROVE_STUDY).reasons == (
        f"study_admin@example.org lacks studies.approve_study {on_study(site)}.",
        "Groups platform-wide that hold it: site_admin.",
        "Who could put somebody into one: site_admin@example.org, superuser@example.org.",
    )


@pytest.mark.parametrize(
    ("code", "on"), [(P.APPROVE_LAB, "lab"), (P.APPROVE_LAB, "site"), (P.CHANGE_STUDY_STATUS, "site")]
)
def test_a_group_that_also_approves_is_open_only_through_who_approves(site: Site, code: Permission, on: str) -> None:
    by_hand(site, "site", "personnel", P.MANAGE_LAB_RESEARCHERS)
    person(site, "personnel", lambda session, user: grant_on_site(session, user, "personnel"))
    assert explain(site, site.stranger, code, on).reasons[1:] == (
        "Groups platform-wide that hold it: site_admin.",
        "Who could put somebody into one: site_admin@example.org, superuser@example.org.",
    )


def test_lacking_on_a_lab_names_the_groups_of_the_lab(site: Site) -> None:
    assert explain(site, site.stranger, P.CREATE_LAB_STUDY, "lab").reasons == (
        f"stranger@example.org lacks labs.create_lab_study {ON_LAB}.",
        f"Groups {ON_LAB} that hold it: admin, guest, member.",
        "Who could put somebody into one: site_admin@example.org, superuser@example.org.",
    )


def test_what_no_builtin_group_of_a_lab_holds_can_be_made_by_hand(site: Site) -> None:
    assert explain(site, site.stranger, P.VIEW_STUDY_RESPONSES, "lab").reasons[1:] == (
        f"No built-in group holds it {ON_LAB}; one can be made by hand.",
        "Who could put somebody into one: site_admin@example.org, superuser@example.org.",
    )


def test_lacking_platform_wide(site: Site) -> None:
    assert explain(site, site.study_admin, P.CHANGE_LAB, "site").reasons == (
        "study_admin@example.org lacks labs.change_lab platform-wide.",
        "Groups platform-wide that hold it: site_admin.",
        "Who could put somebody into one: site_admin@example.org, superuser@example.org.",
    )
    assert explain(site, site.study_admin, P.CHANGE_STUDY, "site").reasons[1].startswith("No built-in group holds it")


def test_a_permission_on_labs_is_not_sought_on_a_study(site: Site) -> None:
    assert explain(site, site.stranger, P.CREATE_LAB_STUDY).reasons == (
        f"stranger@example.org lacks labs.create_lab_study {on_study(site)}.",
        "It is a permission on labs: ask for it on the study's lab.",
    )


def test_of_many_who_could_five_are_named_and_the_others_counted(site: Site) -> None:
    def give(session: Any, user: User) -> None:
        grant_on_study(session, user, session.get_one(Study, site.study_id), "manager")

    for number in range(5):
        person(site, f"a{number}", give)
    named = ", ".join(f"a{number}@example.org" for number in range(5))
    assert explain(site, site.stranger, P.VIEW_STUDY).reasons[2] == (
        f"Who could put somebody into one: {named} and 2 more."
    )


def test_if_nobody_could_it_says_so(site: Site) -> None:
    with site.sessions.begin() as session:
        for user_id in (site.superuser, site.study_admin):
            session.get_one(User, user_id).is_active = False
    assert explain(site, site.stranger, P.VIEW_STUDY).reasons[2] == (
        "Nobody can put somebody into such a group: no active account may."
    )


def test_asking_on_one_study_says_nothing_of_another(site: Site) -> None:
    with site.sessions.begin() as session:
        lab = Lab(name="Another lab")
        session.add(lab)
        session.flush()
        elsewhere = Study(name="Elsewhere", lab_id=lab.id)
        session.add(elsewhere)
        session.flush()
        for user_id in (site.designer, site.lab_member):
            found = explain_permission(session, session.get_one(User, user_id), P.VIEW_STUDY, elsewhere)
            assert not found.held
            assert f"({elsewhere.uuid})" in found.reasons[0]
            assert found.reasons[2] == "Who could put somebody into one: superuser@example.org."
