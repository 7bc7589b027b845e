"""What goes with a role that a person loses: other roles that rest on it. And no object loses its last admin unseen."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from domain.errors import InvalidRequest
from domain.models import Lab, LabGrant, Role, RolePermission, SiteGrant, Study, StudyGrant, User
from domain.models.accounts import RoleScope
from domain.permissions.checks import Target, describe
from domain.permissions.held import MANAGES, record_grant, scope_of

_NAMED_AT_MOST = 5


def drop_grants_of_outsiders(session: Session, acting: User, study: Study) -> list[User]:
    """Take every role on the study from those who hold none on its lab; returns them, by e-mail address."""
    members = select(LabGrant.user_id).where(LabGrant.lab_id == study.lab_id)
    query = (
        select(User, Role)
        .join(StudyGrant, StudyGrant.user_id == User.id)
        .join(Role, Role.id == StudyGrant.role_id)
        .where(StudyGrant.study_id == study.id, StudyGrant.user_id.not_in(members))
        .order_by(User.email)
    )
    outsiders = [(user, role) for user, role in session.execute(query)]
    for user, role in outsiders:
        record_grant(session, acting, user, role, study, "revoke")
    gone = {user.id: user for user, _ in outsiders}
    session.execute(delete(StudyGrant).where(StudyGrant.study_id == study.id, StudyGrant.user_id.in_(gone)))
    return list(gone.values())


def drop_roles_on_studies(session: Session, acting: User, user: User, lab: Lab) -> list[tuple[Role, Target]]:
    """Take every role on the lab's studies from a user who holds none in the lab any more; returns what was taken."""
    if session.scalar(select(LabGrant.role_id).where(LabGrant.lab_id == lab.id, LabGrant.user_id == user.id).limit(1)):
        return []
    query = (
        select(Role, Study)
        .join(StudyGrant, StudyGrant.role_id == Role.id)
        .join(Study, Study.id == StudyGrant.study_id)
        .where(Study.lab_id == lab.id, StudyGrant.user_id == user.id)
        .order_by(Study.name, Study.id, Role.name)
    )
    dropped: list[tuple[Role, Target]] = [(role, study) for role, study in session.execute(query)]
    of_the_lab = select(Study.id).where(Study.lab_id == lab.id)
    session.execute(delete(StudyGrant).where(StudyGrant.user_id == user.id, StudyGrant.study_id.in_(of_the_lab)))
    for role, study in dropped:
        record_grant(session, acting, user, role, study, "revoke")
    return dropped


def require_admins(session: Session, user: User, taken: Sequence[tuple[Role, Target]]) -> None:
    """Raise InvalidRequest if an object has lost, with these roles, the last admin of its own."""
    alone: list[str] = []
    for role, target in taken:
        scope = scope_of(target)
        if MANAGES[scope].value in _codes(session, role) and not _has_admin(session, scope, target):
            alone.append(describe(target))
    if alone:
        named = ", ".join(dict.fromkeys(alone[:_NAMED_AT_MOST]))
        more = f" and {len(alone) - _NAMED_AT_MOST} more" if len(alone) > _NAMED_AT_MOST else ""
        raise InvalidRequest(
            f"{user.email} is the last admin {named}{more}: make another account admin first, or repeat it with --force"
        )


def _codes(session: Session, role: Role) -> set[str]:
    return set(session.scalars(select(RolePermission.code).where(RolePermission.role_id == role.id)))


def _has_admin(session: Session, scope: RoleScope, target: Target) -> bool:
    """Whether an active account manages people there by a role on just this object; superusers do not count."""
    kind = {RoleScope.STUDY: StudyGrant, RoleScope.LAB: LabGrant, RoleScope.SITE: SiteGrant}[scope]
    query = (
        select(kind.user_id)
        .join(RolePermission, RolePermission.role_id == kind.role_id)
        .join(User, User.id == kind.user_id)
        .where(RolePermission.code == MANAGES[scope].value, User.is_active)
    )
    if isinstance(target, Study):
        query = query.where(StudyGrant.study_id == target.id)
    elif isinstance(target, Lab):
        query = query.where(LabGrant.lab_id == target.id)
    return session.scalar(query.limit(1)) is not None
