"""Makes an archive in this process while somebody waits: the same job, its progress in one line of the terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager

from dagster import DagsterInstance
from rich.console import Console

from domain.errors import InvalidRequest
from domain.models import ArchiveRequest, RequestStatus
from domain.requests.failure import last_error
from lookit_ops.mail_delivery import deliver_mails
from lookit_ops.server.dagster_home import prepare_dagster_home
from lookit_ops.services import Services
from lookit_ops.terminal import plain

LOOK_SECONDS = 1.0


def run_archive(services: Services, request_id: int, console: Console | None) -> None:
    """Run the job for a waiting request. Raises InvalidRequest if no archive came of it, saying why."""
    from lookit_ops.definitions import defs

    prepare_dagster_home(services.settings)
    with DagsterInstance.get() as instance, progress(console, f"archive request {request_id}"):
        defs.resolve_job_def("build_zipfile_of_videos").execute_in_process(
            run_config={
                "ops": {"claim": {"config": {"request_id": request_id}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            instance=instance,
            raise_on_error=False,
        )
        # The daemon may have been quicker: then its run makes the archive, and this one waits for it.
        while (request := _request(services, request_id)).status == RequestStatus.RUNNING:
            time.sleep(LOOK_SECONDS)
    deliver_mails(services)
    if request.status == RequestStatus.QUEUED and request.error_code is None:
        place = services.archive_queue.places().get(request_id, 1)
        raise InvalidRequest(
            f"archive request {request_id} waits, at place {place} of the queue: as many archives are being made as may"
            " be at once (LOOKIT_ARCHIVES_AT_ONCE); the mail will bring its link"
        )
    if request.status == RequestStatus.QUEUED:
        raise InvalidRequest(
            f"archive request {request_id} failed for now ({request.error_code}): {last_error(request)}\nIt waits for"
            f" another attempt after {request.next_attempt_at:%H:%M:%S} UTC; the run in Dagster's UI says more"
        )
    if request.status != RequestStatus.SUCCEEDED:
        raise InvalidRequest(f"archive request {request_id} is {request.status}: {request.error or request.error_code}")


def _request(services: Services, request_id: int) -> ArchiveRequest:
    with services.sessions.begin() as session:
        return session.get_one(ArchiveRequest, request_id)


@contextmanager
def progress(console: Console | None, what: str, first: str = "beginning …") -> Generator[None]:
    """A line that tells what our packages log, for as long as something happens; nothing without a console."""
    if console is None:
        yield
        return
    with console.status(f"{what}: {first}") as status:

        class ToStatus(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                status.update(f"{what}: {plain(record.getMessage()[:90])}")

        handler = ToStatus(logging.INFO)
        logging.getLogger("lookit_ops").addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger("lookit_ops").removeHandler(handler)
