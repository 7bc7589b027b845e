"""The newest requests of a kind, for the commands that list them."""

from __future__ import annotations

from typing import Annotated, TypeVar

import typer
from sqlalchemy import select

from domain.errors import InvalidRequest
from domain.models import ArchiveRequest, BuildRequest, RequestStatus, Study, User
from lookit_ops.cli.options import MOST_ROWS
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
