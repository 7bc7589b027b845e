"""Why somebody may or may not do something, in plain words: by which group on which object, or who could grant it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from domain.models import Lab, LabGrant, Role, RolePermission, SiteGrant, Study, StudyGrant, User
from domain.permissions.checks import IS_UMBRELLA, Target, describe, users_with_permission
from domain.permissions.codes import LAB_PERMISSIONS, Permission
from domain.permissions.held import MANAGES, scope_of
from domain.permissions.roles import BUILTIN_ROLES

NAMED_AT_MOST = 5


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer to a check, and the reasons for it."""

    held: bool
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.reasons)


def explain_permission(session: Session, user: User, permission: Permission, target: Target) -> Explanation:
    """Say by which groups the user holds the permission on the object, or what is missing and who could grant it."""
    if not user.is_active:
        return Explanation(
            held=False, reasons=(f"{user.email} is inactive, and an inactive account holds no permission.",)
        )
    what = f"{permission.value} {describe(target)}"
    reasons = [f"{user.email} holds {what}: {way}." for way in _ways_held(session, user, permission, target)]
    if reasons:
        return Explanation(held=True, reasons=tuple(reasons))
    return Explanation(held=False, reasons=(f"{user.email} lacks {what}.", *_ways_to_get(session, permission, target)))


def _ways_held(session: Session, user: User, permission: Permission, target: Target) -> list[str]:
    found = ["as a superuser, who passes every check"] if user.is_superuser else []
    holds = RolePermission.code == permission.value
    roles = select(Role.name).join(RolePermission, RolePermission.role_id == Role.id).where(holds).order_by(Role.name)
    if isinstance(target, Study):
        granted = roles.join(StudyGrant, StudyGrant.role_id == Role.id)
        granted = granted.where(StudyGrant.user_id == user.id, StudyGrant.study_id == target.id)
        found += [f"as {name} of the study" for name in session.scalars(granted)]
        lab = session.get_one(Lab, target.lab_id)
        found += [
            f"as {name} of its lab {lab.name!r}, whose permissions hold for every study of the lab"
            for name in session.scalars(_by_lab(roles, user, lab).where(IS_UMBRELLA))
        ]
    elif isinstance(target, Lab):
        found += [f"as {name} of the lab" for name in session.scalars(_by_lab(roles, user, target))]
    by_site = roles.join(SiteGrant, SiteGrant.role_id == Role.id).where(SiteGrant.user_id == user.id)
    return found + [f"as {name}, platform-wide" for name in session.scalars(by_site)]


def _by_lab(roles, user: User, lab: Lab):  # noqa: ANN001, ANN202 - SQLAlchemy's Select of names, both
    return roles.join(LabGrant, LabGrant.role_id == Role.id).where(
        LabGrant.user_id == user.id, LabGrant.lab_id == lab.id
    )


def _ways_to_get(session: Session, permission: Permission, target: Target) -> list[str]:
    if isinstance(target, Study) and permission in LAB_PERMISSIONS:
        return ["It is a permission on labs: ask for it on the study's lab."]
    for place in _places(session, target):
        scope = scope_of(place)
        fitting = sorted(name for (of, name), codes in BUILTIN_ROLES.items() if of is scope and permission in codes)
        if fitting:
            approves = all(Permission.APPROVE_STUDY in BUILTIN_ROLES[scope, name] for name in fitting)
            groups = f"Groups {describe(place)} that hold it: {', '.join(fitting)}."
            return [groups, _who_could(session, place, approves=approves)]
    approves = permission is Permission.APPROVE_STUDY
    missing = f"No built-in group holds it {describe(target)}; one can be made by hand."
    return [missing, _who_could(session, None, approves=approves)]


def _places(session: Session, target: Target) -> list[Target]:
    """Where a group could be that gives a permission on the object, the narrowest first."""
    if isinstance(target, Study):
        return [target, session.get_one(Lab, target.lab_id), None]
    return [target, None] if target is not None else [None]


def _who_could(session: Session, place: Target, *, approves: bool) -> str:
    """Who could put somebody into such a group; approvals are passed on only by who holds them."""
    could = users_with_permission(session, MANAGES[scope_of(place)], place)
    if approves:
        approvers = {user.id for user in users_with_permission(session, Permission.APPROVE_STUDY, place)}
        could = [user for user in could if user.id in approvers]
    if not could:
        return "Nobody can put somebody into such a group: no active account may."
    names = ", ".join(user.email for user in could[:NAMED_AT_MOST])
    more = f" and {len(could) - NAMED_AT_MOST} more" if len(could) > NAMED_AT_MOST else ""
    return f"Who could put somebody into one: {names}{more}."
