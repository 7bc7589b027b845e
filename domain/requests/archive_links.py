"""Who may have a link to an archive, now; and which archives are still wanted.

Permission and consent are asked again each time, for just those videos that are in the archive.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session

from domain.db import database_now
from domain.errors import InvalidRequest, PermissionDenied
from domain.mail.outbox import MailWithdrawn
from domain.models import ArchiveContent, ArchiveKind, ArchiveRequest, OutboxMail, RequestStatus, Study, User
from domain.requests.archives import ARCHIVE_ACTION, ArchiveClaim, ArchiveLedger, log_archive, mail_archive
from domain.videos.archive_names import download_name
from domain.videos.selection import require_basis

LINK_ACTION = "video_link"
"""The action of the study logs that record a link that was asked for."""


@dataclass(frozen=True, slots=True)
class ArchiveOffer:
    """An archive that a person may have now: what a link is made for. `file_name` is for the person's disk."""

    request_id: int
    study_uuid: UUID
    study_name: str
    kind: ArchiveKind
    archive_key: str
    archive_bytes: int
    file_name: str


@dataclass(frozen=True, slots=True)
class ArchiveLinks:
    """Links to the archives of one database. Each method is one short transaction of its own."""

    ledger: ArchiveLedger

    def offer_of_mail(self, mail: OutboxMail) -> ArchiveOffer:
        """Return the archive that a mail `archive_ready` tells of, if its recipient may still have it, now.

        Raises MailWithdrawn when the permission is gone, or something that the archive rests on.
        """
        with self.ledger.sessions.begin() as session:
            try:
                request = self.ledger.by_id(session, mail.context["archive"]["request_id"])
                return _offer(session, request, session.get_one(User, mail.recipient_id))
            except (InvalidRequest, PermissionDenied) as refusal:
                raise MailWithdrawn(str(refusal)) from refusal

    def link(self, request_id: int, user_id: int, *, origin: str = "") -> ArchiveOffer:
        """Offer the archive of a request once more, to any user who may have it now; the study's log records it.

        Raises PermissionDenied, or InvalidRequest when the request made no archive or the archive may not be given out.
        """
        with self.ledger.sessions.begin() as session:
            request, user = self.ledger.by_id(session, request_id), session.get_one(User, user_id)
            offer = _offer(session, request, user)
            extra = {
                "request_id": request.id,
                "kind": request.kind,
                "name_contains": request.name_contains,
                "origin": origin,
                "archive_key": offer.archive_key,
                "archive_bytes": offer.archive_bytes,
                "video_count": request.video_count,
            }
            log_archive(session, request.study_id, user.id, LINK_ACTION, extra)
            return offer

    def record_withdrawal(self, session: Session, mail: OutboxMail, reason: str) -> None:
        """Write into the study's log that a mail with a link was not sent, and why; for `outbox.deliver`.

        A recipient who may still see such videos is told so in a mail, with the command that asks again; one who may
        not is not told.
        """
        archive = mail.context.get("archive")
        if mail.study_id is None or archive is None:
            return
        extra = {
            "outcome": "withdrawn",
            "request_id": archive["request_id"],
            "archive_key": archive["key"],
            "error": reason,
        }
        log_archive(session, mail.study_id, mail.recipient_id, ARCHIVE_ACTION, extra)
        request, user = self.ledger.by_id(session, archive["request_id"]), session.get_one(User, mail.recipient_id)
        try:
            _offer(session, request, user)
        except PermissionDenied:
            return
        except InvalidRequest:
            pass  # what the mail tells
        claim = self.ledger.claim_of(session, request)
        told = {"reason": reason, "again": _asking_again(claim, user)}
        mail_archive(session, claim, "archive_withdrawn", "withdrawn", told)

    def is_wanted(self, archive_key: str, study_uuid: UUID | None, within: timedelta) -> bool:
        """Return whether a user asked for this archive so long ago or less, or a worker may have found it just now.

        A running request writes down which archive it found only when it ends, so each of the study's counts.
        """
        lately = and_(ArchiveRequest.archive_key == archive_key, ArchiveRequest.finished_at >= database_now(-within))
        of_the_study = ArchiveRequest.study_id.in_(select(Study.id).where(Study.uuid == study_uuid))
        running = and_(ArchiveRequest.status == RequestStatus.RUNNING, of_the_study)
        with self.ledger.sessions.begin() as session:
            return session.scalar(select(ArchiveRequest.id).where(or_(lately, running)).limit(1)) is not None

    def forget_contents(self, kept: Collection[str], ended_before: timedelta) -> int:
        """Forget what was in archives that are not `kept` any more, of requests that ended so long ago or earlier.

        Such an archive cannot be given out, and the table would grow for ever. Returns the number of requests.
        """
        ids = (
            select(ArchiveRequest.id, ArchiveRequest.archive_key)
            .where(
                ArchiveRequest.finished_at < database_now(-ended_before),
                select(ArchiveContent.video_id).where(ArchiveContent.archive_request_id == ArchiveRequest.id).exists(),
            )
            .order_by(ArchiveRequest.id)
        )
        with self.ledger.sessions.begin() as session:
            forgotten = [request_id for request_id, key in session.execute(ids) if key not in kept]
        for request_id in forgotten:  # each in a short transaction: SQLite has one writer at a time
            with self.ledger.sessions.begin() as session:
                session.execute(delete(ArchiveContent).where(ArchiveContent.archive_request_id == request_id))
        return len(forgotten)


def _asking_again(claim: ArchiveClaim, user: User) -> str:
    """Return the command that asks for the same archive, ready to be pasted into a shell."""
    words = ["lookit-ops", "videos", "zip", str(claim.study_uuid), "--as", user.email, "--kind", claim.kind.value]
    return shlex.join([*words, f"--name-contains={claim.name_contains}"] if claim.name_contains else words)


def _offer(session: Session, request: ArchiveRequest, user: User) -> ArchiveOffer:
    study, kind = session.get_one(Study, request.study_id), ArchiveKind(request.kind)
    if request.archive_key is None or request.archive_bytes is None or request.finished_at is None:
        raise InvalidRequest(f"archive request {request.id} is {request.status}: there is no archive to link to")
    require_basis(session, user, study, request)
    return ArchiveOffer(
        request_id=request.id,
        study_uuid=study.uuid,
        study_name=study.name,
        kind=kind,
        archive_key=request.archive_key,
        archive_bytes=request.archive_bytes,
        file_name=download_name(study.name, kind, request.finished_at.date()),
    )
