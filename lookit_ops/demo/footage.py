"""The made-up families of the demonstration: responses, rulings on their consent, and videos in the folder of videos.

The videos hold noise instead of moving pictures; their names are those that the recorder gives.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sqlalchemy.orm import Session

from domain.models import ConsentRuling, Response, Study, User
from domain.videos.object_names import VideoKey
from lookit_ops.services import Services

FAMILIES: tuple[str | None, ...] = ("accepted", "accepted", "accepted", "rejected", None)
"""What was ruled on each family's consent; None: nothing yet."""
FRAMES = ("1-video-consent", "3-which-is-bigger", "4-which-is-bigger")
"""Frames that record; the first is the parent who gives consent."""
SIZES = (200_000, 1_500_000)
"""The shortest and the longest video, in bytes."""
FIRST_MS = 1_772_359_200_000
"""Unix time in ms: 2026-03-01, 10:00 UTC."""
_DAY_MS, _MINUTE_MS = 86_400_000, 60_000


@dataclass(frozen=True, slots=True)
class Filmed:
    """What the families left behind."""

    families: int
    accepted: int
    videos: int
    size_bytes: int


def film(services: Services, study: Study, arbiter: User) -> Filmed:
    """Let some families take part: rows of responses and rulings, and files for the catalogue to find."""
    made = random.Random(study.uuid.int)  # noqa: S311 - reproducible, not secret
    folder = services.settings.local_videos
    folder.mkdir(parents=True, exist_ok=True)
    size = 0
    with services.sessions.begin() as session:
        for number, ruling in enumerate(FAMILIES):
            for key in _take_part(session, study, arbiter, number, ruling, made):
                contents = made.randbytes(made.randint(*SIZES))
                (folder / key).write_bytes(contents)
                size += len(contents)
    return Filmed(len(FAMILIES), FAMILIES.count("accepted"), len(FAMILIES) * len(FRAMES), size)


def _take_part(
    session: Session, study: Study, arbiter: User, number: int, ruling: str | None, made: random.Random
) -> list[str]:
    """One family's response; the names of its videos."""
    response = Response(study_id=study.id)
    session.add(response)
    session.flush()
    if ruling is not None:
        session.add(ConsentRuling(response_id=response.id, ruling=ruling, arbiter_id=arbiter.id))
    return [
        VideoKey(
            study_uuid=study.uuid,
            frame_id=frame,
            response_uuid=response.uuid,
            unix_ms=FIRST_MS + number * _DAY_MS + place * _MINUTE_MS,
            digits=str(made.randrange(10**8, 10**9)),
            has_consent_prefix=place == 0,
        ).object_key
        for place, frame in enumerate(FRAMES)
    ]
