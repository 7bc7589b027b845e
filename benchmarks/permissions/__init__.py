"""Permissions beside django-guardian, with direct foreign keys and with generic ones, on the same data.

All sides hold the same site (see `population.py`), answer the same questions (`questions.py`) under the same conditions
(`side.py`), and must agree about every answer before anything is measured. The peer's groups are the predecessor's: one
Django group for each pair of role and object, whose permissions on the object are django-guardian's rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.frame import Result, benchmark, compare
from benchmarks.permissions.population import Population, make_population
from benchmarks.permissions.processes import (
    MakeSide,
    SideProcess,
    make_guardian_direct,
    make_guardian_generic,
    make_ours,
)
from benchmarks.permissions.questions import (
    Creation,
    Holders,
    Page,
    Question,
    draw_checks,
    draw_creations,
    draw_holders,
    draw_listings,
    draw_pages,
    require_agreement,
)
from benchmarks.permissions.storage import MakeDatabase, postgresql_databases, size_of, sqlite_databases, tidy
from domain.permissions.codes import STUDY_PERMISSIONS, Permission

OURS = "ours"
PEERS: dict[str, tuple[str, MakeSide]] = {
    "guardian_direct": ("django-guardian, direct foreign keys", make_guardian_direct),
    "guardian_generic": ("django-guardian, generic foreign keys", make_guardian_generic),
}
DATABASES: dict[str, Callable[[Path], AbstractContextManager[MakeDatabase]]] = {
    "postgresql": postgresql_databases,
    "sqlite": sqlite_databases,
}


@dataclass(frozen=True, slots=True)
class Size:
    """How big the site is, and how much is asked in each of the runs."""

    studies: int
    users: int
    labs: int
    checks: int
    others: int
    runs: int

    @classmethod
    def chosen(cls, quick: bool) -> Size:
        """The size of a full run, or of a quick one."""
        if quick:
            return cls(studies=500, users=200, labs=10, checks=100, others=10, runs=3)
        return cls(studies=20_000, users=5_000, labs=200, checks=400, others=40, runs=9)

    def population(self) -> Population:
        """The site."""
        return make_population(studies=self.studies, users=self.users, labs=self.labs)


@dataclass(frozen=True, slots=True)
class Stage:
    """All sides in their processes, loaded and tidy."""

    sides: Mapping[str, SideProcess]
    urls: Mapping[str, str]

    def agree(self, questions: Sequence[Question]) -> None:
        """Raises BenchmarkError unless all sides give the same answers."""
        require_agreement(questions, {name: side.answers(questions) for name, side in self.sides.items()})

    def rate(self, name: str, questions: Sequence[Question]) -> float:
        """How many of the questions the side answers in a second."""
        return len(questions) / self.sides[name].seconds(questions)

    def statements(self, name: str, questions: Sequence[Question]) -> float:
        """How many statements it sends for each, in the mean."""
        return mean(map(len, self.sides[name].statements(questions)))

    def size(self, name: str) -> float:
        """Bytes of its tables that tell who holds what."""
        return size_of(self.urls[name], self.sides[name].tables)


@contextmanager
def staged(make_database: MakeDatabase, population: Population) -> Generator[Stage]:
    """Start all sides and load them side by side."""
    makers = {OURS: make_ours} | {name: make for name, (_, make) in PEERS.items()}
    with ExitStack() as stack:
        urls = {name: make_database(name) for name in makers}
        sides = {name: stack.enter_context(SideProcess(make, urls[name])) for name, make in makers.items()}
        for side in sides.values():
            side.begin_loading(population)
        for name, side in sides.items():
            side.finish_loading()
            tidy(urls[name])
        yield Stage(sides, urls)


@benchmark("permissions")
def permissions(quick: bool) -> Iterator[Result]:
    """All questions, on both kinds of database, beside both peers."""
    size = Size.chosen(quick)
    for database, databases in DATABASES.items():
        with tempfile.TemporaryDirectory() as folder, databases(Path(folder)) as make_database:
            yield from rows(database, make_database, size)


def rows(database: str, make_database: MakeDatabase, size: Size) -> Iterator[Result]:
    """The rows of one kind of database. Raises BenchmarkError if the sides disagree."""
    population = size.population()
    creations = draw_creations(population, size.others)
    kinds: dict[str, tuple[str, Sequence[Question]]] = {
        "check": ("checks/s", draw_checks(population, size.checks)),
        "list": ("lists/s", draw_listings(population, size.others)),
        "page": ("pages/s", draw_pages(population, size.others)),
        "users": ("answers/s", draw_holders(population, size.others)),
        "create_study": ("studies/s", creations),
    }
    with staged(make_database, population) as stage:
        yield from _compared(f"permissions.bytes.{database}", "bytes", stage.size, runs=1, note="tables and indexes")
        for _, questions in kinds.values():
            stage.agree(questions)
        stage.agree(about_new_studies(population, creations))
        for kind, (unit, questions) in kinds.items():
            yield from _compared(
                f"permissions.{kind}.{database}",
                unit,
                lambda name, questions=questions: stage.rate(name, questions),
                runs=size.runs,
                note="statements each: {:.3g}, the peer {:.3g}",
                of_note=lambda name, questions=questions: stage.statements(name, questions),
            )


def about_new_studies(population: Population, creations: Sequence[Creation]) -> list[Question]:
    """Who holds what on the studies that were made first, and what their labs' people see."""
    numbers = range(population.studies + 1, population.studies + 1 + len(creations))
    holders = [Holders(permission, study) for study in numbers for permission in sorted(STUDY_PERMISSIONS)]
    return [*holders, *(Page(creation.user, Permission.VIEW_STUDY) for creation in creations)]


def _compared(
    name: str,
    unit: str,
    measure: Callable[[str], float],
    *,
    runs: int,
    note: str,
    of_note: Callable[[str], float] | None = None,
) -> Iterator[Result]:
    """A row for each peer."""
    for peer, (peer_name, _) in PEERS.items():
        yield compare(
            f"{name}.vs_{peer}",
            unit,
            lambda: measure(OURS),
            lambda peer=peer: measure(peer),
            runs=runs,
            peer_name=peer_name,
            note=note.format(of_note(OURS), of_note(peer)) if of_note else note,
        )
