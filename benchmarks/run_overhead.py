"""The seconds of a run of the job `build_experiment` that are not the build's: GitHub, bucket, ledger, mails, Dagster.

Everything is real (a Dagster instance on SQLite, a GitHub on this machine, checkouts, the bucket folder, mails into a
folder) but the build's script, which takes almost no time; what the builder takes is subtracted all the same. The peer
is the same steps called as plain functions, so that the difference is what Dagster costs.

`python -m benchmarks.run_overhead REQUEST` is the peer of a launched run: the plain steps in a process of their own.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import dagster as dg

from benchmarks.frame import BenchmarkError, Result, benchmark, compare
from domain.models import BuildKind, BuildRequest, RequestStatus, State
from ember_build.builder import Builder, BuildOrder, Image, OutputLine, Removed
from ember_build.bundle import Bundle
from ember_build.local.builder import LocalBuilder
from ember_build.local.toolchain import Toolchain
from lookit_ops.demo.github_server import Commit, GitHubServer
from lookit_ops.deployments.manifest import folder_of, live_deployment
from lookit_ops.deployments.publish import publish
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.resources import build_run_resource
from lookit_ops.runs.build import BuildRun
from lookit_ops.runs.reconcile import reconcile_builds
from lookit_ops.server.dagster_home import prepare_dagster_home
from lookit_ops.services import Services
from lookit_ops.settings import load_settings
from tests.support.site import Site, populate

REPOSITORY = "lookit/player"
PLAYER = Commit({"package.json": b'{"name": "player"}', "app.js": b"var answer = 42;"}, "A player without a build")
SCRIPT = """set -euo pipefail
[ "$1" = build ] || exit 0
mkdir -p "$OUTPUT_DIR/assets"
cp "$CHECKOUT_DIR/app.js" "$OUTPUT_DIR/assets/app.js"
echo "<script src=\\"${STUDY_PREFIX}assets/app.js\\"></script>" > "$OUTPUT_DIR/index.html"
"""
RUNS, QUICK_RUNS = 7, 3
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class TimedBuilder:
    """A builder that adds each of its times to a file: the run that it works in may be another process."""

    builder: Builder
    times: Path

    @property
    def is_isolated(self) -> bool:
        """As the port says."""
        return self.builder.is_isolated

    def remove_orphans(self, is_running: Callable[[Mapping[str, str]], bool]) -> Removed:
        """As the port says."""
        return self.builder.remove_orphans(is_running)

    def prepare(
        self,
        on_output: OutputLine,
        checkout: Path | None = None,
        labels: Mapping[str, str] | None = None,
        cancelled: threading.Event | None = None,
    ) -> Image:
        """As the port says."""
        with self._timed():
            return self.builder.prepare(on_output, checkout, labels, cancelled)

    def build(self, order: BuildOrder, on_output: OutputLine, cancelled: threading.Event | None = None) -> Bundle:
        """As the port says."""
        with self._timed():
            return self.builder.build(order, on_output, cancelled)

    @contextmanager
    def _timed(self) -> Generator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            with self.times.open("a") as file:
                file.write(f"{time.monotonic() - began}\n")


@dataclass(frozen=True)
class QuickServices(Services):
    """The platform of the settings, whose builder runs the short script."""

    @cached_property
    def builder(self) -> Builder:
        """The local builder with nothing to do."""
        home = self.settings.home_folder
        tools = Toolchain(key="none", bin=home / "tools")
        return TimedBuilder(
            LocalBuilder(home / "ember_build", script=home / "build.sh", toolchain=tools), _times_in(home)
        )


@dg.resource
def quick_services(_context: dg.InitResourceContext) -> Iterator[Services]:
    """As `services_resource`, with the quick builder."""
    services = QuickServices(load_settings())
    yield services
    services.engine.dispose()


defs = dg.Definitions(
    jobs=[build_experiment],
    resources={
        "services": quick_services,
        "build_run": build_run_resource,
        "io_manager": dg.mem_io_manager,
    },
)


@dataclass(frozen=True, slots=True)
class Workbench:
    """A home with a site in its database, and requests for previews to be run in it."""

    services: Services
    site: Site

    def overhead(self, run: Callable[[int], None]) -> float:
        """Ask for a preview, run it, and tell the seconds that its builder did not take. Raises BenchmarkError."""
        request_id = self.services.ledger.request(self.site.study_id, self.site.study_admin, BuildKind.PREVIEW)
        times = _times_in(self.services.settings.home_folder)
        times.unlink(missing_ok=True)
        began = time.monotonic()
        run(request_id)
        seconds = time.monotonic() - began
        with self.services.sessions.begin() as session:
            request = session.get_one(BuildRequest, request_id)
        if request.status != RequestStatus.SUCCEEDED:
            raise BenchmarkError(f"the build that was to be measured is {request.status}: {request.error}")
        return seconds - sum(map(float, times.read_text().split()))


@benchmark("run.overhead")
def in_process(quick: bool) -> Iterator[Result]:
    """A run within a process that runs already."""
    with workbench() as bench, dg.DagsterInstance.get() as instance:
        yield _compared(
            bench,
            "run.overhead",
            lambda request_id: run_in_process(instance, request_id),
            run_plainly,
            quick=quick,
            note="run within this process; instance on SQLite",
        )


@benchmark("run.overhead.launched")
def launched(quick: bool) -> Iterator[Result]:
    """A run with the start of its process."""
    with workbench() as bench:
        yield _compared(
            bench,
            "run.overhead.launched",
            lambda request_id: run_launched(bench.services.settings.home_folder, request_id),
            run_plainly_launched,
            quick=quick,
            note="`dagster job execute`, from the start of its process to its end",
        )


def _compared(
    bench: Workbench, name: str, ours: Callable[[int], None], peer: Callable[[int], None], *, quick: bool, note: str
) -> Result:
    for run in (ours, peer):  # the first run of each makes tables, folders and caches
        bench.overhead(run)
    return compare(
        name,
        "s",
        lambda: bench.overhead(ours),
        lambda: bench.overhead(peer),
        runs=QUICK_RUNS if quick else RUNS,
        peer_name="the same steps without Dagster",
        note=note,
    )


def run_in_process(instance: dg.DagsterInstance, request_id: int) -> None:
    """Ours: the job, in this process."""
    defs.resolve_job_def("build_experiment").execute_in_process(
        run_config=_run_config(request_id), instance=instance, raise_on_error=False
    )


def run_launched(home: Path, request_id: int) -> None:
    """Ours: the job, in a process of its own."""
    config = home / "run.json"  # JSON is YAML
    config.write_text(json.dumps(_run_config(request_id)))
    job = ("-m", "benchmarks.run_overhead", "-a", "defs", "-j", "build_experiment", "-c", str(config))
    _start("-m", "dagster", "job", "execute", *job)


def run_plainly(request_id: int) -> None:
    """The peer: what the job's ops do, in their order, with the same session but without its run page."""
    services = QuickServices(load_settings())
    session = BuildRun(services, f"plain run of {request_id}", lambda _level, _text: None)
    session.open()
    try:
        reconcile_builds(services)
        repository = services.trust.repository(services.ledger.player_repo_url(request_id))
        claim = session.claim(request_id)
        folder = folder_of(claim.kind, claim.study_uuid)
        session.check()
        live = live_deployment(services.bucket, folder)
        session.check()
        commit = services.github.resolve(repository, claim.player_sha)
        services.ledger.note_commit(claim, repository=repository.full_name, sha=commit.sha, reason=commit.reason)
        source = services.checkouts.fetch(commit)
        session.check()
        services.builder.prepare(session.show_output(session.image_output))
        session.check()
        order = BuildOrder(
            checkout=source.path,
            prefix=f"/studies/{claim.study_uuid}/",
            environment=services.settings.player_environment(trusted=services.trust.trusts_commit(commit)),
            output=session.output_folder,
        )
        bundle = services.builder.build(order, session.show_output(session.build_output), session.stop)
        session.check()
        deployed = publish(
            services.bucket,
            bundle,
            folder=folder,
            request_id=str(request_id),
            fencing_token=claim.fencing_token,
            seen_generation=live.generation if live else 0,
            facts={"repository": repository.full_name, "sha": commit.sha},
            before_commit=session.check,
        )
        session.check()
        session.finish({"bucket": services.bucket.name, "folder": folder, "files": deployed.file_count})
    finally:
        session.close()
        services.engine.dispose()


