"""`lookit-ops demo`, `dev` and `serve`: everything on one machine, to look at."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
import yaml

from domain.errors import InvalidRequest
from domain.migrations import upgrade
from domain.models import BuildKind
from lookit_ops.archive_server import ArchiveServer
from lookit_ops.cli.options import platform
from lookit_ops.cli.show import console, plain
from lookit_ops.dagster_home import prepare_dagster_home
from lookit_ops.demo.example import PORT, example_port, example_server
from lookit_ops.demo.story import tell
from lookit_ops.platform import Platform
from lookit_ops.reconcile import reconcile_builds
from lookit_ops.storage.local import LocalExperimentBucket
from lookit_ops.storage.local_archives import LocalArchiveBucket
from lookit_ops.study_server import StudyServer

Port = Annotated[int, typer.Option(help="Port of Dagster's UI.", min=1, max=65535)]
STOP_TIME = 30
"""Seconds that Dagster gets to end its processes."""
WORKSPACE = Path(__file__).resolve().parents[2] / "workspace.yaml"
"""Dagster's workspace, where the project is used from its folder; an installed package has none."""
LOCATION = {"module_name": "lookit_ops.definitions", "location_name": "lookit_ops"}
"""The code location. Its name keys the on/off state of schedules and sensors, so it must be the same everywhere."""


def demo(
    repository_port: Annotated[int, typer.Option(help="Port for the example repository, in a new home.")] = PORT,
) -> None:
    """Show the main road on made-up data: preview, review, deployment."""
    tell(console, repository_port)


def serve() -> None:
    """Serve built studies and previews, as the platform's proxy does, until interrupted."""
    outside = platform()
    if outside.settings.gcs_bucket:
        raise InvalidRequest(f"{_only_the_proxy(outside)}; `serve` is for a bucket that is a folder")
    with ExitStack() as servers:
        _serve_studies(outside, servers)
        console.print("Ctrl-C ends it.")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


def dev(port: Port = 3000) -> None:
    """Run Dagster's UI and daemon, the built studies, and the demonstration's repository, until interrupted."""
    outside = platform()
    upgrade(outside.engine)
    home = prepare_dagster_home(outside.settings)
    if done := reconcile_builds(outside):
        console.print(f"Ended what dead workers had left open: {done}")
    if done.rolled_forward:
        from lookit_ops.assets.experiments import report_builds

        report_builds(outside, done.rolled_forward)
    with ExitStack() as servers:
        if example := example_port(outside.settings):
            server = servers.enter_context(example_server(example))
            console.print(f"Example repository  {server.url}", highlight=False)
        if outside.settings.gcs_bucket:
            console.print(f"Built studies       not served here: {plain(_only_the_proxy(outside))}", soft_wrap=True)
        else:
            _serve_studies(outside, servers)
        console.print(
            f"Dagster             http://127.0.0.1:{port} (home: {plain(home)})", highlight=False, soft_wrap=True
        )
        command = [sys.executable, "-m", "dagster", "dev", "--host", "127.0.0.1", "--port", str(port)]
        sys.exit(_run([*command, "--workspace", str(_workspace(home))]))


def _workspace(dagster_home: Path) -> Path:
    """The project's workspace file, or one of the same content in Dagster's home: `-m` could not name the location."""
    if WORKSPACE.is_file():
        return WORKSPACE
    file = dagster_home / "workspace.yaml"
    file.write_text(yaml.safe_dump({"load_from": [{"python_module": LOCATION}]}))
    return file


def _only_the_proxy(outside: Platform) -> str:
    return f"the bucket {outside.settings.bucket} is served by the platform's proxy (docs/serving.md)"


def _serve_studies(outside: Platform, servers: ExitStack) -> None:
    bucket = LocalExperimentBucket(outside.settings.local_bucket)
    for kind, url in (
        (BuildKind.DEPLOYMENT, outside.settings.studies_url),
        (BuildKind.PREVIEW, outside.settings.previews_url),
    ):
        server = StudyServer(bucket, kind, port=urlsplit(url).port or 0)
        servers.enter_context(server)
        console.print(f"{kind.value.title() + 's':<20}{server.url}studies/…", highlight=False)
    if isinstance(outside.archives, LocalArchiveBucket):
        archives = ArchiveServer(outside.archives, port=urlsplit(outside.settings.archives_url).port or 0)
        servers.enter_context(archives)
        console.print(f"{'Links to archives':<20}{archives.url}", highlight=False)


def _run(command: list[str]) -> int:
    """Run a child process until it ends. An interruption or termination here interrupts it, once, and waits for it."""
    # Started in the background by a script, Python ignores interruptions, and so would every child.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore:Function `dev_command` is superseded"}
    child = subprocess.Popen(command, start_new_session=True, env=quiet)
    try:
        return child.wait()
    except KeyboardInterrupt:
        console.print("Stopping …")
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(STOP_TIME)
        return 1
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing that it started may outlive it
            os.killpg(child.pid, signal.SIGKILL)
