"""Whether families get a study: what its state says, and what the bucket has, as far as the database knows.

A page is changed in three steps: note in the database that it is being changed, write it, note what it is. A worker
that dies in between leaves the note, and the next one writes the page again.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import and_, case, or_, select
from sqlalchemy.orm import Session

from domain.models import State, Study
from domain.models.studies import PageState
from domain.studies.log import hold, record

SERVED_STATES = (State.ACTIVE, State.PAUSED)
"""In any other state families get a page that says that the study is not available."""


@dataclass(frozen=True, slots=True)
class Change:
    """A page that one worker changes; `wanted` is served or withdrawn."""

    study_id: int
    study_uuid: UUID
    wanted: PageState


def _wanted(study: Study) -> PageState:
    state = study.state_before_build or study.state
    return PageState.SERVED if state in SERVED_STATES else PageState.WITHDRAWN


def out_of_line(session: Session) -> list[int]:
    """Return the studies whose page is not what their state says, or not known; not those that are being deployed."""
    state = case((Study.state_before_build.is_not(None), Study.state_before_build), else_=Study.state)
    is_served = state.in_(SERVED_STATES)
    wrong = or_(
        Study.page_state == PageState.CHANGING,
        and_(Study.page_state == PageState.SERVED, ~is_served),
        and_(Study.page_state == PageState.WITHDRAWN, is_served),
    )
    query = select(Study.id).where(wrong, Study.state != State.DEPLOYING).order_by(Study.id)
    return list(session.scalars(query))


def needs_change(session: Session, study_id: int) -> bool:
    """Return whether a study's page is to be changed: it was deployed, is not right, and no deployment runs."""
    study = session.get_one(Study, study_id)
    return study.state != State.DEPLOYING and study.page_state not in (PageState.NONE, _wanted(study))


def begin_change(session: Session, study_id: int) -> Change | None:
    """Note that a study's page is being changed; None if it is right, or a deployment runs, which writes its own."""
    study = session.get_one(Study, study_id)
    hold(session, study)
    if not needs_change(session, study_id):
        return None
    study.page_state = PageState.CHANGING.value
    return Change(study.id, study.uuid, _wanted(study))


def end_change(session: Session, change: Change, found: PageState, *, was_changed: bool) -> bool:
    """Note what the page is now, and in the log if it has changed; False if the study has moved, and it must be again.

    A deployment that has ended meanwhile has noted its own page, and a change that another worker has begun is its own.
    """
    study = session.get_one(Study, change.study_id)
    hold(session, study)
    if was_changed:
        record(
            session,
            study,
            action="put_back" if found is PageState.SERVED else "taken_down",
            user_id=None,
            state_before=study.state,
            state_after=study.state,
            extra={"note": _NOTES[found]},
        )
    if study.page_state not in (PageState.CHANGING, found):
        study.page_state = PageState.CHANGING.value  # another worker has noted what is no longer so
        return False
    if found is not PageState.NONE and found is not _wanted(study):
        return False
    study.page_state = found.value
    return True


_NOTES = {
    PageState.SERVED: "families get the study again",
    PageState.WITHDRAWN: "families get a page that says that the study is not available",
}
