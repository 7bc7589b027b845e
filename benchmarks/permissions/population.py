"""The people, labs, studies and grants that every side is loaded with, made up the same way each time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from domain.models.accounts import RoleScope
from domain.permissions.codes import Permission
from domain.permissions.roles import BUILTIN_ROLES

T = TypeVar("T")

SEED = 20_000
_LABS_OF_A_USER = ((0, 1), (1, 7), (2, 2))
_LAB_ROLES = (("member", 12), ("readonly", 3), ("guest", 3), ("admin", 2))
_RESEARCHERS_BESIDES_THE_CREATOR = ((0, 1), (1, 2), (2, 3), (3, 2), (4, 1))
_OUTSIDERS = 0.3
"""How many of the researchers besides the creator come from anywhere, and not from the study's lab."""


@dataclass(frozen=True, slots=True)
class Grants:
    """Who holds which role on what, by numbers that count from 1."""

    on_studies: frozenset[tuple[int, int, str]]
    """User, study and role."""
    on_labs: frozenset[tuple[int, int, str]]
    """User, lab and role."""
    on_site: frozenset[tuple[int, str]]
    """User and role."""


@dataclass(frozen=True, slots=True)
class Population:
    """A site. The numbers of users, labs and studies are also the ids of their rows."""

    users: int
    labs: int
    superusers: frozenset[int]
    inactive: frozenset[int]
    lab_of_study: tuple[int, ...]
    """The lab of study 1 stands first."""
    creator_of_study: tuple[int, ...]
    grants: Grants = field(repr=False)

    @property
    def studies(self) -> int:
        """How many there are."""
        return len(self.lab_of_study)

    @property
    def everyone(self) -> range:
        """The numbers of all users."""
        return range(1, self.users + 1)

    @property
    def ordinary(self) -> list[int]:
        """Active users who hold roles, but none platform-wide, and are no superusers."""
        holders = {user for user, *_ in (*self.grants.on_studies, *self.grants.on_labs)}
        return sorted(holders - self.superusers - self.inactive - {user for user, _ in self.grants.on_site})


def email_of(user: int) -> str:
    """Sorts as the numbers do, in every collation."""
    return f"researcher{user:06}@example.org"


def study_name(study: int) -> str:
    """What a study is called."""
    return f"Study {study}"


def make_population(*, studies: int, users: int, labs: int) -> Population:
    """A site of this size; the same each time. The first four users are superusers (one inactive) and site admins."""
    random = Random(SEED)  # noqa: S311 - the same on every machine, and nothing to guess
    on_labs = {
        (user, lab, _one_of(random, _LAB_ROLES))
        for user in range(1, users + 1)
        for lab in random.sample(range(1, labs + 1), min(labs, _one_of(random, _LABS_OF_A_USER)))
    }
    staff, founders = defaultdict(list), defaultdict(list)
    for user, lab, role in sorted(on_labs):
        staff[lab].append(user)
        if Permission.CREATE_LAB_STUDY in BUILTIN_ROLES[RoleScope.LAB, role]:
            founders[lab].append(user)
    roles = sorted(name for scope, name in BUILTIN_ROLES if scope is RoleScope.STUDY)
    everyone = range(1, users + 1)
    lab_of_study, creator_of_study, on_studies = [], [], set()
    for study in range(1, studies + 1):
        lab = random.randint(1, labs)
        creator = random.choice(founders[lab] or everyone)
        on_studies.add((creator, study, "admin"))
        for _ in range(_one_of(random, _RESEARCHERS_BESIDES_THE_CREATOR)):
            colleagues = everyone if random.random() < _OUTSIDERS else staff[lab] or everyone
            on_studies.add((random.choice(colleagues), study, random.choice(roles)))
        lab_of_study.append(lab)
        creator_of_study.append(creator)
    return Population(
        users=users,
        labs=labs,
        superusers=frozenset({1, 2}),
        inactive=frozenset({2, *range(50, users + 1, 50)}),
        lab_of_study=tuple(lab_of_study),
        creator_of_study=tuple(creator_of_study),
        grants=Grants(
            on_studies=frozenset(on_studies),
            on_labs=frozenset(on_labs),
            on_site=frozenset({(3, "site_admin"), (4, "site_admin")}),
        ),
    )


def _one_of(random: Random, choices: tuple[tuple[T, int], ...]) -> T:
    values, weights = zip(*choices, strict=True)
    return random.choices(values, weights)[0]
