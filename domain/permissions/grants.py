"""Grants: a user is given a role on a study, on a lab or platform-wide, or loses it; each act is recorded.

Who may: on a study who holds `manage_study_researchers` there, on a lab `manage_lab_researchers`, platform-wide who
holds the latter platform-wide. `approve_study` is passed on only by who holds it: nobody becomes their own reviewer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sqlalchemy import Select, delete, select, true, union_all
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from domain.db import one_at_a_time
from domain.errors import InvalidRequest, PermissionDenied
from domain.models import (
    Lab,
    LabGrant,
    Role,
    RolePermission,
    SiteGrant,
    Study,
    StudyGrant,
    User,
)
from domain.models.accounts import RoleScope
from domain.permissions.checks import IS_UMBRELLA, Target, describe, has_permission, require_permission
from domain.permissions.codes import LAB_PERMISSIONS, Permission
from domain.permissions.held import MANAGES, Held, as_held, record_grant, scope_of
from domain.permissions.removal import drop_roles_on_studies, require_admins
from domain.permissions.roles import SITE_ADMIN, role_named

LONGEST_ROLE_NAME = 100

Grant = StudyGrant | LabGrant | SiteGrant


@dataclass(frozen=True, slots=True)
class Effect:
    """What a grant or revocation changes for one user on the object it is about."""

    user: str
    gains: tuple[Permission, ...]
    loses: tuple[Permission, ...]
    dropped: tuple[Held, ...] = ()
    """Roles on the lab's studies that go with the last role in the lab."""


def grant(session: Session, acting: User, user: User, role_name: str, target: Target) -> Effect:
    """Give the user the role on the object. Raises InvalidRequest (no such role, held already), PermissionDenied."""
    role = role_named(session, scope_of(target), role_name)
    if isinstance(target, Study):  # it may be on its way to another lab, which decides who manages it
        session.refresh(target, with_for_update=True)
    _require_may_manage(session, acting, role, target)
    _require_active(user)
    if _held(session, user, role, target) is not None:
        raise InvalidRequest(f"{user.email} is {role.name} {describe(target)} already")
    before = permissions_of(session, user, target)
    try:
        with session.begin_nested():
            session.add(_new(user, role, target))
    except IntegrityError as error:  # somebody else was quicker
        if _held(session, user, role, target) is None:
            raise
        raise InvalidRequest(f"{user.email} is {role.name} {describe(target)} already") from error
    record_grant(session, acting, user, role, target, "grant")
    return _effect(session, user, target, before)


def grant_first_admin(session: Session, user: User) -> Effect:
    """Make the user site admin while nobody is one, so that nobody could; the record names nobody who gave it.

    Raises InvalidRequest: there is one already, the account is inactive, or the role is missing.
    """
    one_at_a_time(session, "first_admin")
    role = role_named(session, RoleScope.SITE, SITE_ADMIN)
    holders = select(User.email).join(SiteGrant, SiteGrant.user_id == User.id).where(SiteGrant.role_id == role.id)
    holders = holders.where(User.is_active)
    if holder := session.scalar(holders.order_by(User.email).limit(1)):
        raise InvalidRequest(
            f"{holder} is {SITE_ADMIN} already, so this is not the first one; `lookit-ops permission list` names all,"
            " and each of them gives the role with `permission grant`"
        )
    _require_active(user)
    before = permissions_of(session, user, None)
    session.add(_new(user, role, None))
    session.flush()
    record_grant(session, None, user, role, None, "grant")
    return _effect(session, user, None, before)


def revoke(
    session: Session, acting: User, user: User, role_name: str, target: Target, *, force: bool = False
) -> Effect:
    """Take the role from the user; with the last role in a lab go the roles on the lab's studies.

    Raises:
        InvalidRequest: no such role, or not held; or a study, the lab or the site would be left without an admin,
            unless `force`.
        PermissionDenied: the acting user may not manage such roles.
    """
    role = role_named(session, scope_of(target), role_name)
    one_at_a_time(session, "revoke")  # two admins who take the role from each other at once would leave none
    if isinstance(target, Study):  # it may be on its way to another lab, which decides who manages it
        session.refresh(target, with_for_update=True)
    _require_may_manage(session, acting, role, target)
    before = permissions_of(session, user, target)
    held = _held(session, user, role, target)
    with session.begin_nested():
        if held is None or not _is_deleted(session, held):
            raise InvalidRequest(f"{user.email} is not {role.name} {describe(target)}, so there is nothing to revoke")
        record_grant(session, acting, user, role, target, "revoke")
        dropped = drop_roles_on_studies(session, acting, user, target) if isinstance(target, Lab) else []
        if not force and user.is_active:
            require_admins(session, user, [(role, target), *dropped])
    effect = _effect(session, user, target, before)
    return replace(effect, dropped=tuple(as_held(role, study) for role, study in dropped))


def dry_run(
    session: Session,
    acting: User,
    user: User,
    role_name: str,
    target: Target,
    *,
    giving: bool,
    force: bool = False,
) -> Effect:
    """Return what `grant` or `revoke` would change; nothing is kept. Raises what they raise."""
    with session.begin_nested() as savepoint:
        if giving:
            effect = grant(session, acting, user, role_name, target)
        else:
            effect = revoke(session, acting, user, role_name, target, force=force)
        savepoint.rollback()
    return effect


