"""Who is told: the people behind «site admins», «researchers» and «study admins», asked through their permissions."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy.orm import Session

from domain.models import Study, User
from domain.permissions.checks import By, users_holding
from domain.permissions.codes import Permission


class Audience(StrEnum):
    """A group of people by what they may do, never by the name of their role."""

    SITE_ADMINS = "site_admins"
    RESEARCHERS = "researchers"
    STUDY_ADMINS = "study_admins"


_HELD = {
    Audience.SITE_ADMINS: (Permission.APPROVE_STUDY, By.SITE),
    Audience.RESEARCHERS: (Permission.CHANGE_STUDY_STATUS, By.STUDY | By.LAB),
    Audience.STUDY_ADMINS: (Permission.MANAGE_STUDY_RESEARCHERS, By.STUDY),
}


def people(session: Session, study: Study, *audiences: Audience, also: tuple[User, ...] = ()) -> list[User]:
    """The active people of the audiences, and those named, each once, by e-mail address."""
    found = {user.id: user for audience in audiences for user in users_holding(session, *_args(audience, study))}
    found |= {user.id: user for user in also if user.is_active}
    return sorted(found.values(), key=lambda user: user.email)


def _args(audience: Audience, study: Study) -> tuple[Permission, Study, By]:
    permission, by = _HELD[audience]
    return permission, study, by
