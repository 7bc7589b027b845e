"""A side of the comparison: one way of keeping permissions, asked under the same conditions as the others."""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager

from benchmarks.permissions.population import Population
from benchmarks.permissions.questions import Answer, Creation, Question

_NO_QUESTIONS = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")


class Side(ABC):
    """One way of keeping permissions, in a database of its own.

    Every question is asked as in the middle of a request: the connection is open and its transaction begun; the user,
    the study and its lab are loaded; of their permissions nothing is known yet. A creation begins and commits a
    transaction of its own. Only the question itself is timed.
    """

    @property
    @abstractmethod
    def tables(self) -> list[str]:
        """The tables that tell who holds what."""

    @abstractmethod
    def load(self, population: Population) -> None:
        """Make the tables and fill them."""

    @abstractmethod
    def request(self) -> AbstractContextManager[None]:
        """A transaction in which a question is prepared and, unless it is a creation, asked."""

    @abstractmethod
    def prepare(self, question: Question) -> Callable[[], object]:
        """Load what the question is about; returns what asks it."""

    @abstractmethod
    def plain(self, question: Question, result: object) -> Answer:
        """The answer as all sides would give it."""

    @abstractmethod
    def recording(self) -> AbstractContextManager[list[str]]:
        """The statements that are sent meanwhile."""

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """The answer to each."""
        answers = []
        for question in questions:
            with self.asking(question) as ask:
                answers.append(self.plain(question, ask()))
        return answers

    def seconds(self, questions: Sequence[Question]) -> float:
        """How long the questions take, without what is prepared before."""
        gc.collect()
        seconds = 0.0
        for question in questions:
            with self.asking(question) as ask:
                began = time.perf_counter()
                ask()
                seconds += time.perf_counter() - began
        return seconds

    def statements(self, questions: Sequence[Question]) -> list[list[str]]:
        """What is sent for each; the statements that only begin and end transactions left out."""
        sent = []
        for question in questions:
            with self.asking(question) as ask, self.recording() as statements:
                ask()
            sent.append([statement for statement in statements if not statement.startswith(_NO_QUESTIONS)])
        return sent

    @contextmanager
    def asking(self, question: Question) -> Generator[Callable[[], object]]:
        """What asks the question, under the conditions above."""
        with self.request():
            ask = self.prepare(question)
            if not isinstance(question, Creation):
                yield ask
        if isinstance(question, Creation):
            yield ask