def run_plainly_launched(request_id: int) -> None:
    """The peer in a process of its own, which has the same modules to import."""
    _start("-m", "benchmarks.run_overhead", str(request_id))


@contextmanager
def workbench() -> Generator[Workbench]:
    """A new home, a GitHub, and the environment that leads every process to them."""
    with tempfile.TemporaryDirectory() as folder, GitHubServer({REPOSITORY: [PLAYER]}) as github:
        home = Path(folder)
        (home / "build.sh").write_text(SCRIPT)
        (home / "tools").mkdir()
        player = f"{github.url}/{REPOSITORY}"
        settings = {
            "DAGSTER_HOME": str(home / "dagster"),
            "LOOKIT_HOME": folder,
            "LOOKIT_GITHUB_API_URL": github.url,
            "LOOKIT_GITHUB_WEB_URL": github.url,
            "LOOKIT_PLAYER_REPO_URL": player,
            "LOOKIT_TRUSTED_REPOSITORIES": player,
        }
        with _environment(settings), _silence():
            services = QuickServices(load_settings())
            prepare_dagster_home(services.settings)
            services.upgrade_database()
            yield Workbench(services, populate(services.sessions, State.APPROVED))
            services.engine.dispose()


@contextmanager
def _environment(values: Mapping[str, str]) -> Generator[None]:
    """These variables, and none of the operator's own settings."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("LOOKIT_")]:
        del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _silence() -> Generator[None]:
    """Keep the runs' log lines off the terminal, without keeping them from the runs' own logs."""
    handler = logging.NullHandler()
    names = ("domain", "ember_build", "lookit_ops")
    before = {name: logging.getLogger(name).propagate for name in names}
    for name in names:
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name, propagate in before.items():
            logging.getLogger(name).propagate = propagate
            logging.getLogger(name).removeHandler(handler)


def _run_config(request_id: int) -> dict[str, object]:
    return {
        "ops": {"claim": {"config": {"request_id": request_id}}},
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }


def _start(*arguments: str) -> None:
    """Run Python at the project's root. Raises BenchmarkError with the end of what it said."""
    done = subprocess.run([sys.executable, *arguments], cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(arguments)} ended with status {done.returncode}: {done.stderr[-2000:]}")


def _times_in(home: Path) -> Path:
    return home / "builder-seconds"


if __name__ == "__main__":
    run_plainly(int(sys.argv[1]))
