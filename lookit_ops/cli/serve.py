"""`lookit-ops demo` and `serve`: the demonstration, and the built studies to look at."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import Annotated
from urllib.parse import urlsplit

import typer

from domain.errors import InvalidRequest
from domain.models import BuildKind
from lookit_ops.archive_server import ArchiveServer
from lookit_ops.cli.options import platform
from lookit_ops.cli.show import console
from lookit_ops.demo.example import PORT
from lookit_ops.demo.story import tell
from lookit_ops.platform import Platform
from lookit_ops.storage.local import LocalExperimentBucket
from lookit_ops.storage.local_archives import LocalArchiveBucket
from lookit_ops.study_server import StudyServer


def demo(
    repository_port: Annotated[int, typer.Option(help="Port for the example repository, in a new home.")] = PORT,
) -> None:
    """Show the main road on made-up data: preview, review, deployment."""
    tell(console, repository_port)


def serve() -> None:
    """Serve built studies and previews, as the platform's proxy does, until interrupted."""
    outside = platform()
    if why := why_not_served(outside):
        raise InvalidRequest(f"{why}; `serve` is for a bucket that is a folder")
    with ExitStack() as servers:
        serve_studies(outside, servers)
        console.print("Ctrl-C ends it.")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


def why_not_served(outside: Platform) -> str | None:
    """Why the built studies cannot be served from here, if so."""
    if not outside.settings.gcs_bucket:
        return None
    return f"the bucket {outside.settings.bucket} is served by the platform's proxy (docs/serving.md)"


def serve_studies(outside: Platform, servers: ExitStack) -> None:
    """Serve deployments and previews, each at its own address, until the stack is closed."""
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
