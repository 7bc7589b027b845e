"""What the commands for builds and for archives have in common: the newest requests, and cancelling one."""

from __future__ import annotations

from typing import Annotated, TypeVar

import typer
from sqlalchemy import select

from domain.builds.ledger import BuildLedger
from domain.errors import InvalidRequest
from domain.exports.ledger import ArchiveLedger
from domain.find import find_user
from domain.models import ArchiveRequest, BuildRequest, RequestStatus, Study, User
from lookit_ops.cli.options import MOST_ROWS
from lookit_ops.cli.show import console
from lookit_ops.platform import Platform

Request = TypeVar("Request", BuildRequest, ArchiveRequest)

OnlyStatus = Annotated[str, typer.Option("--status", help="Only requests with this status.")]
Last = Annotated[int, typer.Option("--last", min=1, max=MOST_ROWS, help="How many requests, the newest.")]


def newest(outside: Platform, model: type[Request], status: str, last: int) -> list[tuple[Request, str, str]]:
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
    with outside.sessions.begin() as session:
        return [(row, name, email) for row, name, email in session.execute(query)]


def place_of(row: BuildRequest | ArchiveRequest, place: int | None) -> str:
    """Where a request stands that waits, and for which attempt if it is not the first."""
    if place is None:
        return ""
    return f" (place {place})" if not row.attempt else f" (place {place}, attempt {row.attempt + 1})"


def cancel_request(
    outside: Platform, ledger: BuildLedger | ArchiveLedger, what: str, request_id: int, acting: str
) -> None:
    """Cancel a request, and say whether it has ended; `what` begins the sentence. Raises what the ledger raises."""
    with outside.sessions.begin() as session:
        user = find_user(session, acting)
    if ledger.cancel(request_id, user.id) is RequestStatus.CANCELLED:
        console.print(f"{what} {request_id} is cancelled.")
    else:
        console.print(f"{what} {request_id} is running; its worker stops within some seconds.")
