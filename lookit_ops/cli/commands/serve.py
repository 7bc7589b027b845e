"""`lookit-ops up`, `dev` and `serve`: what runs on this machine until it is interrupted; and the demonstration."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Annotated
from urllib.parse import urlsplit

import typer

from domain.errors import InvalidRequest
from domain.models import BuildKind
from lookit_ops.cli.options import services
from lookit_ops.cli.show import console, plain
from lookit_ops.demo.example import PORT, example_port, example_server
from lookit_ops.server.archive_server import ArchiveServer
from lookit_ops.server.dagster_home import prepare_dagster_home
from lookit_ops.server.dagster_processes import LOOPBACK, dagster_programs, make_storage
from lookit_ops.server.study_server import StudyServer
from lookit_ops.server.supervisor import supervise
from lookit_ops.services import Services
from lookit_ops.settings import PREFIX
from lookit_ops.storage.local.archives import LocalArchiveBucket
from lookit_ops.storage.local.experiments import LocalExperimentBucket

HTTP_PORT = 80
Port = Annotated[int, typer.Option(help="Port of Dagster's UI.", min=1, max=65535)]


def up(port: Port = 3000) -> None:
    """Run Dagster's UI, daemon and code location on this machine, restarted when they die, until interrupted."""
    outside = services()
    with ExitStack() as servers:
        _run(outside, port, servers)


def dev(port: Port = 3000) -> None:
    """The same, with the built studies and the demonstration's repository, to look at."""
    outside = services()
    with ExitStack() as servers:
        if example := example_port(outside.settings):
            server = servers.enter_context(example_server(example))
            console.print(f"Example repository  {server.url}", highlight=False)
        serve_folders(outside, servers)
        _run(outside, port, servers)


def _run(outside: Services, port: int, servers: ExitStack) -> None:
    outside.upgrade_database()
    home = prepare_dagster_home(outside.settings)
    make_storage()
    stop = servers.enter_context(_stopped_by_signals())
    address = f"http://{LOOPBACK}:{port}"
    console.print(f"Dagster             {address} (home: {plain(home)})", highlight=False, soft_wrap=True)
    supervise(dagster_programs(home, port), stop, lambda what: console.print(plain(what), soft_wrap=True))
    console.print("Stopped.")


@contextmanager
def _stopped_by_signals() -> Generator[threading.Event]:
    """Set on Ctrl-C or SIGTERM. Started in the background by a script, Python would ignore the first."""
    stop = threading.Event()

    def ask(_number: int, _frame: object) -> None:
        if not stop.is_set():
            console.print("Stopping …")
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def demo(
    repository_port: Annotated[int, typer.Option(help="Port for the example repository, in a new home.")] = PORT,
) -> None:
    """Show the main road on made-up data: preview, review, deployment."""
    from lookit_ops.demo.story import tell  # Dagster takes a second to import

    tell(console, repository_port)


def serve() -> None:
    """Serve built studies and previews, as the platform's proxy does, and archives, until interrupted."""
    outside = services()
    if outside.settings.gcs_bucket and outside.settings.gcs_archives:
        raise InvalidRequest(
            f"{_why_no_studies(outside)}, and the archives in {outside.settings.archives_bucket} have links of"
            " Google's; `serve` is for buckets that are folders"
        )
    with ExitStack() as servers:
        serve_folders(outside, servers)
        console.print("Ctrl-C ends it.")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


def serve_folders(outside: Services, servers: ExitStack) -> None:
    """Serve what is in folders, each kind at its own address, until the stack is closed. Raises InvalidRequest."""
    settings = outside.settings
    if settings.gcs_bucket:
        console.print(f"{'Built studies':<20}not served here: {plain(_why_no_studies(outside))}", soft_wrap=True)
    else:
        bucket = LocalExperimentBucket(settings.local_bucket)
        for kind, name in ((BuildKind.DEPLOYMENT, "studies_url"), (BuildKind.PREVIEW, "previews_url")):
            host = urlsplit(getattr(settings, name)).hostname or ""
            per_study = host if "{uuid}" in host else None
            server = StudyServer(bucket, kind, port=_port(outside, name), per_study=per_study)
            servers.enter_context(server)
            where = f"{getattr(settings, name)}studies/{{uuid}}/" if per_study else f"{server.url}studies/…"
            console.print(f"{kind.value.title() + 's':<20}{where}", highlight=False)
    if isinstance(outside.archives, LocalArchiveBucket):
        archives = ArchiveServer(outside.archives, port=_port(outside, "archives_url"))
        servers.enter_context(archives)
        console.print(f"{'Links to archives':<20}{archives.url}", highlight=False)


def _why_no_studies(outside: Services) -> str:
    return f"the bucket {outside.settings.bucket} is served by the platform's proxy (docs/serving.md)"


def _port(outside: Services, setting: str) -> int:
    """Where links lead, there must be somebody. Raises InvalidRequest for an address that only a proxy can answer."""
    url = getattr(outside.settings, setting)
    parts = urlsplit(url)
    if parts.port is None and parts.scheme == "https":
        raise InvalidRequest(
            f"{PREFIX}{setting.upper()} is {url!r}, and this server speaks no https: name a port where it listens,"
            " as in http://localhost:8001/, or let your own server answer there"
        )
    return parts.port or HTTP_PORT
