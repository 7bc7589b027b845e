"""What the commands for builds and for archives have in common: the newest requests, and cancelling one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, TypeVar

import typer
from rich.rule import Rule
from sqlalchemy import select

from domain.errors import InvalidRequest
from domain.lookup import find_user
from domain.models import ArchiveRequest, BuildRequest, RequestStatus, Study, User
from domain.requests.archives import ArchiveLedger
from domain.requests.builds import BuildLedger
from domain.requests.queue import RequestQueue
from lookit_ops.cli.options import MOST_ROWS
from lookit_ops.cli.show import coloured, console, plain, when
from lookit_ops.services import Services

Request = TypeVar("Request", BuildRequest, ArchiveRequest)

OnlyStatus = Annotated[str, typer.Option("--status", help="Only requests with this status.")]
Last = Annotated[int, typer.Option("--last", min=1, max=MOST_ROWS, help="How many requests, the newest.")]


def newest(outside: Services, model: type[Request], status: str, last: int) -> list[tuple[Request, str, str]]:
    """Each with the name of its study and the address of who asked. An empty `status` is any. Raises InvalidRequest."""
    if status and status not in set(RequestStatus):
        raise InvalidRequest(f"there is no status {status!r}; there are {', '.join(RequestStatus)}")
    query = (
        select(model, Study.name, User.email)
        .join(Study, Study.id == model.study_id)
        .join(User, User.id == model.requested_by_id)
        .order_by(model.id.desc())
        .limit(last)
    )
    if status:
        query = query.where(model.status == status)
    with outside.reading.begin() as session:
        return [(row, name, email) for row, name, email in session.execute(query)]


def places_in_queue(outside: Services, model: type[BuildRequest] | type[ArchiveRequest]) -> dict[int, int]:
    """The place in the queue, from 1, of each request that waits."""
    return RequestQueue(outside.reading, model).places()


def show_open(outside: Services, study_id: int) -> bool:
    """Print the requests of a study that wait or run, with what went wrong in each attempt; False if there is none."""
    found = False
    for model, what in ((BuildRequest, "build request"), (ArchiveRequest, "archive request")):
        query = select(model).where(
            model.study_id == study_id, model.status.in_((RequestStatus.QUEUED, RequestStatus.RUNNING))
        )
        with outside.reading.begin() as session:
            requests = list(session.scalars(query.order_by(model.id)))
        places = places_in_queue(outside, model) if requests else {}
        for request in requests:
            found = True
            title = f"{when(request.requested_at)} UTC · {what} {request.id}: {request.kind}"
            console.print(Rule(plain(title), align="left"))
            console.print(coloured(request.status) + place_of(request, places.get(request.id)))
            for failed in request.failed_attempts:
                step = f"attempt {failed['attempt']}, {failed['step']}" if failed["attempt"] else "a run did not begin"
                console.print(f"  [bold]{plain(step)}[/]: {plain(str(failed['error']))}", highlight=False)
    return found


def place_of(row: BuildRequest | ArchiveRequest, place: int | None) -> str:
    """Where a request stands that waits, for which attempt and until when if it is not the first."""
    if place is None:
        return ""
    if not row.attempt:
        return f" (place {place})"
    later = "" if row.next_attempt_at <= datetime.now(UTC) else f" from {row.next_attempt_at:%Y-%m-%d %H:%M} UTC"
    return f" (place {place}, attempt {row.attempt + 1}{later})"


def cancel_request(
    outside: Services, ledger: BuildLedger | ArchiveLedger, what: str, request_id: int, acting: str
) -> None:
    """Cancel a request, and say whether it has ended; `what` begins the sentence. Raises what the ledger raises."""
    with outside.sessions.begin() as session:
        user = find_user(session, acting)
    if ledger.cancel(request_id, user.id) is RequestStatus.CANCELLED:
        console.print(f"{what} {request_id} is cancelled.")
    else:
        console.print(f"{what} {request_id} is running; its worker stops within some seconds.")
