"""The questions: does this user hold this permission on this study, and who holds it by which kind of grant.

Each check is one statement, built once with bound parameters. A superuser passes every check, an inactive user none.
"""

from __future__ import annotations

from enum import Flag, auto

from sqlalchemy import and_, bindparam, exists, or_, select, union
from sqlalchemy.orm import Session

from domain.errors import PermissionDenied
from domain.models import LabGrant, RolePermission, SiteGrant, Study, StudyGrant, User
from domain.permissions.codes import Permission


class By(Flag):
    """Which kinds of grant count when asking who holds a permission."""

    STUDY = auto()
    LAB = auto()
    SITE = auto()


_CODE = bindparam("code")
_STUDY = bindparam("study_id")
_USER = bindparam("user_id")

_BY_STUDY = (
    select(StudyGrant.user_id)
    .join(RolePermission, RolePermission.role_id == StudyGrant.role_id)
    .where(StudyGrant.study_id == _STUDY, RolePermission.code == _CODE)
)
_BY_LAB = (
    select(LabGrant.user_id)
    .join(Study, Study.lab_id == LabGrant.lab_id)
    .join(RolePermission, RolePermission.role_id == LabGrant.role_id)
    .where(Study.id == _STUDY, RolePermission.code == _CODE)
)
_BY_SITE = (
    select(SiteGrant.user_id)
    .join(RolePermission, RolePermission.role_id == SiteGrant.role_id)
    .where(RolePermission.code == _CODE)
)

_HAS = select(
    exists().where(
        User.id == _USER,
        User.is_active,
        or_(
            User.is_superuser,
            exists(_BY_STUDY.where(StudyGrant.user_id == _USER).correlate(None)),
            exists(_BY_LAB.where(LabGrant.user_id == _USER).correlate(None)),
            exists(_BY_SITE.where(SiteGrant.user_id == _USER).correlate(None)),
        ),
    )
)


def has_permission(session: Session, user: User, permission: Permission, study: Study) -> bool:
    """Whether the user holds it: by a grant on the study, on its lab or platform-wide, or as a superuser."""
    return bool(
        session.scalar(_HAS, {"user_id": user.id, "code": permission.value, "study_id": study.id}),
    )


def require_permission(session: Session, user: User, permission: Permission, study: Study) -> None:
    """Raises PermissionDenied, naming user, permission and study, unless the user holds it."""
    if has_permission(session, user, permission, study):
        return
    if not user.is_active:
        raise PermissionDenied(f"the account of {user.email} is inactive: it holds no permission at all")
    raise PermissionDenied(
        f"{user.email} lacks {permission.value} on the study {study.name!r} ({study.uuid});"
        f" ask someone who manages its researchers for a role that holds it"
    )


def users_holding(session: Session, permission: Permission, study: Study, by: By) -> list[User]:
    """The active users who hold it by these kinds of grant, by e-mail address; superusers are not meant."""
    kinds = {By.STUDY: _BY_STUDY, By.LAB: _BY_LAB, By.SITE: _BY_SITE}
    ids = union(*(query for kind, query in kinds.items() if kind in by)).subquery()
    query = select(User).where(and_(User.is_active, User.id.in_(select(ids.c.user_id)))).order_by(User.email)
    return list(session.scalars(query, {"code": permission.value, "study_id": study.id}))
