"""The questions: does this user hold this permission here, on which studies, who else holds it.

Each check is one statement, built once with bound parameters. A superuser passes every check, an inactive user none.
The functions come in pairs that always agree: `has` and `require`, `studies_with` and `users_with`.
"""

from __future__ import annotations

from enum import Flag, auto
from functools import cache
from typing import Any

from sqlalchemy import Select, bindparam, exists, false, or_, select, union_all
from sqlalchemy.orm import Session
from sqlalchemy.sql.expression import ColumnElement

from domain.errors import PermissionDenied
from domain.models import Lab, LabGrant, RolePermission, SiteGrant, Study, StudyGrant, User
from domain.permissions.codes import UMBRELLA_PERMISSIONS, Permission

Target = Study | Lab | None
"""What a permission is asked on: a study, a lab, or, with None, platform-wide."""


class By(Flag):
    """Which kinds of grant count when asking who holds a permission."""

    STUDY = auto()
    LAB = auto()
    SITE = auto()


_CODE = bindparam("code")
_TARGET = bindparam("target_id")
_USER = bindparam("user_id")

IS_UMBRELLA = RolePermission.code.in_([permission.value for permission in UMBRELLA_PERMISSIONS])
"""What, held on a lab, holds for each study of the lab: no lab approves its own."""

_BY_STUDY = (
    select(StudyGrant.user_id)
    .join(RolePermission, RolePermission.role_id == StudyGrant.role_id)
    .where(StudyGrant.study_id == _TARGET, RolePermission.code == _CODE)
)
_BY_LAB_OF_STUDY = (
    select(LabGrant.user_id)
    .join(Study, Study.lab_id == LabGrant.lab_id)
    .join(RolePermission, RolePermission.role_id == LabGrant.role_id)
    .where(Study.id == _TARGET, RolePermission.code == _CODE, IS_UMBRELLA)
)
_BY_LAB = (
    select(LabGrant.user_id)
    .join(RolePermission, RolePermission.role_id == LabGrant.role_id)
    .where(LabGrant.lab_id == _TARGET, RolePermission.code == _CODE)
)
_BY_SITE = (
    select(SiteGrant.user_id)
    .join(RolePermission, RolePermission.role_id == SiteGrant.role_id)
    .where(RolePermission.code == _CODE)
)

_WAYS: dict[type | None, dict[By, Select[int]]] = {
    Study: {By.STUDY: _BY_STUDY, By.LAB: _BY_LAB_OF_STUDY, By.SITE: _BY_SITE},
    Lab: {By.LAB: _BY_LAB, By.SITE: _BY_SITE},
    None: {By.SITE: _BY_SITE},
}
"""The ways in which a permission can be held, by what it is asked on."""


@cache
def _has_statement(kind: type | None) -> Select[bool]:
    owners = {By.STUDY: StudyGrant.user_id, By.LAB: LabGrant.user_id, By.SITE: SiteGrant.user_id}
    held: list[ColumnElement[bool]] = [
        exists(way.where(owners[by] == _USER).correlate(None)) for by, way in _WAYS[kind].items()
    ]
    return select(exists().where(User.id == _USER, User.is_active, or_(User.is_superuser, *held)))


def _parameters(permission: Permission, target: Target) -> dict[str, Any]:
    return {"code": permission.value} | ({"target_id": target.id} if target is not None else {})


def has_permission(session: Session, user: User, permission: Permission, target: Target) -> bool:
    """Whether the user holds it: by a grant on the study, on its lab or platform-wide, or as a superuser.

    With a lab as target, by a grant on it or platform-wide; with None, platform-wide. One statement.
    """
    statement = _has_statement(type(target) if target is not None else None)
    return bool(session.scalar(statement, _parameters(permission, target) | {"user_id": user.id}))


def require_permission(session: Session, user: User, permission: Permission, target: Target) -> None:
    """Raises PermissionDenied, naming user, permission and object, unless the user holds it."""
    if has_permission(session, user, permission, target):
        return
    if not user.is_active:
        raise PermissionDenied(f"the account of {user.email} is inactive: it holds no permission at all")
    raise PermissionDenied(
        f"{user.email} lacks {permission.value} {describe(target)}; {who_grants(target, permission)}"
    )


def describe(target: Target) -> str:
    """The object of a permission, as part of a sentence."""
    match target:
        case Study():
            return f"on the study {target.name!r} ({target.uuid})"
        case Lab():
            return f"on the lab {target.name!r}"
        case None:
            return "platform-wide"


def who_grants(target: Target, permission: Permission | None = None) -> str:
    """Whom to ask for a permission on the object."""
    if permission is Permission.APPROVE_STUDY:
        return "only who reviews for the site may do this: ask a site admin"
    match target:
        case Study():
            return "ask someone who manages its researchers for a role that holds it"
        case Lab():
            return "ask someone who manages the lab's researchers for a role that holds it"
        case None:
            return "ask a site admin"


def studies_with_permission(session: Session, user: User, permission: Permission) -> Select[Study]:
    """A query of the studies on which the user holds the permission; add filters, order and pages to it.

    The platform-wide question is asked apart, at once: inside the union it would spoil the plan. So a list costs two
    statements. `.with_only_columns(Study.id)` makes it a query of ids; count with `func.count(Study.id)`, since
    without a column of Study a superuser's query would lose its FROM.
    """
    if has_permission(session, user, permission, None):
        return select(Study)
    if not user.is_active:
        return select(Study).where(false())
    holds = RolePermission.code == permission.value
    granted = (
        select(StudyGrant.study_id)
        .join(RolePermission, RolePermission.role_id == StudyGrant.role_id)
        .where(StudyGrant.user_id == user.id, holds)
    )
    umbrella = (
        select(Study.id)
        .join(LabGrant, LabGrant.lab_id == Study.lab_id)
        .join(RolePermission, RolePermission.role_id == LabGrant.role_id)
        .where(LabGrant.user_id == user.id, holds, IS_UMBRELLA)
    )
    return select(Study).where(Study.id.in_(union_all(granted, umbrella)))


@cache
def _holders_statement(kind: type | None) -> Select[User]:
    # One list of ids, not an OR of them: that would make the database read every account.
    holders = union_all(*_WAYS[kind].values(), select(User.id).where(User.is_superuser))
    return select(User).where(User.is_active, User.id.in_(holders)).order_by(User.email)


def users_with_permission(session: Session, permission: Permission, target: Target) -> list[User]:
    """Everyone for whom `has_permission` is true, superusers among them, by e-mail address."""
    statement = _holders_statement(type(target) if target is not None else None)
    return list(session.scalars(statement, _parameters(permission, target)))


@cache
def _held_by_grants_statement(kind: type, by: By) -> Select[User]:
    holders = union_all(*(way for way_by, way in _WAYS[kind].items() if way_by in by))
    return select(User).where(User.is_active, User.id.in_(holders)).order_by(User.email)


def users_holding(session: Session, permission: Permission, study: Study, by: By) -> list[User]:
    """The active users who hold it by these kinds of grant, by e-mail address; superusers are not meant."""
    return list(session.scalars(_held_by_grants_statement(Study, by), _parameters(permission, study)))
