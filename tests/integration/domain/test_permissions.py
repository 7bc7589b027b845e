"""Permissions on both databases: what each built-in role holds, where a grant reaches, and how it is asked."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, event, select

from domain.db import Sessions
from domain.errors import InvalidRequest, PermissionDenied
from domain.models import Lab, Role, RolePermission, Study, StudyGrant, User
from domain.permissions.checks import By, has_permission, require_permission, users_holding
from domain.permissions.codes import LAB_PERMISSIONS, STUDY_PERMISSIONS, UMBRELLA_PERMISSIONS, Permission
from domain.permissions.roles import grant_on_lab, grant_on_site, grant_on_study, sync_builtin_roles
from tests.support.site import Site

# The tables of the domain's facts, written out once more.
STUDY_CODES = """
    view_study change_study change_study_status manage_study_researchers view_study_responses view_study_preview_data
    code_study_consent code_study_preview_consent contact_study_participants edit_study_feedback change_study_lab
    delete_study_preview_data approve_study
"""
LAB_CODES = "create_lab_study manage_lab_researchers change_lab approve_lab view_lab_researchers"
ROLES = {
    ("study", "preview"): "view_study view_study_preview_data code_study_preview_consent",
    ("study", "design"): """
        view_study view_study_preview_data code_study_preview_consent delete_study_preview_data change_study""",
    ("study", "analysis"): """
        view_study view_study_preview_data code_study_preview_consent delete_study_preview_data view_study_responses""",
    ("study", "submission_processor"): """
        view_study view_study_preview_data code_study_preview_consent delete_study_preview_data
        change_study_status code_study_consent edit_study_feedback contact_study_participants""",
    ("study", "researcher"): """
        view_study view_study_preview_data code_study_preview_consent delete_study_preview_data
        change_study_status code_study_consent edit_study_feedback contact_study_participants view_study_responses""",
    ("study", "manager"): """
        view_study view_study_preview_data code_study_preview_consent delete_study_preview_data change_study
        change_study_status manage_study_researchers""",
    ("study", "admin"): """
        view_study change_study change_study_status manage_study_researchers view_study_responses
        view_study_preview_data code_study_consent code_study_preview_consent contact_study_participants
        edit_study_feedback change_study_lab delete_study_preview_data""",
    ("lab", "guest"): "create_lab_study",
    ("lab", "readonly"): "view_study view_study_preview_data",
    ("lab", "member"): """
        create_lab_study view_lab_researchers view_study view_study_preview_data code_study_preview_consent""",
    ("lab", "admin"): """
        create_lab_study change_lab manage_lab_researchers view_lab_researchers
        view_study view_study_preview_data code_study_preview_consent delete_study_preview_data change_study
        change_study_status manage_study_researchers""",
    ("site", "site_admin"): """
        approve_study change_study_status approve_lab change_lab view_lab_researchers manage_lab_researchers""",
}


def codes(names: str) -> set[str]:
    return {f"{'labs' if name in LAB_CODES.split() else 'studies'}.{name}" for name in names.split()}


def person(site: Site, scope: str, role: str, name: str = "somebody") -> int:
    """A person who holds one role, on the site's study, its lab, or everywhere."""
    with site.sessions.begin() as session:
        user = User(email=f"{name}@example.org", name=name)
        session.add(user)
        session.flush()
        if scope == "study":
            grant_on_study(session, user, session.get_one(Study, site.study_id), role)
        elif scope == "lab":
            grant_on_lab(session, user, session.get_one(Lab, site.lab_id), role)
        else:
            grant_on_site(session, user, role)
        return user.id


def held(site: Site, user_id: int, study_id: int | None = None) -> set[str]:
    """Every permission that the user holds on the study."""
    with site.sessions.begin() as session:
        user, study = session.get_one(User, user_id), session.get_one(Study, study_id or site.study_id)
        return {code.value for code in Permission if has_permission(session, user, code, study)}


def study_of_another_lab(site: Site) -> int:
    with site.sessions.begin() as session:
        lab = Lab(name="Another Lab")
        session.add(lab)
        session.flush()
        study = Study(name="Elsewhere", lab_id=lab.id)
        session.add(study)
        session.flush()
        return study.id


def holders(site: Site, code: Permission, by: By) -> list[str]:
    with site.sessions.begin() as session:
        return [user.name for user in users_holding(session, code, session.get_one(Study, site.study_id), by)]


def rows_of_builtin_roles(sessions: Sessions) -> dict[tuple[str, str], set[str]]:
    with sessions.begin() as session:
        found: dict[tuple[str, str], set[str]] = {}
        for role in session.scalars(select(Role).where(Role.is_builtin)):
            of_role = select(RolePermission.code).where(RolePermission.role_id == role.id)
            found[role.scope, role.name] = set(session.scalars(of_role))
        return found


