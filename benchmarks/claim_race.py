"""How many builds a second are claimed when one worker, or eight, race for the same waiting requests.

All workers are processes with a connection of their own; each walks through the same list of requests, takes what it
gets and is refused the rest. Exactly one may win each request, else the measurement is an error.

The peer is the way in which one would write it first: lock the rows of study and request with `SELECT … FOR UPDATE`
(on SQLite: BEGIN IMMEDIATE, which locks everything), look at them, and UPDATE them. It asks for the same permissions
and writes the same columns.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError
from uuid import uuid4

from sqlalchemy import create_engine, select, text, update
from sqlalchemy.engine import make_url

from benchmarks.frame import BenchmarkError, Result, benchmark, compare
from domain.db import Sessions, database_now, engine_for, sessions_for
from domain.errors import InvalidRequest, StudyIsLocked
from domain.models import BuildKind, BuildRequest, RequestStatus, State, Study, User
from domain.permissions.checks import require_permission
from domain.requests.build_claim import LOCK_STATE, MAY_START_FROM, PERMISSIONS, BuildClaim
from domain.requests.builds import BuildLedger
from tests.support.databases import create_database, migrate, start_postgresql
from tests.support.site import populate

WORKERS = (1, 8)
LEASE = timedelta(minutes=10)
PEER = "SELECT … FOR UPDATE, then UPDATE"
PEER_ON_SQLITE = "BEGIN IMMEDIATE, SELECT, then UPDATE"
_START_SECONDS = 120.0

Claimer = Callable[[Sessions, int, str], BuildClaim]
"""Takes the request for a run. Raises StudyIsLocked when somebody else has it."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    requests: int
    runs: int

    @classmethod
    def chosen(cls, quick: bool) -> Size:
        """The size of a full run, or of a quick one."""
        return cls(requests=20, runs=3) if quick else cls(requests=120, runs=5)


def claim_by_ledger(sessions: Sessions, request_id: int, run_id: str) -> BuildClaim:
    """Ours."""
    return BuildLedger(sessions).claim(request_id, run_id, LEASE)


def claim_by_locking(sessions: Sessions, request_id: int, run_id: str) -> BuildClaim:
    """The peer: what is locked first can be looked at in peace."""
    with sessions.begin() as session:
        study_id = session.scalar(select(BuildRequest.study_id).where(BuildRequest.id == request_id))
        if study_id is None:
            raise InvalidRequest(f"there is no build request {request_id}")
        study = session.scalars(select(Study).where(Study.id == study_id).with_for_update()).one()
        request = session.scalars(select(BuildRequest).where(BuildRequest.id == request_id).with_for_update()).one()
        user, kind = session.get_one(User, request.requested_by_id), BuildKind(request.kind)
        for permission in PERMISSIONS[kind]:
            require_permission(session, user, permission, study)
        if request.status != RequestStatus.QUEUED or study.state not in MAY_START_FROM[kind]:
            raise StudyIsLocked(f"build request {request_id} is {request.status}")
        token, state_before = study.fencing_token + 1, study.state
        session.execute(
            update(Study)
            .where(Study.id == study.id)
            .values(state_before_build=state_before, state=LOCK_STATE[kind].value, fencing_token=token)
            .execution_options(synchronize_session=False)
        )
        session.execute(
            update(BuildRequest)
            .where(BuildRequest.id == request_id)
            .values(
                status=RequestStatus.RUNNING,
                run_id=run_id,
                attempt=request.attempt + 1,
                claimed_at=database_now(),
                lease_expires_at=database_now(LEASE),
                fencing_token=token,
                state_before=state_before,
            )
            .execution_options(synchronize_session=False)
        )
        return BuildClaim(
            request_id=request.id,
            study_id=study.id,
            study_uuid=study.uuid,
            study_name=study.name,
            kind=kind,
            requested_by=user.name,
            fencing_token=token,
            attempt=request.attempt + 1,
            state_before=state_before,
            player_repo_url=study.study_metadata.get("player_repo_url"),
            player_sha=study.study_metadata.get("last_known_player_sha"),
        )


@benchmark("build.claim_race.sqlite")
def on_sqlite(quick: bool) -> Iterator[Result]:
    """Claims on SQLite."""
    with tempfile.TemporaryDirectory() as folder:
        yield from sqlite_rows(Path(folder), Size.chosen(quick))


