"""Archive requests: who may ask for a zip of a study's videos, and what its end tells.

Nothing locks a study: archives are named by their contents, so two that are made at once do no harm, and the request
counts its own fencing token. The life that they share with other requests is in `lifecycle.py`; `archive_links.py`
decides who may have the link.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from domain.db import is_violated
from domain.errors import InvalidRequest, LeaseLost, PermissionDenied
from domain.mail.outbox import enqueue
from domain.models import ArchiveContent, ArchiveKind, ArchiveRequest, RequestStatus, Study, User
from domain.models.requests import ONE_WAITING_ARCHIVE
from domain.requests.claims import Claim
from domain.requests.lifecycle import RequestLedger
from domain.studies.log import record
from domain.videos.selection import Basis, Source, require_videos

NAMED_IN_A_MAIL = 20
NAMED_IN_A_LOG = 100
"""How many missing videos are named; the manifest names them all."""

ARCHIVE_ACTION = "video_archive"
"""The action of the study logs that record an archive that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveClaim(Claim):
    """A running archive in the hands of one worker."""

    kind: ArchiveKind
    name_contains: str
    requested_by_id: int

    @property
    def act(self) -> str:
        """Return what people call this: an archive of all videos, or of those of consent."""
        return f"archive of {self.kind.value} videos"


@dataclass(frozen=True, slots=True)
class MissingVideo:
    """A video that should be in the archive and is not, and why."""

    object_key: str
    reason: str


@dataclass(frozen=True, slots=True)
class ArchiveFacts:
    """What came of a request. `was_there`: an archive of that name was found, and nothing was built.

    `without_permission` and `without_consent` come from the selection, `basis` from its videos that are included.
    """

    archive_key: str
    archive_bytes: int
    missing: tuple[MissingVideo, ...]
    without_permission: int
    without_consent: int
    basis: Basis
    was_there: bool

    @property
    def video_count(self) -> int:
        """Return how many videos are in it."""
        return len(self.basis.videos)


