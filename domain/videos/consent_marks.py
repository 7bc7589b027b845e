"""Marks a study's frames as consent footage, where their names do not say so."""

from __future__ import annotations

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from domain.errors import InvalidRequest
from domain.models import Study, User, Video
from domain.permissions.checks import require_permission
from domain.permissions.codes import Permission
from domain.studies.log import hold, record

MARKED = "mark_consent_footage"
"""The action in the study's log: later videos of the frame are marked by it."""
MOST_FRAMES_NAMED = 20


def mark_consent_frame(session: Session, study: Study, user: User, frame_id: str) -> int:
    """Mark all videos of a frame as consent footage, in the caller's transaction; returns how many were not yet.

    Videos of that frame which come later are marked by the catalogue. Consent footage is given out whatever was ruled,
    so only who approves studies may say what it is. Raises PermissionDenied, or InvalidRequest if the study has no
    video of such a frame.
    """
    hold(session, study)
    require_permission(session, user, Permission.APPROVE_STUDY, study)
    is_of_frame = (Video.study_id == study.id, Video.frame_id == frame_id)
    if not session.scalar(select(func.count(Video.id)).where(*is_of_frame)):
        raise InvalidRequest(
            f"the study {study.name!r} has no video of the frame {frame_id!r}; it has videos of"
            f" {unmarked_frames(session, study)[1] or 'no other frame that is not marked'}"
        )
    marked = update(Video).where(*is_of_frame, Video.is_consent_footage.is_(False)).values(is_consent_footage=True)
    count = len(session.scalars(marked.returning(Video.id).execution_options(synchronize_session=False)).all())
    record(
        session,
        study,
        action=MARKED,
        user_id=user.id,
        state_before=study.state,
        state_after=study.state,
        extra={"frame": frame_id, "videos": count},
    )
    return count


def unmarked_frames(session: Session, study: Study) -> tuple[int, str]:
    """Return how many videos of the study carry no mark of consent footage, and their frames, most frequent first."""
    counts = session.execute(
        select(Video.frame_id, func.count(Video.id))
        .where(Video.study_id == study.id, Video.is_consent_footage.is_(False))
        .group_by(Video.frame_id)
        .order_by(func.count(Video.id).desc(), Video.frame_id)
    ).all()
    more = ", …" if len(counts) > MOST_FRAMES_NAMED else ""
    return sum(count for _, count in counts), ", ".join(frame for frame, _ in counts[:MOST_FRAMES_NAMED]) + more
