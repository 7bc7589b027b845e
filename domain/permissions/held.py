"""Roles as they are held: on what, by whom, who manages them, and the record of each that is given or taken."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from domain.models import GrantRecord, Lab, LabGrant, Role, SiteGrant, Study, StudyGrant, User
from domain.models.accounts import RoleScope
from domain.permissions.checks import Target
from domain.permissions.codes import Permission

MANAGES: dict[RoleScope, Permission] = {
    RoleScope.STUDY: Permission.MANAGE_STUDY_RESEARCHERS,
    RoleScope.LAB: Permission.MANAGE_LAB_RESEARCHERS,
    RoleScope.SITE: Permission.MANAGE_LAB_RESEARCHERS,
}


@dataclass(frozen=True, slots=True)
class Held:
    """One role that a person holds; `name` and `uuid` are the study's or the lab's, empty for the site."""

    scope: RoleScope
    role: str
    name: str = ""
    uuid: str = ""


def as_held(role: Role, target: Target) -> Held:
    """Return the role, as it is held on the object."""
    if target is None:
        return Held(RoleScope(role.scope), role.name)
    return Held(RoleScope(role.scope), role.name, target.name, str(target.uuid))


def scope_of(target: Target) -> RoleScope:
    """The kind of role that is held on the object."""
    match target:
        case Study():
            return RoleScope.STUDY
        case Lab():
            return RoleScope.LAB
        case None:
            return RoleScope.SITE


def roles_on(session: Session, target: Target) -> list[tuple[User, Role]]:
    """Who holds which role on just this object, by e-mail address and role."""
    query = select(User, Role)
    match target:
        case Study():
            query = query.join(StudyGrant, StudyGrant.user_id == User.id).join(Role, Role.id == StudyGrant.role_id)
            query = query.where(StudyGrant.study_id == target.id)
        case Lab():
            query = query.join(LabGrant, LabGrant.user_id == User.id).join(Role, Role.id == LabGrant.role_id)
            query = query.where(LabGrant.lab_id == target.id)
        case None:
            query = query.join(SiteGrant, SiteGrant.user_id == User.id).join(Role, Role.id == SiteGrant.role_id)
    return [(user, role) for user, role in session.execute(query.order_by(User.email, Role.name))]


def roles_of(session: Session, user: User) -> list[Held]:
    """Return every role that the user holds anywhere: on the site, on labs, on studies, each by name."""
    on_site = select(Role).join(SiteGrant, SiteGrant.role_id == Role.id).where(SiteGrant.user_id == user.id)
    on_labs = (
        select(Role, Lab)
        .join(LabGrant, LabGrant.role_id == Role.id)
        .join(Lab, Lab.id == LabGrant.lab_id)
        .where(LabGrant.user_id == user.id)
        .order_by(Lab.name, Lab.id, Role.name)
    )
    on_studies = (
        select(Role, Study)
        .join(StudyGrant, StudyGrant.role_id == Role.id)
        .join(Study, Study.id == StudyGrant.study_id)
        .where(StudyGrant.user_id == user.id)
        .order_by(Study.name, Study.id, Role.name)
    )
    return [
        *(as_held(role, None) for role in session.scalars(on_site.order_by(Role.name))),
        *(as_held(role, lab) for role, lab in session.execute(on_labs)),
        *(as_held(role, study) for role, study in session.execute(on_studies)),
    ]


def record_grant(session: Session, acting: User | None, user: User, role: Role, target: Target, action: str) -> None:
    """Note that a user gave or took a role; None is the installation. `action` is grant or revoke."""
    session.add(
        GrantRecord(
            acting_id=acting.id if acting else None,
            user_id=user.id,
            role_name=role.name,
            scope=role.scope,
            study_id=target.id if isinstance(target, Study) else None,
            lab_id=target.id if isinstance(target, Lab) else None,
            action=action,
        )
    )
    session.flush()
