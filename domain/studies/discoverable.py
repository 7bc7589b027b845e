"""The studies that the public page lists: active, discoverable and deployed, with what a family may know of them.

A build takes nothing off the list: while it runs, the state that it found counts, for its old version is still served.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from domain.models import Lab, State, Study


@dataclass(frozen=True, slots=True)
class PublicStudy:
    """What the public page shows of one study."""

    uuid: UUID
    name: str
    lab: str
    purpose: str
    duration: str
    compensation: str
    contact: str
    image: str


def discoverable_studies(session: Session) -> list[PublicStudy]:
    """The list of the public page, by name."""
    listed = (
        select(
            Study.uuid,
            Study.name,
            Lab.name,
            Study.purpose,
            Study.duration,
            Study.compensation,
            Study.contact,
            Study.image,
        )
        .join(Lab, Lab.id == Study.lab_id)
        .where(
            or_(Study.state == State.ACTIVE, Study.state_before_build == State.ACTIVE),
            Study.is_discoverable,
            Study.deployed_at.is_not(None),
        )
    )
    studies = [PublicStudy(*row) for row in session.execute(listed)]
    return sorted(studies, key=lambda study: (study.name.casefold(), study.uuid))  # the same on every database