@dataclass(frozen=True)
class ArchiveLedger(RequestLedger[ArchiveRequest, ArchiveClaim]):
    """The archive requests of one database."""

    model = ArchiveRequest
    noun = "archive request"
    list_command = "lookit-ops videos list"
    one_waiting = ONE_WAITING_ARCHIVE
    refusals = (InvalidRequest, PermissionDenied)

    # -- asking ---------------------------------------------------------------------------------------------------

    def request(
        self, study_id: int, user_id: int, kind: ArchiveKind, name_contains: str = "", *, origin: str = ""
    ) -> int:
        """Ask for an archive and return the request's id. It takes the place of one for the same that still waits.

        Raises PermissionDenied or InvalidRequest when there is nothing that this person may download.
        """
        with self.sessions.begin() as session:
            return self._ask(session, study_id, user_id, kind, name_contains, origin).id

    def launch(
        self,
        study_id: int,
        user_id: int,
        kind: ArchiveKind,
        run_id: str,
        lease: timedelta,
        name_contains: str = "",
        *,
        origin: str = "",
        at_once: int | None = None,
    ) -> ArchiveClaim:
        """Ask and claim in one transaction, so that no other run takes the request.

        Raises what `request` raises, and QueueIsFull.
        """
        return self._launch(
            lambda session: self._ask(session, study_id, user_id, kind, name_contains, origin), run_id, lease, at_once
        )

    def _ask(
        self, session: Session, study_id: int, user_id: int, kind: ArchiveKind, name_contains: str, origin: str
    ) -> ArchiveRequest:
        study, user = session.get_one(Study, study_id), session.get_one(User, user_id)
        require_videos(session, user, study, kind, name_contains)
        self._replace_waiting(
            session,
            ArchiveRequest.study_id == study.id,
            ArchiveRequest.requested_by_id == user.id,
            ArchiveRequest.kind == kind,
            ArchiveRequest.name_contains == name_contains,
        )
        request = ArchiveRequest(
            study_id=study.id, requested_by_id=user.id, kind=kind.value, name_contains=name_contains, origin=origin
        )
        session.add(request)
        twice = f"{user.email} has asked for the same archive of {study.name!r} at the same moment; that request waits"
        try:
            session.flush()  # after it failed, nothing can be read from the rows any more
        except IntegrityError as error:
            if is_violated(error, ONE_WAITING_ARCHIVE):
                raise InvalidRequest(twice) from error
            raise
        return request

    # -- the claim ------------------------------------------------------------------------------------------------

    def _admit(self, session: Session, request: ArchiveRequest) -> dict[str, Any]:
        study, user = session.get_one(Study, request.study_id), session.get_one(User, request.requested_by_id)
        if request.status != RequestStatus.QUEUED:
            raise self._comes_late(session, request)
        require_videos(session, user, study, ArchiveKind(request.kind), request.name_contains)
        return {"fencing_token": func.coalesce(ArchiveRequest.fencing_token, 0) + 1}

    def _not_waiting(self, message: str) -> LeaseLost:
        return LeaseLost(message)

    def claim_of(self, session: Session, request: ArchiveRequest) -> ArchiveClaim:
        study, user = session.get_one(Study, request.study_id), session.get_one(User, request.requested_by_id)
        return ArchiveClaim(
            request_id=request.id,
            study_id=study.id,
            study_uuid=study.uuid,
            study_name=study.name,
            kind=ArchiveKind(request.kind),
            name_contains=request.name_contains,
            requested_by_id=user.id,
            requested_by=user.name,
            fencing_token=request.fencing_token or 0,
            attempt=request.attempt,
        )

    _unclaimed = claim_of

    # -- the end --------------------------------------------------------------------------------------------------

    def finish(self, claim: ArchiveClaim, facts: ArchiveFacts, extra: dict[str, Any]) -> None:
        """End the request well: its archive is in the bucket, whole. Raises LeaseLost.

        The mail holds no link: the link is made, and the permission asked again, when the mail is delivered.
        """
        counts = {
            "archive_key": facts.archive_key,
            "archive_bytes": facts.archive_bytes,
            "video_count": facts.video_count,
        }
        values = {
            **counts,
            "missing_count": len(facts.missing),
            "excluded_count": facts.without_permission + facts.without_consent,
            "holds_families": Source.FAMILIES in facts.basis.sources,
            "holds_previews": Source.PREVIEWS in facts.basis.sources,
            "error_code": None,
        }
        told = {
            **counts,
            "missing_count": len(facts.missing),
            "without_permission": facts.without_permission,
            "without_consent": facts.without_consent,
            "was_there": facts.was_there,
        }
        archive = {"request_id": claim.request_id, "key": facts.archive_key, "requester_id": claim.requested_by_id}
        with self.sessions.begin() as session:
            request = self._close(session, claim, RequestStatus.SUCCEEDED, values)
            _note_contents(session, claim.request_id, facts.basis)
            logged = {**told, "missing": _named(facts.missing, NAMED_IN_A_LOG)}
            self._record(session, claim, request, "succeeded", logged, extra)
            mailed = {**told, "missing": _named(facts.missing, NAMED_IN_A_MAIL), "archive": archive}
            mail_archive(session, claim, "archive_ready", "succeeded", mailed)

    def _record(
        self,
        session: Session,
        claim: ArchiveClaim,
        request: ArchiveRequest,
        outcome: str,
        facts: dict[str, Any],
        extra: dict[str, Any],
    ) -> None:
        told = {
            "outcome": outcome,
            "kind": claim.kind.value,
            "name_contains": claim.name_contains,
            "request_id": claim.request_id,
            "run_id": request.run_id,
            "attempt": claim.attempt,
            "origin": request.origin,
        }
        if request.failed_attempts:
            told["failed_attempts"] = request.failed_attempts
        log_archive(session, claim.study_id, claim.requested_by_id, ARCHIVE_ACTION, {**told, **facts, **extra})

    def _tell(
        self, session: Session, claim: ArchiveClaim, request: ArchiveRequest, outcome: str, facts: dict[str, Any]
    ) -> None:
        del request
        mail_archive(session, claim, f"archive_{outcome}", outcome, facts)

    def _tell_cancelled_while_waiting(
        self, session: Session, request: ArchiveRequest, cancelled_by: str, user_id: int | None
    ) -> None:
        claim, facts = self.claim_of(session, request), {"cancelled_by": cancelled_by}
        self._record(session, claim, request, "cancelled", facts, {"note": "cancelled while it waited"})
        if user_id != claim.requested_by_id:
            self._tell(session, claim, request, "cancelled", facts)


def log_archive(session: Session, study_id: int, user_id: int, action: str, extra: dict[str, Any]) -> None:
    """Write one study log; an archive leaves the study's state alone."""
    study = session.get_one(Study, study_id)
    state = study.state
    record(session, study, action=action, user_id=user_id, state_before=state, state_after=state, extra=extra)


def mail_archive(session: Session, claim: ArchiveClaim, template: str, outcome: str, facts: dict[str, Any]) -> None:
    """Tell the user who asked what became of the archive, unless the account has been closed since."""
    requester = session.get_one(User, claim.requested_by_id)
    enqueue(
        session,
        event=f"archive_request:{claim.request_id}:{outcome}",
        template=template,
        context={
            "outcome": outcome,
            "kind": claim.kind.value,
            "name_contains": " ".join(claim.name_contains.split()),
            "request_id": claim.request_id,
            "attempt": claim.attempt,
            "study": {"name": claim.study_name, "uuid": str(claim.study_uuid)},
            **facts,
        },
        recipients=[requester] if requester.is_active else [],
        study=session.get_one(Study, claim.study_id),
    )


def _note_contents(session: Session, request_id: int, basis: Basis) -> None:
    """Write down what is in a request's archive, for users who ask for a link later."""
    rows = [
        {
            "archive_request_id": request_id,
            "video_id": video.id,
            "response_id": video.response_id,
            "object_key": video.object_key,
        }
        for video in basis.videos
    ]
    if rows:
        session.execute(insert(ArchiveContent), rows)


def _named(missing: tuple[MissingVideo, ...], limit: int) -> list[dict[str, str]]:
    return [{"object_key": video.object_key, "reason": video.reason} for video in missing[:limit]]
