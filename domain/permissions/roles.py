"""Who holds what by default: the built-in roles, and keeping their rows true to this table."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from domain.errors import InvalidRequest
from domain.models import LabGrant, Role, RolePermission, SiteGrant, Study, StudyGrant, User
from domain.models.accounts import Lab, RoleScope
from domain.permissions.codes import STUDY_PERMISSIONS, Permission

P = Permission

SITE_ADMIN = "site_admin"
"""The role of who reviews for the site, and manages its people."""

_PREVIEW = frozenset({P.VIEW_STUDY, P.VIEW_STUDY_PREVIEW_DATA, P.CODE_STUDY_PREVIEW_CONSENT})
_DESIGN = _PREVIEW | {P.DELETE_STUDY_PREVIEW_DATA, P.CHANGE_STUDY}
_SUBMISSION_PROCESSOR = _PREVIEW | {
    P.DELETE_STUDY_PREVIEW_DATA,
    P.CHANGE_STUDY_STATUS,
    P.CODE_STUDY_CONSENT,
    P.EDIT_STUDY_FEEDBACK,
    P.CONTACT_STUDY_PARTICIPANTS,
}

BUILTIN_ROLES: dict[tuple[RoleScope, str], frozenset[Permission]] = {
    (RoleScope.STUDY, "preview"): _PREVIEW,
    (RoleScope.STUDY, "design"): _DESIGN,
    (RoleScope.STUDY, "analysis"): _PREVIEW | {P.DELETE_STUDY_PREVIEW_DATA, P.VIEW_STUDY_RESPONSES},
    (RoleScope.STUDY, "submission_processor"): _SUBMISSION_PROCESSOR,
    (RoleScope.STUDY, "researcher"): _SUBMISSION_PROCESSOR | {P.VIEW_STUDY_RESPONSES},
    (RoleScope.STUDY, "manager"): _DESIGN | {P.CHANGE_STUDY_STATUS, P.MANAGE_STUDY_RESEARCHERS},
    (RoleScope.STUDY, "admin"): STUDY_PERMISSIONS - {P.APPROVE_STUDY},
    (RoleScope.LAB, "guest"): frozenset({P.CREATE_LAB_STUDY}),
    (RoleScope.LAB, "readonly"): frozenset({P.VIEW_STUDY, P.VIEW_STUDY_PREVIEW_DATA}),
    (RoleScope.LAB, "member"): frozenset({P.CREATE_LAB_STUDY, P.VIEW_LAB_RESEARCHERS}) | _PREVIEW,
    (RoleScope.LAB, "admin"): frozenset(
        {
            P.CREATE_LAB_STUDY,
            P.CHANGE_LAB,
            P.MANAGE_LAB_RESEARCHERS,
            P.VIEW_LAB_RESEARCHERS,
            P.DELETE_STUDY_PREVIEW_DATA,
            P.CHANGE_STUDY,
            P.CHANGE_STUDY_STATUS,
            P.MANAGE_STUDY_RESEARCHERS,
        }
    )
    | _PREVIEW,
    (RoleScope.SITE, SITE_ADMIN): frozenset(
        {
            P.APPROVE_STUDY,
            P.CHANGE_STUDY_STATUS,
            P.APPROVE_LAB,
            P.CHANGE_LAB,
            P.VIEW_LAB_RESEARCHERS,
            P.MANAGE_LAB_RESEARCHERS,
        }
    ),
}


def sync_builtin_roles(session: Session) -> None:
    """Bring the rows of the built-in roles up to date with the table; roles made by hand stay as they are."""
    existing = {(RoleScope(role.scope), role.name): role for role in session.scalars(select(Role))}
    for (scope, name), permissions in BUILTIN_ROLES.items():
        role = existing.get((scope, name))
        if role is None:
            role = Role(scope=scope.value, name=name, is_builtin=True)
            session.add(role)
        elif not role.is_builtin:
            raise InvalidRequest(
                f"a role made by hand is in the way: {scope.value} role {name!r}; rename it and try again"
            )
        session.flush()
        session.execute(delete(RolePermission).where(RolePermission.role_id == role.id))
        session.add_all(RolePermission(role_id=role.id, code=code.value) for code in sorted(permissions))
    session.flush()


def role_named(session: Session, scope: RoleScope, name: str) -> Role:
    """The role of that name. Raises InvalidRequest, naming those there are."""
    roles = {role.name: role for role in session.scalars(select(Role).where(Role.scope == scope.value))}
    if name not in roles:
        raise InvalidRequest(f"no {scope.value} role is called {name!r}; there are {', '.join(sorted(roles))}")
    return roles[name]


def grant_on_study(session: Session, user: User, study: Study, role_name: str) -> None:
    """Let the user hold a role on one study; holding it already is fine."""
    role = role_named(session, RoleScope.STUDY, role_name)
    session.merge(StudyGrant(user_id=user.id, study_id=study.id, role_id=role.id))


def grant_on_lab(session: Session, user: User, lab: Lab, role_name: str) -> None:
    """Let the user hold a role on one lab; holding it already is fine."""
    role = role_named(session, RoleScope.LAB, role_name)
    session.merge(LabGrant(user_id=user.id, lab_id=lab.id, role_id=role.id))


def grant_on_site(session: Session, user: User, role_name: str) -> None:
    """Let the user hold a role platform-wide; holding it already is fine."""
    role = role_named(session, RoleScope.SITE, role_name)
    session.merge(SiteGrant(user_id=user.id, role_id=role.id))
