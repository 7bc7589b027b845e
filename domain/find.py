"""Find a study, a lab or a person by what somebody typed; the error says what there is instead."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from domain.errors import InvalidRequest
from domain.models import Lab, Study, User


def find_study(session: Session, typed: str) -> Study:
    """The study with this UUID, or the only one with this name. Raises InvalidRequest."""
    text = typed.strip()
    try:
        study = session.scalar(select(Study).where(Study.uuid == UUID(text)))
    except ValueError:
        named = list(session.scalars(select(Study).where(func.lower(Study.name) == text.lower()).limit(2)))
        if len(named) > 1:
            raise InvalidRequest(f"more than one study is called {text!r}: give its UUID instead") from None
        study = named[0] if named else None
    if study is None:
        raise InvalidRequest(f"no study has the UUID or name {typed!r}; `lookit-ops study list` shows them all")
    return study


def find_user(session: Session, typed: str) -> User:
    """The person with this e-mail address, in any case. Raises InvalidRequest."""
    user = session.scalar(select(User).where(func.lower(User.email) == typed.strip().lower()))
    if user is None:
        raise InvalidRequest(f"nobody has an account with the e-mail address {typed!r}; check the spelling")
    return user


def find_lab(session: Session, typed: str) -> Lab:
    """The lab with this name, in any case, or this UUID. Raises InvalidRequest."""
    text = typed.strip()
    try:
        lab = session.scalar(select(Lab).where(Lab.uuid == UUID(text)))
    except ValueError:
        lab = session.scalar(select(Lab).where(func.lower(Lab.name) == text.lower()))
    if lab is None:
        names = ", ".join(session.scalars(select(Lab.name).order_by(Lab.name).limit(10)))
        raise InvalidRequest(f"no lab has the name or UUID {typed!r}; there are {names or 'none yet'}")
    return lab
