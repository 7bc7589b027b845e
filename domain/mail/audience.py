"""Who is told: the people behind «site admins», «researchers» and «study admins», asked through their permissions."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy.orm import Session

from domain.models import OutboxMail, State, Study, User
from domain.permissions.checks import By, users_holding
from domain.permissions.codes import Permission
from domain.permissions.grants import permissions_of


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


def reason_to_withdraw(session: Session, mail: OutboxMail) -> str | None:
    """Return why a waiting mail must not be delivered any more: its recipient may no longer hear of the study."""
    user = session.get_one(User, mail.recipient_id, populate_existing=True)
    if not user.is_active:
        return f"the account of {user.email} is closed"
    if mail.study_id is None or "archive" in mail.context:
        return None  # the permission that an archive needs is asked for when its link is made
    study = session.get_one(Study, mail.study_id)
    if mail.template == "study_edited" and study.state != State.SUBMITTED:
        return f"the study {study.name!r} is under review no more"
    sent_to = mail.context.get("sent_to", {})
    audiences = [Audience(name) for name in sent_to.get("audiences", ())]
    if any(user.id == one.id for audience in audiences for one in users_holding(session, *_args(audience, study))):
        return None
    if not audiences or sent_to["asked_by_id"] == user.id:
        if permissions_of(session, user, study):
            return None
        return f"{user.email} holds no role any more by which they would hear of the study {study.name!r}"
    return f"{user.email} has lost the role that the mail was sent for, on the study {study.name!r}"


def _args(audience: Audience, study: Study) -> tuple[Permission, Study, By]:
    permission, by = _HELD[audience]
    return permission, study, by
