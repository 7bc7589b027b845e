"""A real Dagster with its daemon, code location and database, that can be killed piece by piece."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
from sqlalchemy import select

from domain.models import ArchiveRequest, BuildKind, BuildRequest, OutboxMail, RequestStatus, State, Study, StudyLog
from lookit_ops.demo.github_server import GitHubServer
from lookit_ops.deployments.manifest import folder_of
from lookit_ops.server.dagster_home import prepare_dagster_home
from lookit_ops.server.dagster_processes import dagster_programs, make_storage
from lookit_ops.server.supervisor import Program
from lookit_ops.services import Services
from lookit_ops.settings import load_settings
from tests.support.databases import migrate
from tests.support.site import Site, populate
from tests.support.workshop import GOOD_BUILD, REPOSITORY, player

ROOT = Path(__file__).resolve().parents[2]
MODULE = "tests.support.live_definitions"
CODE, DAEMON, SECOND_DAEMON, WEBSERVER = "code location", "daemon", "second daemon", "webserver"
DELIVERY = {"status", "attempts", "next_attempt_at", "sent_at", "last_error"}
"""What the outbox notes of a mail: it delivers on, whatever else is held."""


@dataclass
class Live:
    """One home, its processes, and ways to look at what becomes of requests."""

    home: Path
    server: GitHubServer
    programs: dict[str, Program]
    services: Services
    site: Site
    port: int
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    # -- processes ------------------------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start these, the code location first; each is a group of its own."""
        for name in names:
            program = self.programs[name]
            log = (self.home / f"{name}.log").open("ab")
            with log:
                self.running[name] = subprocess.Popen(
                    program.command,
                    env={**os.environ, **program.environment},
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            if program.listens_at:
                self.wait(partial(_listens, program.listens_at), 60, partial(self.log_of, name))

    def kill(self, name: str) -> None:
        """SIGKILL one process, and nothing that it started."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def run_processes(self) -> list[int]:
        """The processes that work on a run of this home."""
        mark = f"LOOKIT_HOME={self.home}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
                except OSError:
                    continue
                if b"multiprocessing.spawn" in command and mark in environment.split(b"\0"):
                    found.append(int(folder.name))
        return found

    def kill_everything(self) -> None:
        """As when the machine loses its power."""
        for name in list(self.running):
            self.kill(name)
        for pid in self.run_processes():
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        self.let_go()
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self.run_processes():
            os.kill(pid, signal.SIGKILL)
        self.services.close()

    # -- steps ----------------------------------------------------------------------------------------------------

    def hold(self, step: str) -> None:
        """Let the next build wait at this step."""
        (self.home / "held").unlink(missing_ok=True)
        (self.home / "hold").write_text(step)

    def wait_until_held(self, seconds: float = 60) -> int:
        """Wait until a build stands at the step; returns its process."""
        self.wait((self.home / "held").exists, seconds, "the step was not reached")
        return int((self.home / "held").read_text())

    def let_go(self) -> None:
        (self.home / "hold").unlink(missing_ok=True)

    def build_by(self, script: str) -> None:
        """Replace the build's script."""
        new = self.home / "build.new"
        new.write_text(f'set -euo pipefail\n[ "$1" = build ] || exit 0\n{script}')
        new.replace(self.home / "build.sh")

    def build_well(self) -> None:
        """Let builds go well again, and be short."""
        self.build_by(GOOD_BUILD)

    # -- requests -------------------------------------------------------------------------------------------------

    def request(self, study_id: int | None = None, kind: BuildKind = BuildKind.DEPLOYMENT) -> int:
        return self.services.ledger.request(study_id or self.site.study_id, self.site.study_admin, kind)

    def status(self, request_id: int) -> str:
        return self.site.request(request_id).status

    def wait_for(self, request_id: int, *statuses: str, seconds: float = 90) -> BuildRequest:
        self.wait(lambda: self.status(request_id) in statuses, seconds, lambda: self.told(request_id))
        return self.site.request(request_id)

    def wait(self, what: Callable[[], Any], seconds: float, otherwise: str | Callable[[], str]) -> float:
        """Wait until it is so; returns the seconds that took."""
        began = time.monotonic()
        while not what():
            waited = time.monotonic() - began
            assert waited < seconds, otherwise if isinstance(otherwise, str) else otherwise()
            time.sleep(0.1)
        return time.monotonic() - began

    def told(self, request_id: int) -> str:
        """What is known of a request that did not become what it should."""
        return self.told_of(self.site.request(request_id))

    def told_of(self, request: BuildRequest | ArchiveRequest) -> str:
        logs = "\n".join(f"== {name}\n{self.log_of(name)[-3000:]}" for name in self.programs)
        return f"{request.status}, attempt {request.attempt}, {request.error_code}, {request.failed_attempts}\n{logs}"

    def log_of(self, name: str) -> str:
        file = self.home / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def runs_of(self, request_id: int) -> list[dg.DagsterRun]:
        with dg.DagsterInstance.get() as instance:
            return list(instance.get_runs(dg.RunsFilter(tags={"lookit/request": str(request_id)})))

    def run_status(self, run_id: str) -> dg.DagsterRunStatus | None:
        with dg.DagsterInstance.get() as instance:
            run = instance.get_run_by_id(run_id)
            return run.status if run else None

    def terminate(self, run_id: str) -> None:
        """End a run in Dagster, with the call that the UI's button leads to."""
        with dg.DagsterInstance.get() as instance:
            assert instance.run_coordinator.cancel_run(run_id)

    def last_tick_of(self, sensor: str) -> str | None:
        """Why the newest tick of a sensor asked for no run; None when it did, or there is none."""
        with dg.DagsterInstance.get() as instance:
            states = [state for state in instance.all_instigator_state() if state.instigator_name == sensor]
            ticks = [
                tick
                for state in states
                for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
            ]
            return ticks[0].skip_reason if ticks else None

    def leftovers(self) -> list[str]:
        """Files of builds that should be gone."""
        home = self.home / "ember_build"
        places = [home / "scratch", home / "deployments"]
        return [str(path) for place in places if place.exists() for path in place.iterdir()]

    def page(self, study_id: int | None = None) -> bytes | None:
        study = self.site.study(study_id)
        page = self.services.settings.local_bucket / folder_of(BuildKind.DEPLOYMENT, study.uuid) / "index.html"
        return page.read_bytes() if page.exists() else None

    def files_of(self, study_id: int) -> dict[str, bytes]:
        """All that the bucket has of a study's deployments, by path."""
        folder = self.services.settings.local_bucket / folder_of(BuildKind.DEPLOYMENT, self.site.study(study_id).uuid)
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def rows_of(self, study_id: int) -> dict[str, list[dict[str, Any]]]:
        """The study and all rows of its builds, but for what the outbox notes of their mails."""
        whose = {Study: Study.id, **{model: model.study_id for model in (BuildRequest, StudyLog, OutboxMail)}}
        with self.site.sessions.begin() as session:
            return {
                model.__tablename__: [
                    {name: value for name, value in row.items() if model is not OutboxMail or name not in DELIVERY}
                    for row in session.execute(select(model.__table__).where(column == study_id)).mappings()
                ]
                for model, column in whose.items()
            }

    def assert_ended_once(self, request_id: int, outcome: str, mails: int = 2) -> None:
        """One log, one mail for each person, the study free, nothing left."""
        request = self.site.request(request_id)
        study = self.site.study(request.study_id)
        logs = [log for log in self.site.logs(study.id) if log.build_request_id == request_id]
        assert [log.extra["outcome"] for log in logs] == [outcome]
        events = [mail.event for mail in self.site.mails() if mail.event.startswith(f"build_request:{request_id}:")]
        assert events == [f"build_request:{request_id}:{outcome}"] * mails
        assert study.state_before_build is None
        before = request.state_before or study.state  # it knows of none if no worker ever had it
        assert study.state == (State.ACTIVE if outcome == "succeeded" else before)


@contextmanager
def live(
    home: Path,
    database_url: str = "",
    *,
    port: int,
    address_of: Callable[[GitHubServer], str] = lambda server: server.url,
    **settings: str,
) -> Iterator[Live]:
    """A home with a site in its database; nothing runs yet. `address_of` says where the platform reaches GitHub."""
    with (
        GitHubServer({REPOSITORY: [player("1.0"), player("2.0")]}) as server,
        _environment(
            {
                "LOOKIT_HOME": str(home),
                "LOOKIT_DATABASE_URL": database_url,
                "LOOKIT_GITHUB_API_URL": address_of(server),
                "LOOKIT_GITHUB_WEB_URL": address_of(server),
                "LOOKIT_PLAYER_REPO_URL": f"{address_of(server)}/{REPOSITORY}",
                "LOOKIT_TRUSTED_REPOSITORIES": f"{address_of(server)}/{REPOSITORY}",
                "LOOKIT_LEASE": "6",
                "LOOKIT_RETRY_AFTER": "1",
                **settings,
            }
        ),
    ):
        services = Services(load_settings())
        (home / "tools").mkdir(parents=True)
        migrate(services.settings.database)
        dagster_home = prepare_dagster_home(services.settings)
        make_storage()
        code, daemon, webserver = dagster_programs(dagster_home, port, module=MODULE)
        programs = {CODE: code, DAEMON: daemon, SECOND_DAEMON: daemon, WEBSERVER: webserver}
        living = Live(home, server, programs, services, populate(services.sessions), port)
        living.build_well()
        try:
            yield living
        finally:
            living.stop()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("LOOKIT_", "DAGSTER_"))]:
        del os.environ[name]
    os.environ.update({name: value for name, value in values.items() if value})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


ENDED = (RequestStatus.SUCCEEDED, RequestStatus.FAILED, RequestStatus.CANCELLED)
