"""Permissions once more, as plain Python over sets: slow, obvious, and written from the tables, not from the code.

A `World` is drawn by hypothesis, answers every question by itself, and can build the same rows in a database.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from domain.models import Lab, LabGrant, Role, RolePermission, SiteGrant, Study, StudyGrant, User
from domain.permissions.codes import Permission

STUDY, LAB, SITE = "study", "lab", "site"
APPROVE = "studies.approve_study"
"""The one study permission without an umbrella: held on a lab, it does not hold for the lab's studies."""
MANAGES = {
    STUDY: "studies.manage_study_researchers",
    LAB: "labs.manage_lab_researchers",
    SITE: "labs.manage_lab_researchers",
}

_PREVIEW = "studies.view_study studies.view_study_preview_data studies.code_study_preview_consent"
_DESIGN = f"{_PREVIEW} studies.delete_study_preview_data studies.change_study"
_ANALYSIS = f"{_PREVIEW} studies.delete_study_preview_data studies.view_study_responses"
_PROCESSOR = (
    f"{_PREVIEW} studies.delete_study_preview_data studies.change_study_status studies.code_study_consent"
    " studies.edit_study_feedback studies.contact_study_participants"
)
_MANAGER = f"{_DESIGN} studies.change_study_status studies.manage_study_researchers"
_LAB_MEMBER = "labs.create_lab_study labs.view_lab_researchers"
_BUILTIN = {
    (STUDY, "preview"): _PREVIEW,
    (STUDY, "design"): _DESIGN,
    (STUDY, "analysis"): _ANALYSIS,
    (STUDY, "submission_processor"): _PROCESSOR,
    (STUDY, "researcher"): f"{_PROCESSOR} studies.view_study_responses",
    (STUDY, "manager"): _MANAGER,
    (STUDY, "admin"): f"{_MANAGER} {_PROCESSOR} studies.view_study_responses studies.change_study_lab",
    (LAB, "guest"): "labs.create_lab_study",
    (LAB, "readonly"): "studies.view_study studies.view_study_preview_data",
    (LAB, "member"): f"{_LAB_MEMBER} {_PREVIEW}",
    (LAB, "admin"): f"{_LAB_MEMBER} labs.change_lab labs.manage_lab_researchers {_MANAGER}",
    (SITE, "site_admin"): (
        f"{APPROVE} studies.change_study_status labs.approve_lab labs.change_lab labs.view_lab_researchers"
        " labs.manage_lab_researchers"
    ),
}
Roles = dict[tuple[str, str], frozenset[str]]
BUILTIN: Roles = {role: frozenset(codes.split()) for role, codes in _BUILTIN.items()}


class Place(NamedTuple):
    """Where something is asked or held: a study or a lab by its number, or the site."""

    scope: str
    number: int = 0


class Held(NamedTuple):
    """A user, by number, holds a role at a place."""

    user: int
    role: str
    place: Place


class Account(NamedTuple):
    """What an account has of its own."""

    is_active: bool
    is_superuser: bool


