"""Find a study, a lab or a person by what somebody typed; the error says what there is instead.

A name is taken as it is stored first, then without regard to upper and lower case and to blanks around it. That is
compared here and not by the database: SQLite's `lower` knows ASCII only, PostgreSQL's depends on the server's locale.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from domain.errors import InvalidRequest
from domain.models import Lab, Study, User

_NAMED_AT_MOST = 5


def find_study(session: Session, typed: str) -> Study:
    """The study with this UUID, or the only one with this name. Raises InvalidRequest."""
    found = _by_uuid(session, Study, typed) or _by_text(session, Study.name, typed)
    if not found:
        raise InvalidRequest(f"no study has the UUID or name {typed!r}; `lookit-ops study list` shows them all")
    if len(found) > 1:
        raise InvalidRequest(f"more than one study is called {typed!r}: give the UUID, {_named(found, 'name')}")
    return found[0]


def find_user(session: Session, typed: str) -> User:
    """The person with this e-mail address, in any case, or this UUID. Raises InvalidRequest."""
    found = _by_text(session, User.email, typed) or _by_uuid(session, User, typed)
    if not found:
        raise InvalidRequest(f"nobody has an account with the e-mail address or UUID {typed!r}; check the spelling")
    if len(found) > 1:
        raise InvalidRequest(
            f"more than one account has the address {typed!r}: give the UUID, {_named(found, 'email')}"
        )
    return found[0]


def find_lab(session: Session, typed: str) -> Lab:
    """The lab with this name, in any case, or this UUID. Raises InvalidRequest."""
    found = _by_uuid(session, Lab, typed) or _by_text(session, Lab.name, typed)
    if not found:
        names = ", ".join(session.scalars(select(Lab.name).order_by(Lab.name).limit(10)))
        raise InvalidRequest(f"no lab has the name or UUID {typed!r}; there are {names or 'none yet'}")
    if len(found) > 1:
        raise InvalidRequest(f"more than one lab is called {typed!r}: give the UUID, {_named(found, 'name')}")
    return found[0]


def _by_uuid(session: Session, model: Any, typed: str) -> Sequence[Any]:
    try:
        uuid = UUID(typed.strip())
    except ValueError:
        return ()
    return session.scalars(select(model).where(model.uuid == uuid)).all()


def _by_text(session: Session, column: InstrumentedAttribute[str], typed: str) -> Sequence[Any]:
    """All rows whose column holds the text, or, if none does, all that hold it but for case and outer blanks."""
    if not _can_be_stored(typed):
        return ()
    model = column.class_
    some = select(model).order_by(model.id).limit(_NAMED_AT_MOST + 1)
    if exact := session.scalars(some.where(column.in_({typed, typed.strip()}))).all():
        return exact
    wanted = _without_case(typed)
    # Two columns of all rows: 20,000 names take some hundredths of a second, and only where a name was not exact.
    ids = [row_id for row_id, text in session.execute(select(model.id, column)) if _without_case(text) == wanted]
    return session.scalars(some.where(model.id.in_(ids[: _NAMED_AT_MOST + 1]))).all()


def _without_case(text: str) -> str:
    """The text as it counts for a comparison; a letter with its accent apart, as some systems write it, is the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text.strip()).casefold())


def _can_be_stored(text: str) -> bool:
    """Whether both databases take the text as a parameter; what they do not take, they do not hold either."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


def _named(found: Sequence[Any], column: str) -> str:
    """The rows with their UUIDs, as the end of a sentence."""
    named = [f"{row.uuid} ({getattr(row, column)!r})" for row in found[:_NAMED_AT_MOST]]
    return " or ".join([*named, "another one"] if len(found) > _NAMED_AT_MOST else named)