def test_these_permissions_exist_and_no_others() -> None:
    assert {code.value for code in STUDY_PERMISSIONS} == codes(STUDY_CODES)
    assert {code.value for code in LAB_PERMISSIONS} == codes(LAB_CODES)
    assert {code.value for code in UMBRELLA_PERMISSIONS} == codes(STUDY_CODES) - {"studies.approve_study"}
    assert set(Permission) == STUDY_PERMISSIONS | LAB_PERMISSIONS


def test_the_database_holds_the_builtin_roles_of_the_table(sessions: Sessions) -> None:
    assert rows_of_builtin_roles(sessions) == {role: codes(names) for role, names in ROLES.items()}


@pytest.mark.parametrize(("scope", "role"), list(ROLES))
def test_a_role_gives_exactly_its_permissions(site: Site, scope: str, role: str) -> None:
    user_id, of_the_role = person(site, scope, role), codes(ROLES[scope, role])
    # Asked on a study, a lab's role gives what an umbrella can cover; what is about the lab is asked on the lab.
    on_the_study = of_the_role & codes(STUDY_CODES) if scope == "lab" else of_the_role
    assert held(site, user_id) == on_the_study
    if scope == "lab":
        with site.sessions.begin() as session:
            user, lab = session.get_one(User, user_id), session.get_one(Lab, site.lab_id)
            assert {code.value for code in Permission if has_permission(session, user, code, lab)} == of_the_role


def test_several_roles_add_up(site: Site) -> None:
    user_id = person(site, "study", "preview")
    with site.sessions.begin() as session:
        user = session.get_one(User, user_id)
        grant_on_study(session, user, session.get_one(Study, site.study_id), "analysis")
        grant_on_lab(session, user, session.get_one(Lab, site.lab_id), "admin")
    assert held(site, user_id) == codes(ROLES["study", "analysis"]) | codes(ROLES["lab", "admin"]) & codes(STUDY_CODES)


def test_a_superuser_passes_every_check_and_an_inactive_one_none(site: Site) -> None:
    assert held(site, site.superuser) == set(Permission)
    assert held(site, site.inactive) == set()
    assert held(site, site.stranger) == set()


def test_an_inactive_person_holds_nothing_whatever_the_grants(site: Site) -> None:
    with site.sessions.begin() as session:
        session.get_one(User, site.study_admin).is_active = False
    assert held(site, site.study_admin) == set()


def test_a_grant_on_a_study_ends_with_that_study(site: Site) -> None:
    other = site.another_study("The neighbour")
    assert held(site, site.designer) == codes(ROLES["study", "design"])
    assert held(site, site.designer, other) == set()


def test_a_grant_on_a_lab_holds_for_each_of_its_studies_and_no_other_labs(site: Site) -> None:
    sibling, elsewhere = site.another_study("Of the same lab"), study_of_another_lab(site)
    umbrella = codes(ROLES["lab", "member"]) & codes(STUDY_CODES)
    assert held(site, site.lab_member, sibling) == held(site, site.lab_member) == umbrella
    assert held(site, site.lab_member, elsewhere) == set()


def test_a_study_that_changes_its_lab_changes_its_umbrella(site: Site) -> None:
    elsewhere = study_of_another_lab(site)
    with site.sessions.begin() as session:
        session.get_one(Study, site.study_id).lab_id = session.get_one(Study, elsewhere).lab_id
    assert held(site, site.lab_member) == set()


def test_a_grant_on_the_site_holds_everywhere(site: Site) -> None:
    assert held(site, site.site_admin, study_of_another_lab(site)) == codes(ROLES["site", "site_admin"])


def test_a_role_made_by_hand_counts_like_any_other(site: Site) -> None:
    with site.sessions.begin() as session:
        role = Role(scope="study", name="listener")
        session.add(role)
        session.flush()
        session.add(RolePermission(role_id=role.id, code="studies.view_study_responses"))
    assert held(site, person(site, "study", "listener")) == {"studies.view_study_responses"}


def test_a_grant_that_is_taken_away_counts_no_more(site: Site) -> None:
    with site.sessions.begin() as session:
        session.execute(delete(StudyGrant).where(StudyGrant.user_id == site.designer))
    assert held(site, site.designer) == set()


@pytest.mark.parametrize("who", ["superuser", "site_admin", "study_admin", "lab_member", "stranger", "inactive"])
def test_a_check_is_one_statement(site: Site, who: str) -> None:
    statements: list[str] = []

    def note(_connection, _cursor, statement, *_rest) -> None:
        statements.append(statement)

    with site.sessions.begin() as session:
        user, study = session.get_one(User, getattr(site, who)), session.get_one(Study, site.study_id)
        engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", note)
        has_permission(session, user, Permission.APPROVE_STUDY, study)
        event.remove(engine, "before_cursor_execute", note)
    assert len(statements) == 1


