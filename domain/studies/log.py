"""The record of what happened to a study: one log per transition or build, bounded in size."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from domain.db import storable
from domain.models import Study, StudyLog

TEXT_LIMIT = 400_000
"""Characters that one text of a log may have; of a longer one head and tail are kept."""


def bounded(text: str, limit: int = TEXT_LIMIT) -> str:
    """The text, or its head and tail around a line that says how much was left out."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def bounded_all(value: Any, limit: int = TEXT_LIMIT) -> Any:
    """The same for every text within a JSON value; what no database can hold is shown as a sign."""
    match value:
        case str():
            return bounded(storable(value), limit)
        case dict():
            return {storable(str(key)): bounded_all(item, limit) for key, item in value.items()}
        case list() | tuple():
            return [bounded_all(item, limit) for item in value]
        case _:
            return value


def hold(session: Session, study: Study) -> None:
    """Read the study anew and hold its row until the transaction ends.

    Every act on a study begins with it, before it asks for a permission: a study that moves to another lab at the same
    moment changes who holds one.
    """
    session.refresh(study, with_for_update=True)


def record(
    session: Session,
    study: Study,
    *,
    action: str,
    user_id: int | None,
    state_before: str,
    state_after: str,
    extra: dict[str, Any],
    build_request_id: int | None = None,
) -> StudyLog:
    """Write one log of the study, in the caller's transaction."""
    log = StudyLog(
        study_id=study.id,
        user_id=user_id,
        action=action,
        state_before=state_before,
        state_after=state_after,
        extra={name: value if name == "diff" else bounded_all(value) for name, value in extra.items()},
        build_request_id=build_request_id,
        revision=study.revision,
    )
    session.add(log)
    session.flush()
    return log