@dataclass(frozen=True)
class World:
    """Accounts, labs, studies (each by the number of its lab), roles, and who holds which where."""

    accounts: tuple[Account, ...]
    labs: int
    studies: tuple[int, ...]
    roles: Roles
    grants: frozenset[Held]

    @property
    def places(self) -> list[Place]:
        """Every study, every lab, and the site."""
        studies = [Place(STUDY, number) for number in range(len(self.studies))]
        return [*studies, *(Place(LAB, number) for number in range(self.labs)), Place(SITE)]

    def holds(self, user: int, code: str, place: Place) -> bool:
        """Whether the user holds the permission there."""
        account = self.accounts[user]
        return account.is_active and (account.is_superuser or self.ways(user, code, place) > 0)

    def ways(self, user: int, code: str, place: Place) -> int:
        """How many of the user's roles give the permission there, whatever the account is."""
        return sum(
            held.user == user and code in self.roles[held.place.scope, held.role] and self._counts(held, code, place)
            for held in self.grants
        )

    def _counts(self, held: Held, code: str, place: Place) -> bool:
        """Whether what is held at one place counts at the other."""
        if held.place.scope == SITE or held.place == place:
            return True
        of_the_lab = place.scope == STUDY and held.place == Place(LAB, self.studies[place.number])
        return of_the_lab and code.startswith("studies.") and code != APPROVE

    def held_by(self, user: int, place: Place) -> set[str]:
        """Every permission that the user holds there."""
        return {code.value for code in Permission if self.holds(user, code, place)}

    def holders(self, code: str, place: Place) -> set[int]:
        """Everyone who holds the permission there."""
        return {user for user in range(len(self.accounts)) if self.holds(user, code, place)}

    def studies_of(self, user: int, code: str) -> set[int]:
        """The studies on which the user holds the permission."""
        return {number for number in range(len(self.studies)) if self.holds(user, code, Place(STUDY, number))}

    def may_manage(self, acting: int, held: frozenset[str], place: Place) -> bool:
        """Whether the user may give or take a role with these permissions there.

        Approvals are passed on only by who holds them.
        """
        passes_on = APPROVE not in held or self.holds(acting, APPROVE, place)
        return self.holds(acting, MANAGES[place.scope], place) and passes_on

    def changed(self, held: Held, *, giving: bool) -> World:
        """The world after a grant or a revocation; with the last role in a lab go those on its studies."""
        if giving:
            return replace(self, grants=self.grants | {held})
        left = self.grants - {held}
        if held.place.scope == LAB and not any((one.user, one.place) == (held.user, held.place) for one in left):
            of_lab = {Place(STUDY, number) for number, lab in enumerate(self.studies) if lab == held.place.number}
            left -= {one for one in left if one.user == held.user and one.place in of_lab}
        return replace(self, grants=left)

    def loses_its_last_admin(self, held: Held) -> bool:
        """Whether a revocation leaves a study, a lab or the site without an active admin of its own."""
        after = self.changed(held, giving=False)

        def admins(world: World, place: Place) -> set[int]:
            return {
                one.user
                for one in world.grants
                if one.place == place
                and MANAGES[place.scope] in world.roles[place.scope, one.role]
                and world.accounts[one.user].is_active
            }

        return any(admins(self, place) and not admins(after, place) for place in self.places)

    def build(self, session: Session) -> Rows:
        """The same world as rows, flushed; the built-in roles are there already."""
        users = [
            User(email=f"person{number}@example.org", name=f"Person {number}", **account._asdict())
            for number, account in enumerate(self.accounts)
        ]
        labs = [Lab(name=f"Lab {number}") for number in range(self.labs)]
        session.add_all([*users, *labs])
        session.flush()
        studies = [Study(name=f"Study {number}", lab_id=labs[lab].id) for number, lab in enumerate(self.studies)]
        session.add_all(studies)
        for (scope, name), codes in self.roles.items():
            if (scope, name) not in BUILTIN:
                role = Role(scope=scope, name=name)
                session.add(role)
                session.flush()
                session.add_all(RolePermission(role_id=role.id, code=code) for code in codes)
        session.flush()
        role_ids = {(role.scope, role.name): role.id for role in session.scalars(select(Role))}
        for user, role, (scope, number) in self.grants:
            keys = {"user_id": users[user].id, "role_id": role_ids[scope, role]}
            match scope:
                case "study":
                    session.add(StudyGrant(study_id=studies[number].id, **keys))
                case "lab":
                    session.add(LabGrant(lab_id=labs[number].id, **keys))
                case _:
                    session.add(SiteGrant(**keys))
        session.flush()
        return Rows(users, labs, studies)


@dataclass(frozen=True)
class Rows:
    """The rows of a world, in the order of their numbers."""

    users: list[User]
    labs: list[Lab]
    studies: list[Study]

    def at(self, place: Place) -> Study | Lab | None:
        """The place as the code under test wants it."""
        match place.scope:
            case "study":
                return self.studies[place.number]
            case "lab":
                return self.labs[place.number]
            case _:
                return None


# Half of what is drawn are the permissions that decide about others: chance alone would hardly let them meet.
codes = st.sampled_from([APPROVE, *sorted({*MANAGES.values()})]) | st.sampled_from([code.value for code in Permission])
accounts = st.builds(Account, is_active=st.sampled_from([True] * 4 + [False]), is_superuser=st.just(False)) | (
    st.builds(Account, is_active=st.sampled_from([True] * 4 + [False]), is_superuser=st.sampled_from([False, True]))
)


@st.composite
def worlds(draw: Callable[..., Any], *, studies: int = 4, grants: int = 12) -> World:
    """Any world of a few people, labs and studies, with roles made by hand that hold any permissions."""
    people = draw(st.lists(accounts, min_size=2, max_size=4))
    labs = draw(st.integers(1, 2))
    homes = draw(st.lists(st.integers(0, labs - 1), max_size=studies))
    names = st.tuples(st.sampled_from([STUDY, LAB, SITE]), st.sampled_from(["made by hand", "another"]))
    by_hand = draw(st.dictionaries(names, st.frozensets(codes, max_size=5), min_size=2, max_size=6))
    world = World(tuple(people), labs, tuple(homes), BUILTIN | by_hand, frozenset())
    held = draw(st.lists(holdings(world), min_size=grants // 3, max_size=grants))
    return replace(world, grants=frozenset(held))


def questions(world: World) -> st.SearchStrategy[list[str]]:
    """A few permissions to ask about: any, and mostly such as somebody holds."""
    held = sorted({code for grant in world.grants for code in world.roles[grant.place.scope, grant.role]})
    return st.lists(st.sampled_from(held) | codes if held else codes, min_size=1, max_size=4, unique=True)


def asked(world: World) -> st.SearchStrategy[tuple[World, list[str]]]:
    """The world, and what to ask about it."""
    return st.tuples(st.just(world), questions(world))


@st.composite
def holdings(draw: Callable[..., Any], world: World) -> Held:
    """Any role of the world, held by anybody at any place where it can be held."""
    place = draw(st.sampled_from(world.places))
    names = sorted(name for scope, name in world.roles if scope == place.scope)
    by_hand = [name for name in names if (place.scope, name) not in BUILTIN]
    role = draw(st.sampled_from(by_hand) | st.sampled_from(names) if by_hand else st.sampled_from(names))
    return Held(draw(st.integers(0, len(world.accounts) - 1)), role, place)
