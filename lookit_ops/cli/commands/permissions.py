"""`lookit-ops permission`: who may do what, why, and who could change it."""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy.orm import Session

from domain.errors import InvalidRequest
from domain.lookup import find_lab, find_study, find_user
from domain.models import User
from domain.models.accounts import RoleScope
from domain.permissions import grants
from domain.permissions.checks import Target, describe, users_with_permission
from domain.permissions.codes import Permission
from domain.permissions.explain import explain_permission
from domain.permissions.grants import Effect, dry_run
from domain.permissions.grants import grant as give
from domain.permissions.grants import revoke as take
from domain.permissions.held import roles_of, roles_on
from domain.permissions.roles import SITE_ADMIN
from lookit_ops.cli.options import Acting, Json, services
from lookit_ops.cli.show import as_json, console, counted, plain, table

app = typer.Typer(
    help="Permissions: who holds which and why; grant, revoke, make roles, name the first site admin.",
    no_args_is_help=True,
)

OnStudy = Annotated[str | None, typer.Option("--study", metavar="STUDY", help="On this study (UUID or name).")]
OnLab = Annotated[str | None, typer.Option("--lab", metavar="LAB", help="On this lab (name or UUID).")]
Force = Annotated[
    bool, typer.Option("--force", help="Even if a study, the lab or the site is left without an admin of its own.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change; change nothing.")]
Person = Annotated[str, typer.Argument(metavar="EMAIL", help="The account it is about.")]
Code = Annotated[str, typer.Argument(metavar="PERMISSION", help="Such as studies.view_study; without the app is fine.")]
OfPerson = Annotated[
    str | None, typer.Option("--person", metavar="EMAIL", help="All that this account holds, on any object.")
]
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
    email: Person,
    role: RoleName,
    acting: Acting,
    study: OnStudy = None,
    lab: OnLab = None,
    dry: DryRun = False,
    force: Force = False,
) -> None:
    """Take a role from a person; with the last role in a lab, the roles on the lab's studies, too."""
    _change(email, role, acting, study, lab, dry=dry, giving=False, force=force)


def _change(
    email: str,
    role: str,
    acting: str,
    study: str | None,
    lab: str | None,
    *,
    dry: bool,
    giving: bool,
    force: bool = False,
) -> None:
    with services().sessions.begin() as session:
        target = _target(session, study, lab)
        user, by = find_user(session, email), find_user(session, acting)
        if dry:
            effect = dry_run(session, by, user, role, target, giving=giving, force=force)
        elif giving:
            effect = give(session, by, user, role, target)
        else:
            effect = take(session, by, user, role, target, force=force)
        where = describe(target)
    change = f"{'Would be' if dry else 'Is now'} {'' if giving else 'no longer '}{role}"
    console.print(f"{plain(change)} {plain(where)}: {plain(email)}.")
    _show(effect, account=user)


def _show(effect: Effect, *, account: User) -> None:
    for word, codes in (("gains", effect.gains), ("loses", effect.loses)):
        if codes:
            console.print(f"  {word}: {', '.join(codes)}")
    for held in effect.dropped:
        console.print(
            f"  loses the role {plain(held.role)} on the study {plain(held.name)} ({held.uuid})", soft_wrap=True
        )
    if not effect.gains and not effect.loses and not effect.dropped:
        why = "other roles of theirs hold the same"
        if account.is_superuser:
            why = "a superuser passes every check"
        if not account.is_active:
            why = "their account is inactive"
        console.print(f"  Nothing changes in what they may do: {why}.")


@app.command()
def first_admin(email: Person) -> None:
    """Make an account that is there the first site admin, who can grant all else; refused once there is one."""
    with services().sessions.begin() as session:
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
    with services().sessions.begin() as session:
        grants.make_role(session, find_user(session, acting), on, name, codes)
    console.print(f"The {on} role {plain(name)} holds {', '.join(sorted(set(codes)))}.")


@app.command("list")
def list_grants(study: OnStudy = None, lab: OnLab = None, person: OfPerson = None, json: Json = False) -> None:
    """List who holds which role on a study, on a lab, or platform-wide; or all that one person holds."""
    if person is not None:
        if study is not None or lab is not None:
            raise InvalidRequest("give --person alone: it lists every role of the account, wherever it is held")
        _list_of_person(person, json=json)
        return
    with services().reading.begin() as session:
        target = _target(session, study, lab)
        held = [(user.email, user.name, role.name) for user, role in roles_on(session, target)]
        where = describe(target)
    if json:
        as_json([{"email": email, "name": name, "role": role} for email, name, role in held])
        return
    table(f"{counted(held, 'role')} {plain(where)}", ("who", "name", "role"), [tuple(map(plain, row)) for row in held])


def _list_of_person(email: str, *, json: bool) -> None:
    with services().reading.begin() as session:
        user = find_user(session, email)
        held = roles_of(session, user)
    if json:
        roles = [{"scope": one.scope, "role": one.role, "name": one.name, "uuid": one.uuid} for one in held]
        as_json({"email": user.email, "active": user.is_active, "superuser": user.is_superuser, "roles": roles})
        return
    rows = [(one.scope.value, plain(one.role), plain(one.name), one.uuid) for one in held]
    table(f"{counted(held, 'role')} of {plain(user.email)}", ("on", "role", "name", "uuid"), rows)
    if user.is_superuser:
        console.print("The account is a superuser and passes every check.")
    if not user.is_active:
        console.print("The account is inactive and passes no check.")


@app.command()
def explain(email: Person, permission: Code, study: OnStudy = None, lab: OnLab = None, json: Json = False) -> None:
    """Say why somebody holds a permission, or what is missing and who could grant it."""
    with services().reading.begin() as session:
        code = _permission(permission)
        explanation = explain_permission(session, find_user(session, email), code, _target(session, study, lab))
    if json:
        as_json({"held": explanation.held, "reasons": explanation.reasons})
    else:
        console.print(plain(explanation), highlight=False)


@app.command()
def who(permission: Code, study: OnStudy = None, lab: OnLab = None, json: Json = False) -> None:
    """List everyone who holds a permission, superusers among them."""
    with services().reading.begin() as session:
        target = _target(session, study, lab)
        holders = [(user.email, user.name) for user in users_with_permission(session, _permission(permission), target)]
        where = describe(target)
    if json:
        as_json([{"email": email, "name": name} for email, name in holders])
        return
    title = f"{counted(holders, 'account')} with {_permission(permission)} {plain(where)}"
    table(title, ("who", "name"), [tuple(map(plain, row)) for row in holders])
