"""`lookit-ops permission`: who may do what, why, and who could change it."""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy.orm import Session

from domain.errors import InvalidRequest
from domain.find import find_lab, find_study, find_user
from domain.models import User
from domain.models.accounts import RoleScope
from domain.permissions import grants
from domain.permissions.checks import Target, describe, users_with_permission
from domain.permissions.codes import Permission
from domain.permissions.explain import explain_permission
from domain.permissions.grants import Effect, dry_run, roles_on
from domain.permissions.grants import grant as give
from domain.permissions.grants import revoke as take
from domain.permissions.roles import SITE_ADMIN
from lookit_ops.cli.options import Acting, Json, platform
from lookit_ops.cli.show import as_json, console, counted, plain, table

app = typer.Typer(
    help="Permissions: who holds which and why; grant, revoke, make roles, name the first site admin.",
    no_args_is_help=True,
)

OnStudy = Annotated[str | None, typer.Option("--study", metavar="STUDY", help="On this study (UUID or name).")]
OnLab = Annotated[str | None, typer.Option("--lab", metavar="LAB", help="On this lab (name or UUID).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change; change nothing.")]
Person = Annotated[str, typer.Argument(metavar="EMAIL", help="The account it is about.")]
Code = Annotated[str, typer.Argument(metavar="PERMISSION", help="Such as studies.view_study; without the app is fine.")]
RoleName = Annotated[str, typer.Argument(metavar="ROLE", help="A role of studies, labs or the site.")]


def _target(session: Session, study: str | None, lab: str | None) -> Target:
    """What the options name; neither means platform-wide, which an empty one, as a script may give, does not."""
    if study is not None and lab is not None:
        raise InvalidRequest("give --study or --lab, not both; neither means platform-wide")
    if study is not None:
        return find_study(session, study)
    return find_lab(session, lab) if lab is not None else None


def _permission(typed: str) -> Permission:
    named = {code: code for code in Permission} | {code.partition(".")[2]: code for code in Permission}
    if typed not in named:
        raise InvalidRequest(f"there is no permission {typed!r}; there are {', '.join(Permission)}")
    return named[typed]


@app.command()
def grant(
    email: Person, role: RoleName, acting: Acting, study: OnStudy = None, lab: OnLab = None, dry: DryRun = False
) -> None:
    """Give somebody a role on a study, on a lab, or platform-wide."""
    _change(email, role, acting, study, lab, dry=dry, giving=True)


@app.command()
def revoke(
    email: Person, role: RoleName, acting: Acting, study: OnStudy = None, lab: OnLab = None, dry: DryRun = False
) -> None:
    """Take a role from somebody."""
    _change(email, role, acting, study, lab, dry=dry, giving=False)


def _change(email: str, role: str, acting: str, study: str | None, lab: str | None, *, dry: bool, giving: bool) -> None:
    with platform().sessions.begin() as session:
        target = _target(session, study, lab)
        user, by = find_user(session, email), find_user(session, acting)
        if dry:
            effect = dry_run(session, by, user, role, target, giving=giving)
        else:
            effect = (give if giving else take)(session, by, user, role, target)
        where = describe(target)
    change = f"{'Would be' if dry else 'Is now'} {'' if giving else 'no longer '}{role}"
    console.print(f"{plain(change)} {plain(where)}: {plain(email)}.")
    _show(effect, account=user)


def _show(effect: Effect, *, account: User) -> None:
    for word, codes in (("gains", effect.gains), ("loses", effect.loses)):
        if codes:
            console.print(f"  {word}: {', '.join(codes)}")
    if not effect.gains and not effect.loses:
        why = "other roles of theirs hold the same"
        if account.is_superuser:
            why = "a superuser passes every check"
        if not account.is_active:
            why = "their account is inactive"
        console.print(f"  Nothing changes in what they may do: {why}.")


@app.command()
def first_admin(email: Person) -> None:
    """Make an account that is there the first site admin, who can grant all else; refused once there is one."""
    with platform().sessions.begin() as session:
        user = find_user(session, email)
        effect = grants.grant_first_admin(session, user)
    console.print(f"Is now {SITE_ADMIN} platform-wide, the first one: {plain(user.email)}.", soft_wrap=True)
    _show(effect, account=user)


@app.command()
def make_role(
    name: Annotated[str, typer.Argument(help="What the role is called.")],
    permissions: Annotated[list[str], typer.Argument(metavar="PERMISSION...", help="What it holds.")],
    on: Annotated[RoleScope, typer.Option("--on", help="What it can be held on.")],
    acting: Acting,
) -> None:
    """Make a role by hand, with any permissions; `permission grant` then gives it to people."""
    codes = [_permission(typed) for typed in permissions]
    with platform().sessions.begin() as session:
        grants.make_role(session, find_user(session, acting), on, name, codes)
    console.print(f"The {on} role {plain(name)} holds {', '.join(sorted(set(codes)))}.")


@app.command("list")
def list_grants(study: OnStudy = None, lab: OnLab = None, json: Json = False) -> None:
    """List who holds which role on a study, on a lab, or platform-wide."""
    with platform().sessions.begin() as session:
        target = _target(session, study, lab)
        held = [(user.email, user.name, role.name) for user, role in roles_on(session, target)]
        where = describe(target)
    if json:
        as_json([{"email": email, "name": name, "role": role} for email, name, role in held])
        return
    table(f"{counted(held, 'role')} {plain(where)}", ("who", "name", "role"), [tuple(map(plain, row)) for row in held])


@app.command()
def explain(email: Person, permission: Code, study: OnStudy = None, lab: OnLab = None, json: Json = False) -> None:
    """Say why somebody holds a permission, or what is missing and who could grant it."""
    with platform().sessions.begin() as session:
        code = _permission(permission)
        explanation = explain_permission(session, find_user(session, email), code, _target(session, study, lab))
    if json:
        as_json({"held": explanation.held, "reasons": explanation.reasons})
    else:
        console.print(plain(explanation), highlight=False)


@app.command()
def who(permission: Code, study: OnStudy = None, lab: OnLab = None, json: Json = False) -> None:
    """List everyone who holds a permission, superusers among them."""
    with platform().sessions.begin() as session:
        target = _target(session, study, lab)
        holders = [(user.email, user.name) for user in users_with_permission(session, _permission(permission), target)]
        where = describe(target)
    if json:
        as_json([{"email": email, "name": name} for email, name in holders])
        return
    title = f"{counted(holders, 'account')} with {_permission(permission)} {plain(where)}"
    table(title, ("who", "name"), [tuple(map(plain, row)) for row in holders])
