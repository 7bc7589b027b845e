"""What the sides are asked, and how what they answer is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.frame import BenchmarkError
from benchmarks.permissions.population import SEED, Population
from domain.models.accounts import RoleScope
from domain.permissions.codes import STUDY_PERMISSIONS, UMBRELLA_PERMISSIONS, Permission
from domain.permissions.roles import BUILTIN_ROLES

PAGE_LENGTH = 20


@dataclass(frozen=True, slots=True)
class Check:
    """Does the user hold the permission on the study? The answer is a truth value."""

    user: int
    permission: Permission
    study: int


@dataclass(frozen=True, slots=True)
class Listing:
    """All studies on which the user holds the permission, as rows. The answer is their ids, in ascending order."""

    user: int
    permission: Permission


@dataclass(frozen=True, slots=True)
class Page:
    """The newest of them, and how many there are. The answer is the number and the ids of the page, newest first."""

    user: int
    permission: Permission


@dataclass(frozen=True, slots=True)
class Holders:
    """Everyone who holds the permission on the study, as rows by e-mail address. The answer is their ids."""

    permission: Permission
    study: int


@dataclass(frozen=True, slots=True)
class Creation:
    """Make a study of the lab, if the user may, and make the user its admin. The answer is its id."""

    user: int
    lab: int
    name: str


Question = Check | Listing | Page | Holders | Creation
Answer = bool | int | tuple[int, ...]


def draw_checks(population: Population, count: int) -> list[Check]:
    """Half are held by a role on the study, a quarter by one on its lab; a quarter is about anybody and anything.

    The peer looks in this order, so it finds most of them early.
    """
    random = _random(Check)
    studies_of: dict[int, list[int]] = {}
    for study, lab in enumerate(population.lab_of_study, 1):
        studies_of.setdefault(lab, []).append(study)
    by_study = [
        (user, sorted(BUILTIN_ROLES[RoleScope.STUDY, role]), [study])
        for user, study, role in sorted(population.grants.on_studies)
    ]
    by_lab = [
        (user, sorted(held), studies_of[lab])
        for user, lab, role in sorted(population.grants.on_labs)
        if (held := BUILTIN_ROLES[RoleScope.LAB, role] & UMBRELLA_PERMISSIONS) and lab in studies_of
    ]
    anything = [(user, sorted(STUDY_PERMISSIONS), range(1, population.studies + 1)) for user in population.everyone]
    checks = []
    for number in range(count):
        user, permissions, studies = random.choice((by_study, by_study, by_lab, anything)[number % 4])
        checks.append(Check(user, random.choice(permissions), random.choice(studies)))
    return checks


def draw_listings(population: Population, count: int) -> list[Listing]:
    """What users see who hold some role, but none platform-wide."""
    return [Listing(user, Permission.VIEW_STUDY) for user in _random(Listing).choices(population.ordinary, k=count)]


def draw_pages(population: Population, count: int) -> list[Page]:
    """The same, page by page."""
    return [Page(user, Permission.VIEW_STUDY) for user in _random(Page).choices(population.ordinary, k=count)]


def draw_holders(population: Population, count: int) -> list[Holders]:
    """Any permission on any study."""
    random, permissions = _random(Holders), sorted(STUDY_PERMISSIONS)
    return [Holders(random.choice(permissions), random.randint(1, population.studies)) for _ in range(count)]


def draw_creations(population: Population, count: int) -> list[Creation]:
    """By people who may make studies in their lab."""
    founders = [
        (user, lab)
        for user, lab, role in sorted(population.grants.on_labs)
        if Permission.CREATE_LAB_STUDY in BUILTIN_ROLES[RoleScope.LAB, role] and user not in population.inactive
    ]
    chosen = _random(Creation).choices(founders, k=count)
    return [Creation(user, lab, f"New study {number}") for number, (user, lab) in enumerate(chosen, 1)]


def require_agreement(questions: Sequence[Question], answers: Mapping[str, Sequence[Answer]]) -> None:
    """Raises BenchmarkError, naming the first question that the sides do not all answer alike."""
    for question, *given in zip(questions, *answers.values(), strict=True):
        if any(answer != given[0] for answer in given):
            told = "; ".join(f"{name}: {answer}" for name, answer in zip(answers, given, strict=True))
            raise BenchmarkError(f"the sides disagree about {question}: {told}")


def _random(kind: type) -> Random:
    return Random(f"{SEED} {kind.__name__}")  # noqa: S311 - the same each time
