"""`lookit-ops serve`: what is in folders, the built studies and the archives, to look at."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from urllib.parse import urlsplit

from domain.errors import InvalidRequest
from domain.models import BuildKind
from lookit_ops.cli.options import services
from lookit_ops.cli.show import console, plain
from lookit_ops.server.archive_server import ArchiveServer
from lookit_ops.server.study_server import StudyServer
from lookit_ops.services import Services
from lookit_ops.settings import PREFIX
from lookit_ops.storage.local import LocalExperimentBucket
from lookit_ops.storage.local_archives import LocalArchiveBucket

HTTP_PORT = 80


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