def test_a_refusal_names_user_permission_and_study(site: Site) -> None:
    with site.sessions.begin() as session:
        study = session.get_one(Study, site.study_id)
        designer, inactive = session.get_one(User, site.designer), session.get_one(User, site.inactive)
        require_permission(session, designer, Permission.CHANGE_STUDY, study)
        wanted = rf"designer@example\.org lacks studies\.approve_study on the study 'Apples and oranges' \({study.uuid}"
        with pytest.raises(PermissionDenied, match=wanted):
            require_permission(session, designer, Permission.APPROVE_STUDY, study)
        with pytest.raises(PermissionDenied, match=r"inactive@example\.org is inactive"):
            require_permission(session, inactive, Permission.VIEW_STUDY, study)


def test_holders_are_asked_by_kind_of_grant_and_superusers_are_not_meant(site: Site) -> None:
    status = Permission.CHANGE_STUDY_STATUS
    person(site, "lab", "admin", "of_the_lab")
    assert holders(site, status, By.STUDY) == ["Study Admin"]
    assert holders(site, status, By.LAB) == ["of_the_lab"]
    assert holders(site, status, By.SITE) == ["Site Admin"]
    assert holders(site, status, By.STUDY | By.LAB) == ["of_the_lab", "Study Admin"]
    assert holders(site, status, By.STUDY | By.LAB | By.SITE) == ["of_the_lab", "Site Admin", "Study Admin"]
    assert holders(site, Permission.APPROVE_STUDY, By.STUDY | By.LAB) == []


def test_a_holder_by_several_grants_is_named_once_and_an_inactive_one_not_at_all(site: Site) -> None:
    with site.sessions.begin() as session:
        user, lab = session.get_one(User, site.study_admin), session.get_one(Lab, site.lab_id)
        grant_on_lab(session, user, lab, "admin")
        grant_on_lab(session, session.get_one(User, site.inactive), lab, "admin")
    assert holders(site, Permission.CHANGE_STUDY_STATUS, By.STUDY | By.LAB) == ["Study Admin"]


def test_bringing_the_builtin_roles_up_to_date_twice_changes_nothing(sessions: Sessions) -> None:
    before = rows_of_builtin_roles(sessions)
    with sessions.begin() as session:
        sync_builtin_roles(session)
        sync_builtin_roles(session)
    assert rows_of_builtin_roles(sessions) == before
    assert len(before) == len(ROLES)


def test_builtin_roles_that_drifted_are_repaired_and_people_keep_them(site: Site) -> None:
    before = rows_of_builtin_roles(site.sessions)
    with site.sessions.begin() as session:
        design = session.scalars(select(Role).where(Role.scope == "study", Role.name == "design")).one()
        session.execute(delete(RolePermission).where(RolePermission.role_id == design.id))
        session.add(RolePermission(role_id=design.id, code="studies.approve_study"))
        session.execute(delete(Role).where(Role.scope == "lab", Role.name == "guest"))
    assert held(site, site.designer) == {"studies.approve_study"}
    with site.sessions.begin() as session:
        sync_builtin_roles(session)
    assert rows_of_builtin_roles(site.sessions) == before
    assert held(site, site.designer) == codes(ROLES["study", "design"])


def test_roles_made_by_hand_stay_as_they_are(site: Site) -> None:
    with site.sessions.begin() as session:
        role = Role(scope="lab", name="design")  # the same name as a built-in one, in another scope
        session.add(role)
        session.flush()
        session.add(RolePermission(role_id=role.id, code="studies.change_study"))
    with site.sessions.begin() as session:
        sync_builtin_roles(session)
    assert held(site, person(site, "lab", "design")) == {"studies.change_study"}


def test_a_role_made_by_hand_is_never_taken_for_a_builtin_one(site: Site) -> None:
    with site.sessions.begin() as session:
        session.scalars(select(Role).where(Role.scope == "lab", Role.name == "guest")).one().is_builtin = False
    with site.sessions.begin() as session, pytest.raises(InvalidRequest, match="lab role 'guest'; rename it"):
        sync_builtin_roles(session)


@pytest.mark.parametrize(
    ("scope", "there_are"),
    [
        ("study", "admin, analysis, design, manager, preview, researcher, submission_processor"),
        ("lab", "admin, guest, member, readonly"),
        ("site", "site_admin"),
    ],
)
def test_an_unknown_role_names_those_there_are(site: Site, scope: str, there_are: str) -> None:
    with pytest.raises(InvalidRequest, match=f"no {scope} role is called 'wizard'; there are {there_are}$"):
        person(site, scope, "wizard")


def test_granting_a_role_twice_is_fine(site: Site) -> None:
    with site.sessions.begin() as session:
        grant_on_study(session, session.get_one(User, site.designer), session.get_one(Study, site.study_id), "design")
    assert held(site, site.designer) == codes(ROLES["study", "design"])