def sqlite_rows(folder: Path, size: Size) -> Iterator[Result]:
    """A row for each number of workers, on copies of one database in `folder`."""
    template = folder / "template.db"
    requests = _fill(f"sqlite:///{template}", size.requests + max(WORKERS))

    @contextmanager
    def fresh() -> Generator[str]:
        path = folder / f"{uuid4().hex}.db"
        shutil.copy(template, path)
        yield f"sqlite:///{path}"
        for file in folder.glob(f"{path.name}*"):  # with its log and shared memory
            file.unlink()

    yield from _rows("sqlite", fresh, requests, size, PEER_ON_SQLITE)


@benchmark("build.claim_race.postgresql")
def on_postgresql(quick: bool) -> Iterator[Result]:
    """Claims on PostgreSQL."""
    size = Size.chosen(quick)
    with tempfile.TemporaryDirectory() as folder, start_postgresql(Path(folder)) as server:
        template = create_database(server, "template")
        requests = _fill(template, size.requests + max(WORKERS))

        @contextmanager
        def fresh() -> Generator[str]:
            name = f"race_{uuid4().hex}"
            yield create_database(server, name, str(make_url(template).database))
            maintenance = create_engine(server, isolation_level="AUTOCOMMIT")
            with maintenance.connect() as connection:
                connection.execute(text(f"DROP DATABASE {name}"))
            maintenance.dispose()

        yield from _rows("postgresql", fresh, requests, size, PEER)


def _rows(
    database: str,
    fresh: Callable[[], AbstractContextManager[str]],
    requests: Sequence[int],
    size: Size,
    peer_name: str,
) -> Iterator[Result]:
    for workers in WORKERS:

        def measured(claim: Claimer, workers: int = workers) -> float:
            with fresh() as url:
                return race(url, requests, workers, claim)

        yield compare(
            f"build.claim_race.{database}.{workers}_workers",
            "claims/s",
            lambda measured=measured: measured(claim_by_ledger),
            lambda measured=measured: measured(claim_by_locking),
            runs=size.runs,
            peer_name=peer_name,
            note=f"{size.requests} requests, each wanted by every worker",
        )


def race(url: str, requests: Sequence[int], workers: int, claim: Claimer) -> float:
    """Claims a second; the last requests warm the workers up. Raises BenchmarkError unless one wins each."""
    warm_up, contested = requests[-max(WORKERS) :], requests[: -max(WORKERS)]
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(workers), context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(url, warm_up[number], contested, claim, barrier, answers))
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    told = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    if problems := [answer for answer in told if isinstance(answer, str)]:
        raise BenchmarkError(f"a worker of the race failed: {problems[0]}")
    began, ended, won = zip(*told, strict=True)
    if sum(won) != len(contested):
        raise BenchmarkError(f"{sum(won)} claims were won, of {len(contested)} requests")
    return len(contested) / (max(ended) - min(began))


def _work(
    url: str,
    warm_up: int,
    contested: Sequence[int],
    claim: Claimer,
    barrier: Barrier,
    answers: SimpleQueue[tuple[float, float, int] | str],
) -> None:
    try:
        engine = engine_for(url)
        sessions = sessions_for(engine)
        run_id = f"worker {multiprocessing.current_process().pid}"
        claim(sessions, warm_up, run_id)  # connects, and compiles the statements
        barrier.wait(_START_SECONDS)
        won, began = 0, time.monotonic()
        for request_id in contested:
            try:
                claim(sessions, request_id, run_id)
                won += 1
            except StudyIsLocked:
                continue
        answers.put((began, time.monotonic(), won))
        engine.dispose()
    except BrokenBarrierError:
        answers.put("another worker did not start")
    except Exception as error:  # must reach the process that waits for an answer
        barrier.abort()
        answers.put(f"{type(error).__name__}: {error}")


def _fill(url: str, requests: int) -> list[int]:
    """A site with so many approved studies, each with a deployment that waits; the ids of the requests."""
    migrate(url)
    engine = engine_for(url)
    site = populate(sessions_for(engine))
    studies = [site.another_study(f"Study {number}", State.APPROVED) for number in range(requests)]
    ids = [site.ledger.request(study, site.study_admin, BuildKind.DEPLOYMENT) for study in studies]
    engine.dispose()
    return ids