def permissions_of(session: Session, user: User, target: Target) -> frozenset[Permission]:
    """Every permission that the user holds on the object. One statement."""
    held = union_all(*_codes_of(user, target)).subquery()
    query = select(User.is_superuser, held.c.code).where(User.id == user.id, User.is_active)
    query = query.outerjoin(held, true())
    rows = list(session.execute(query))
    if any(is_superuser for is_superuser, _ in rows):
        return frozenset(Permission)
    return frozenset(Permission(code) for _, code in rows if code is not None)


def make_role(session: Session, acting: User, scope: RoleScope, name: str, permissions: Iterable[Permission]) -> Role:
    """Make a group by hand: a role with any permissions. Raises InvalidRequest, PermissionDenied."""
    chosen = frozenset(permissions)
    require_permission(session, acting, Permission.MANAGE_LAB_RESEARCHERS, None)
    if Permission.APPROVE_STUDY in chosen:
        require_permission(session, acting, Permission.APPROVE_STUDY, None)
    if not name.strip() or not chosen:
        raise InvalidRequest("a role needs a name and at least one permission")
    if len(name) > LONGEST_ROLE_NAME:
        raise InvalidRequest(f"a role's name has {LONGEST_ROLE_NAME} characters at most, not {len(name)}")
    if scope is RoleScope.STUDY and (wrong := sorted(chosen & LAB_PERMISSIONS)):
        raise InvalidRequest(f"{', '.join(wrong)} cannot be held on a study; make a role for labs instead")
    if session.scalar(select(Role.id).where(Role.scope == scope.value, Role.name == name)) is not None:
        raise InvalidRequest(f"there is a {scope.value} role {name!r} already")
    role = Role(scope=scope.value, name=name)
    session.add(role)
    session.flush()
    session.add_all(RolePermission(role_id=role.id, code=code.value) for code in sorted(chosen))
    session.flush()
    return role


def _require_may_manage(session: Session, acting: User, role: Role, target: Target) -> None:
    require_permission(session, acting, MANAGES[scope_of(target)], target)
    approves = select(RolePermission.code).where(
        RolePermission.role_id == role.id, RolePermission.code == Permission.APPROVE_STUDY.value
    )
    if session.scalar(approves) and not has_permission(session, acting, Permission.APPROVE_STUDY, target):
        raise PermissionDenied(
            f"the role {role.name!r} holds {Permission.APPROVE_STUDY.value}, which {acting.email} does not hold"
            f" {describe(target)}: only who approves studies lets others approve them"
        )


def _require_active(user: User) -> None:
    if not user.is_active:
        raise InvalidRequest(f"the account of {user.email} is inactive: activate it before you give it a role")


def _held(session: Session, user: User, role: Role, target: Target) -> Grant | None:
    """The grant itself, if it is held."""
    match target:
        case Study():
            return session.get(StudyGrant, (user.id, target.id, role.id))
        case Lab():
            return session.get(LabGrant, (user.id, target.id, role.id))
        case None:
            return session.get(SiteGrant, (user.id, role.id))


def _is_deleted(session: Session, held: Grant) -> bool:
    """Delete the grant; False if somebody else has done so meanwhile."""
    table = type(held).__table__
    is_it = [column == getattr(held, column.name) for column in table.primary_key]
    gone = session.execute(delete(type(held)).where(*is_it).returning(type(held).user_id)).all()
    return bool(gone)


def _new(user: User, role: Role, target: Target) -> Grant:
    match target:
        case Study():
            return StudyGrant(user_id=user.id, role_id=role.id, study_id=target.id)
        case Lab():
            return LabGrant(user_id=user.id, role_id=role.id, lab_id=target.id)
        case None:
            return SiteGrant(user_id=user.id, role_id=role.id)


def _codes_of(user: User, target: Target) -> list[Select[str]]:
    """The codes that the user holds on the object, one query for each kind of grant."""
    codes = select(RolePermission.code)
    on_site = codes.join(SiteGrant, SiteGrant.role_id == RolePermission.role_id).where(SiteGrant.user_id == user.id)
    on_labs = codes.join(LabGrant, LabGrant.role_id == RolePermission.role_id).where(LabGrant.user_id == user.id)
    match target:
        case Study():
            on_study = codes.join(StudyGrant, StudyGrant.role_id == RolePermission.role_id).where(
                StudyGrant.user_id == user.id, StudyGrant.study_id == target.id
            )
            on_its_lab = on_labs.join(Study, Study.lab_id == LabGrant.lab_id).where(Study.id == target.id, IS_UMBRELLA)
            return [on_study, on_its_lab, on_site]
        case Lab():
            return [on_labs.where(LabGrant.lab_id == target.id), on_site]
        case None:
            return [on_site]


def _effect(session: Session, user: User, target: Target, before: frozenset[Permission]) -> Effect:
    after = permissions_of(session, user, target)
    return Effect(user=user.email, gains=tuple(sorted(after - before)), loses=tuple(sorted(before - after)))
