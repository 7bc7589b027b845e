"""The archive ledger: request, claim, heartbeat, finish, fail, retry, cancel, expire, and who may have the link.

Like the build ledger, but that nothing locks a study: archives are named by their contents, so two that are made at
once do no harm. A claim is compare-and-set on the request alone, which counts its own fencing token. The platform's
faults put a request back into the queue until it has had all its attempts; whatever ends a claimed request for good
writes one study log and one mail, to the person who asked, in the same transaction; of one whose place a newer request
takes, the log alone, since the same person has just asked again. A late one: LeaseLost.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from domain.db import Sessions, can_be_id, database_now, is_violated, storable
from domain.errors import DomainError, InvalidRequest, LeaseLost, PermissionDenied
from domain.mail.outbox import MailWithdrawn, enqueue
from domain.models import ArchiveContent, ArchiveKind, ArchiveRequest, OutboxMail, RequestStatus, Study, User
from domain.models.requests import ONE_WAITING_ARCHIVE
from domain.permissions.checks import require_permission
from domain.permissions.codes import Permission
from domain.requests.queue import (
    WORKER_DIED,
    Beat,
    Failure,
    Retry,
    awaits,
    cancel_submission,
    put_back,
    require_room,
    waiting_again,
    why_not_waiting,
)
from domain.studies.log import record
from domain.videos.archive_names import download_name
from domain.videos.selection import Basis, Source, require_basis, require_videos

REFUSALS = (InvalidRequest, PermissionDenied)
"""Errors that end a request before its claim, with neither log nor mail."""

NAMED_IN_A_MAIL = 20
NAMED_IN_A_LOG = 100
"""How many missing videos are named; the manifest names them all."""

ARCHIVE_ACTION, LINK_ACTION = "video_archive", "video_link"
"""The actions of the study logs that record a download that was asked for."""


@dataclass(frozen=True, slots=True)
class ArchiveClaim:
    """A running request in the hands of one worker; `fencing_token` proves it."""

    request_id: int
    study_id: int
    study_uuid: UUID
    study_name: str
    kind: ArchiveKind
    name_contains: str
    requested_by_id: int
    requested_by: str
    fencing_token: int
    attempt: int


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
        """How many videos are in it."""
        return len(self.basis.videos)


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
class ArchiveLedger:
    """The ledger over one database. Each method is one short transaction of its own.

    `retry_by` says how often an archive that fails by the platform's fault is tried.
    """

    sessions: Sessions
    retry_by: Retry = field(default_factory=Retry)

    # -- asking ---------------------------------------------------------------------------------------------------

    def request(
        self, study_id: int, user_id: int, kind: ArchiveKind, name_contains: str = "", *, origin: str = ""
    ) -> int:
        """Ask for an archive; returns the request's id. It takes the place of one for the same that still waits.

        Raises PermissionDenied or InvalidRequest when there is nothing that this person may download.
        """
        with self.sessions.begin() as session:
            return _ask(session, study_id, user_id, kind, name_contains, origin).id

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
        with self.sessions.begin() as session:
            if at_once is not None:
                require_room(session, ArchiveRequest, at_once)
            request = _ask(session, study_id, user_id, kind, name_contains, origin)
            return _take(session, request.id, run_id, lease, None)

    # -- working --------------------------------------------------------------------------------------------------

    def claim(
        self,
        request_id: int,
        run_id: str,
        lease: timedelta,
        *,
        at_once: int | None = None,
        submission: int | None = None,
    ) -> ArchiveClaim:
        """Take a waiting request for the run `run_id` and hold it for `lease`, or longer with heartbeats.

        `submission` as in `BuildLedger.claim`.

        Raises LeaseLost when it no longer waits, QueueIsFull when `at_once` archives are being made (it goes on
        waiting), and the errors of REFUSALS when this request can never run: then it has ended as failed, with that
        message.
        """
        with self.sessions.begin() as session:
            if at_once is not None:
                require_room(session, ArchiveRequest, at_once)
            request = _request(session, request_id)
            study, user = session.get_one(Study, request.study_id), session.get_one(User, request.requested_by_id)
            if request.status != RequestStatus.QUEUED:
                raise _not_waiting(request)
            try:
                require_videos(session, user, study, ArchiveKind(request.kind), request.name_contains)
            except REFUSALS as refusal:
                _refuse(session, request_id, refusal.code, str(refusal))
                refused: DomainError = refusal
            else:
                return _take(session, request_id, run_id, lease, submission)
        raise refused

    def refuse(self, request_id: int, code: str, message: str) -> None:
        """End a waiting request that cannot run; with a log and a mail only if a worker had it before."""
        with self.sessions.begin() as session:
            _refuse(session, request_id, code, message)

    def heartbeat(self, claim: ArchiveClaim, lease: timedelta) -> Beat:
        """Prolong the lease from now. Raises LeaseLost when somebody else ended the request."""
        beat = (
            update(ArchiveRequest)
            .where(*_is_held(claim))
            .values(lease_expires_at=database_now(lease))
            .returning(ArchiveRequest.cancel_requested_at)
        )
        with self.sessions.begin() as session:
            row = session.execute(beat).one_or_none()
        if row is None:
            raise _lost(claim)
        return Beat(cancel_requested=row[0] is not None)

    # -- ending ---------------------------------------------------------------------------------------------------

    def finish(self, claim: ArchiveClaim, facts: ArchiveFacts, extra: dict[str, Any]) -> None:
        """The archive is in the bucket, whole. Raises LeaseLost.

        The mail holds no link: the link is made, and the permission asked again, when the mail is delivered.
        """
        values = {
            "archive_key": facts.archive_key,
            "archive_bytes": facts.archive_bytes,
            "video_count": facts.video_count,
            "missing_count": len(facts.missing),
            "excluded_count": facts.without_permission + facts.without_consent,
            "holds_families": Source.FAMILIES in facts.basis.sources,
            "holds_previews": Source.PREVIEWS in facts.basis.sources,
            "error_code": None,
        }
        what = {
            "archive_key": facts.archive_key,
            "archive_bytes": facts.archive_bytes,
            "video_count": facts.video_count,
            "missing_count": len(facts.missing),
            "without_permission": facts.without_permission,
            "without_consent": facts.without_consent,
            "was_there": facts.was_there,
        }
        with self.sessions.begin() as session:
            request = _close(session, claim, RequestStatus.SUCCEEDED, values)
            _note_contents(session, claim.request_id, facts.basis)
            _log(
                session, claim, request, "succeeded", {**what, "missing": _named(facts.missing, NAMED_IN_A_LOG)}, extra
            )
            archive = {"request_id": claim.request_id, "key": facts.archive_key, "requester_id": claim.requested_by_id}
            told = {**what, "missing": _named(facts.missing, NAMED_IN_A_MAIL), "archive": archive}
            _tell(session, claim, "archive_ready", "succeeded", told)

    def fail(self, claim: ArchiveClaim, failure: Failure, extra: dict[str, Any]) -> None:
        """The archive failed for good. Raises LeaseLost."""
        with self.sessions.begin() as session:
            _fail(session, claim, failure, extra)

    def retry(self, claim: ArchiveClaim, failure: Failure, extra: dict[str, Any]) -> RequestStatus:
        """The platform failed: back into the queue, or the end if it was the last attempt or somebody cancelled.

        Returns the status that the request has now. Raises LeaseLost.
        """
        with self.sessions.begin() as session:
            return _give_back(session, claim, failure, extra, self.retry_by)

    def expire(self, claim: ArchiveClaim, extra: dict[str, Any]) -> RequestStatus:
        """The worker stopped answering and its lease has ended: as `retry`.

        Raises LeaseLost when the request has ended by itself or the lease was prolonged.
        """
        with self.sessions.begin() as session:
            return _give_back(
                session, claim, WORKER_DIED, extra, self.retry_by, ArchiveRequest.lease_expires_at < database_now()
            )

    def cancelled(self, claim: ArchiveClaim, cancelled_by: str, extra: dict[str, Any]) -> None:
        """The worker has stopped on somebody's wish. Raises LeaseLost."""
        with self.sessions.begin() as session:
            _cancelled(session, claim, cancelled_by, extra)

    def note_wish(self, claim: ArchiveClaim) -> None:
        """Remember that this is to be cancelled, whoever ends it and whenever: then it is not tried again."""
        wanted = update(ArchiveRequest).where(*_is_held(claim), ArchiveRequest.cancel_requested_at.is_(None))
        with self.sessions.begin() as session:
            session.execute(wanted.values(cancel_requested_at=database_now()))

    def cancel(self, request_id: int, user_id: int) -> RequestStatus:
        """Cancel a request: at once while it waits; a running one is told to stop at its next heartbeat.

        Whoever asked for it may, and who holds `studies.change_study`. Returns the status that the request has now.
        Raises PermissionDenied, or InvalidRequest if it has ended.
        """
        with self.sessions.begin() as session:
            request, user = _request(session, request_id), session.get_one(User, user_id)
            study = session.get_one(Study, request.study_id)
            if request.requested_by_id != user.id or not user.is_active:
                require_permission(session, user, Permission.CHANGE_STUDY, study)
            wish = {"cancelled_by_id": user.id, "cancel_requested_at": database_now()}
            ended = {"status": RequestStatus.CANCELLED, "finished_at": database_now(), "error_code": "cancelled"}
            is_request = ArchiveRequest.id == request_id
            waiting = update(ArchiveRequest).where(is_request, ArchiveRequest.status == RequestStatus.QUEUED)
            running = update(ArchiveRequest).where(is_request, ArchiveRequest.status == RequestStatus.RUNNING)
            if session.scalar(waiting.values(wish | ended).returning(ArchiveRequest.id)):
                session.refresh(request)
                _cancelled_while_waiting(session, _claim_of(session, request), request, user)
                return RequestStatus.CANCELLED
            if session.scalar(running.values(wish).returning(ArchiveRequest.id)):
                return RequestStatus.RUNNING
            session.refresh(request)
            raise InvalidRequest(f"archive request {request_id} has already ended: it is {request.status}")

    # -- before the claim -----------------------------------------------------------------------------------------

    def cancel_submitted(self, request_id: int, submission: int, cancelled_by: str) -> bool:
        """The run that was to claim this request was cancelled: so is the request. False if it no longer waits."""
        with self.sessions.begin() as session:
            if not cancel_submission(session, ArchiveRequest, request_id, submission):
                return False
            request = _request(session, request_id)
            claim, what = _claim_of(session, request), {"cancelled_by": cancelled_by}
            _log(session, claim, request, "cancelled", what, {"note": "cancelled while it waited"})
            _tell(session, claim, "archive_cancelled", "cancelled", what)
            return True

    def not_started(self, request_id: int, submission: int, failure: Failure, run_id: str) -> RequestStatus | None:
        """The run that was to claim this request ended before it could: another one is asked for later.

        After so many as there are attempts, the request has failed. Returns the status that it has now; None if it no
        longer waits for that run.
        """
        failed = failure.told(run_id)
        with self.sessions.begin() as session:
            status = put_back(session, ArchiveRequest, request_id, submission, failed, self.retry_by)
            if status is RequestStatus.FAILED:
                request = session.get_one(ArchiveRequest, request_id, populate_existing=True)
                what = {"step": failed["step"], "error": failed["error"]}
                _log(session, _claim_of(session, request), request, "failed", what, {})
                _tell(session, _claim_of(session, request), "archive_failed", "failed", what)
            return status

    # -- looking --------------------------------------------------------------------------------------------------

    def held_by(self, run_id: str) -> ArchiveClaim | None:
        """The claim that a run holds, if it holds one."""
        query = select(ArchiveRequest).where(
            ArchiveRequest.run_id == run_id, ArchiveRequest.status == RequestStatus.RUNNING
        )
        with self.sessions.begin() as session:
            request = session.scalar(query)
            return _claim_of(session, request) if request else None

    def works_for(self, run_id: str, lately: timedelta) -> bool:
        """Whether the run holds a request, or ended one so long ago or less."""
        ended_lately = ArchiveRequest.finished_at >= database_now(-lately)
        query = select(ArchiveRequest.id).where(
            ArchiveRequest.run_id == run_id, (ArchiveRequest.status == RequestStatus.RUNNING) | ended_lately
        )
        with self.sessions.begin() as session:
            return session.scalar(query.limit(1)) is not None

    def run_of(self, claim: ArchiveClaim) -> str | None:
        """The run that works, or worked last, on this claim's request."""
        with self.sessions.begin() as session:
            return session.scalar(select(ArchiveRequest.run_id).where(ArchiveRequest.id == claim.request_id))

    def running(self, *, expired_only: bool) -> Sequence[ArchiveClaim]:
        """The claims of running requests, oldest first; on request only those whose lease has ended."""
        query = select(ArchiveRequest).where(ArchiveRequest.status == RequestStatus.RUNNING).order_by(ArchiveRequest.id)
        if expired_only:
            query = query.where(ArchiveRequest.lease_expires_at < database_now())
        with self.sessions.begin() as session:
            return [_claim_of(session, request) for request in session.scalars(query)]

    def canceller(self, claim: ArchiveClaim) -> str | None:
        """The name of the person who asked to cancel this request, if somebody did."""
        with self.sessions.begin() as session:
            return _canceller(session, claim)

    # -- the link -------------------------------------------------------------------------------------------------

    def offer_of_mail(self, mail: OutboxMail) -> ArchiveOffer:
        """The archive that a mail `archive_ready` tells of, if its recipient may still have it, now.

        Raises MailWithdrawn when the permission is gone, or something that the archive rests on.
        """
        with self.sessions.begin() as session:
            try:
                request = _request(session, mail.context["archive"]["request_id"])
                return _offer(session, request, session.get_one(User, mail.recipient_id))
            except REFUSALS as refusal:
                raise MailWithdrawn(str(refusal)) from refusal

    def link(self, request_id: int, user_id: int, *, origin: str = "") -> ArchiveOffer:
        """Offer the archive of a request once more, to anyone who may have it now; the study's log records it.

        Raises PermissionDenied, or InvalidRequest when the request made no archive or the archive may not be given out.
        """
        with self.sessions.begin() as session:
            request, user = _request(session, request_id), session.get_one(User, user_id)
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
            _record(session, request.study_id, user.id, LINK_ACTION, extra)
            return offer

    # -- forgetting -----------------------------------------------------------------------------------------------

    def is_wanted(self, archive_key: str, study_uuid: UUID | None, within: timedelta) -> bool:
        """Whether somebody asked for this archive so long ago or less, or a worker may have found it a moment ago.

        A running request writes down which archive it found only when it ends, so each of the study's counts.
        """
        lately = and_(ArchiveRequest.archive_key == archive_key, ArchiveRequest.finished_at >= database_now(-within))
        of_the_study = ArchiveRequest.study_id.in_(select(Study.id).where(Study.uuid == study_uuid))
        running = and_(ArchiveRequest.status == RequestStatus.RUNNING, of_the_study)
        with self.sessions.begin() as session:
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
        with self.sessions.begin() as session:
            forgotten = [request_id for request_id, key in session.execute(ids) if key not in kept]
        for request_id in forgotten:  # each in a short transaction: SQLite has one writer at a time
            with self.sessions.begin() as session:
                session.execute(delete(ArchiveContent).where(ArchiveContent.archive_request_id == request_id))
        return len(forgotten)


def record_withdrawal(session: Session, mail: OutboxMail, reason: str) -> None:
    """Write into the study's log that a mail with a link was not sent, and why; for `outbox.deliver`.

    Who may still see such videos is told, in a mail of its own, and how to ask again; who may not hears nothing.
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
    _record(session, mail.study_id, mail.recipient_id, ARCHIVE_ACTION, extra)
    request, user = _request(session, archive["request_id"]), session.get_one(User, mail.recipient_id)
    try:
        _offer(session, request, user)
    except PermissionDenied:
        return
    except InvalidRequest:
        pass  # what the mail tells
    claim = _claim_of(session, request)
    what = {"reason": reason, "again": _asking_again(claim, user)}
    _tell(session, claim, "archive_withdrawn", "withdrawn", what)


def _asking_again(claim: ArchiveClaim, user: User) -> str:
    """The command that asks for the same archive, as one can paste it."""
    words = ["lookit-ops", "videos", "zip", str(claim.study_uuid), "--as", user.email, "--kind", claim.kind.value]
    return shlex.join([*words, f"--name-contains={claim.name_contains}"] if claim.name_contains else words)


def _note_contents(session: Session, request_id: int, basis: Basis) -> None:
    """Write down what is in a request's archive, for those who ask for a link later."""
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


def _ask(
    session: Session, study_id: int, user_id: int, kind: ArchiveKind, name_contains: str, origin: str
) -> ArchiveRequest:
    study, user = session.get_one(Study, study_id), session.get_one(User, user_id)
    require_videos(session, user, study, kind, name_contains)
    replaced = (
        update(ArchiveRequest)
        .where(
            ArchiveRequest.study_id == study.id,
            ArchiveRequest.requested_by_id == user.id,
            ArchiveRequest.kind == kind,
            ArchiveRequest.name_contains == name_contains,
            ArchiveRequest.status == RequestStatus.QUEUED,
        )
        .values(status=RequestStatus.CANCELLED, finished_at=database_now(), error_code="replaced")
        .returning(ArchiveRequest.id)
        .execution_options(synchronize_session=False)
    )
    _log_replaced(session, session.scalars(replaced).all())
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


def _take(session: Session, request_id: int, run_id: str, lease: timedelta, submission: int | None) -> ArchiveClaim:
    start = (
        update(ArchiveRequest)
        .where(ArchiveRequest.id == request_id, awaits(ArchiveRequest, submission))
        .values(
            status=RequestStatus.RUNNING,
            run_id=run_id,
            attempt=ArchiveRequest.attempt + 1,
            fencing_token=func.coalesce(ArchiveRequest.fencing_token, 0) + 1,
            claimed_at=database_now(),
            lease_expires_at=database_now(lease),
            submitted_at=None,
            error_code=None,
        )
        .returning(ArchiveRequest.id)
        .execution_options(synchronize_session=False)
    )
    taken = session.scalar(start)
    request = _request(session, request_id)
    session.refresh(request)
    if taken is None:
        raise _not_waiting(request)
    return _claim_of(session, request)


def _waiting() -> ColumnElement[bool]:
    """The condition of compare-and-set: nobody has taken it."""
    return ArchiveRequest.status == RequestStatus.QUEUED


def _not_waiting(request: ArchiveRequest) -> LeaseLost:
    """Not a refusal: whoever has the request decides what becomes of it."""
    return LeaseLost(f"archive request {request.id} {why_not_waiting(request)}; nothing is left to claim")


def _request(session: Session, request_id: int) -> ArchiveRequest:
    request = session.get(ArchiveRequest, request_id) if can_be_id(request_id) else None
    if request is None:
        raise InvalidRequest(f"there is no archive request {request_id}; `lookit-ops videos list` shows them")
    return request


def _refuse(session: Session, request_id: int, code: str, message: str) -> None:
    """End a waiting request that cannot run: in silence if no worker ever had it, else with its log and mail."""
    if not can_be_id(request_id):
        return
    refused = (
        update(ArchiveRequest)
        .where(ArchiveRequest.id == request_id, _waiting())
        .values(status=RequestStatus.FAILED, finished_at=database_now(), error_code=code, error=storable(message))
        .returning(ArchiveRequest.id)
        .execution_options(synchronize_session=False)
    )
    if session.scalar(refused) is not None:
        request = session.get_one(ArchiveRequest, request_id, populate_existing=True)
        if request.attempt:
            what = {"step": "claim", "error": request.error}
            _log(session, _claim_of(session, request), request, "failed", what, {})
            _tell(session, _claim_of(session, request), "archive_failed", "failed", what)


def _claim_of(session: Session, request: ArchiveRequest) -> ArchiveClaim:
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


def _is_held(claim: ArchiveClaim) -> tuple[ColumnElement[bool], ...]:
    return (
        ArchiveRequest.id == claim.request_id,
        ArchiveRequest.status == RequestStatus.RUNNING,
        ArchiveRequest.fencing_token == claim.fencing_token,
    )


def _lost(claim: ArchiveClaim) -> LeaseLost:
    return LeaseLost(
        f"archive request {claim.request_id} is no longer held with fencing token {claim.fencing_token}:"
        " it was ended by somebody else, and this worker changes nothing more"
    )


def _write(session: Session, claim: ArchiveClaim, values: dict[str, Any]) -> ArchiveRequest:
    """Write to the request that the claim holds, by compare-and-set. Raises LeaseLost."""
    written = (
        update(ArchiveRequest)
        .where(*_is_held(claim))
        .values(values)
        .returning(ArchiveRequest.id)
        .execution_options(synchronize_session=False)
    )
    if session.scalar(written) is None:
        raise _lost(claim)
    return session.get_one(ArchiveRequest, claim.request_id, populate_existing=True)


def _close(session: Session, claim: ArchiveClaim, status: RequestStatus, values: dict[str, Any]) -> ArchiveRequest:
    """The end of a request. Raises LeaseLost."""
    ended = {"status": status, "finished_at": database_now(), "lease_expires_at": None}
    return _write(session, claim, {**ended, **values})


def _fail(
    session: Session,
    claim: ArchiveClaim,
    failure: Failure,
    extra: dict[str, Any],
    more: dict[str, Any] | None = None,
) -> None:
    failure = replace(failure, message=storable(failure.message))
    values = {"error_code": failure.code, "error": failure.message, **(more or {})}
    request = _close(session, claim, RequestStatus.FAILED, values)
    what = {"step": failure.step, "error": failure.message}
    _log(session, claim, request, "failed", what, extra)
    _tell(session, claim, "archive_failed", "failed", what)


def _cancelled(
    session: Session,
    claim: ArchiveClaim,
    cancelled_by: str,
    extra: dict[str, Any],
    more: dict[str, Any] | None = None,
) -> None:
    values = {"error_code": "cancelled", **(more or {})}
    request = _close(session, claim, RequestStatus.CANCELLED, values)
    what = {"cancelled_by": cancelled_by}
    _log(session, claim, request, "cancelled", what, extra)
    _tell(session, claim, "archive_cancelled", "cancelled", what)


def _give_back(
    session: Session,
    claim: ArchiveClaim,
    failure: Failure,
    extra: dict[str, Any],
    retry_by: Retry,
    *also: ColumnElement[bool],
) -> RequestStatus:
    """Into the queue again, unless somebody cancelled, it was the last attempt, or a newer request waits instead."""
    request = session.scalar(select(ArchiveRequest).where(*_is_held(claim), *also).with_for_update())
    if request is None:
        raise _lost(claim)
    failed = {"failed_attempts": [*request.failed_attempts, failure.told(request.run_id, request.attempt)]}
    if request.cancel_requested_at is not None:
        _cancelled(session, claim, _canceller(session, claim) or "somebody", extra, failed)
        return RequestStatus.CANCELLED
    wait = retry_by.after(failure, request.failed_attempts)
    if wait is None:
        message = f"tried {request.attempt} times; the last time: {failure.message}"
        _fail(session, claim, replace(failure, message=message), extra, failed)
        return RequestStatus.FAILED
    try:
        with session.begin_nested():
            _write(session, claim, {**waiting_again(failure.code, wait), **failed})
    except IntegrityError as error:
        if not is_violated(error, ONE_WAITING_ARCHIVE):
            raise
        request = _close(session, claim, RequestStatus.CANCELLED, {"error_code": "replaced", **failed})
        note = {"note": "a newer request for the same waits, so this one was not tried again"}
        _log(session, claim, request, "replaced", {"error": storable(failure.message), **note}, extra)
        return RequestStatus.CANCELLED
    return RequestStatus.QUEUED


def _canceller(session: Session, claim: ArchiveClaim) -> str | None:
    asked = (
        select(User.name)
        .join(ArchiveRequest, ArchiveRequest.cancelled_by_id == User.id)
        .where(ArchiveRequest.id == claim.request_id, ArchiveRequest.cancel_requested_at.is_not(None))
    )
    return session.scalar(asked)


def _cancelled_while_waiting(session: Session, claim: ArchiveClaim, request: ArchiveRequest, user: User) -> None:
    """One log; a mail only if it was somebody else, since who cancels their own has just been answered."""
    what = {"cancelled_by": user.name}
    _log(session, claim, request, "cancelled", what, {"note": "cancelled while it waited"})
    if user.id != claim.requested_by_id:
        _tell(session, claim, "archive_cancelled", "cancelled", what)


def _log_replaced(session: Session, request_ids: Sequence[int]) -> None:
    """The logs of those that waited for another attempt when a newer request took their place."""
    for request_id in request_ids:
        request = session.get_one(ArchiveRequest, request_id, populate_existing=True)
        if request.attempt:
            note = {"note": "a newer request took its place while it waited for another attempt"}
            _log(session, _claim_of(session, request), request, "replaced", note, {})


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


def _named(missing: tuple[MissingVideo, ...], limit: int) -> list[dict[str, str]]:
    return [{"object_key": video.object_key, "reason": video.reason} for video in missing[:limit]]


def _log(
    session: Session,
    claim: ArchiveClaim,
    request: ArchiveRequest,
    outcome: str,
    what: dict[str, Any],
    extra: dict[str, Any],
) -> None:
    """The one log of an archive."""
    facts = {
        "outcome": outcome,
        "kind": claim.kind.value,
        "name_contains": claim.name_contains,
        "request_id": claim.request_id,
        "run_id": request.run_id,
        "attempt": claim.attempt,
        "origin": request.origin,
    }
    if request.failed_attempts:
        facts["failed_attempts"] = request.failed_attempts
    _record(session, claim.study_id, claim.requested_by_id, ARCHIVE_ACTION, {**facts, **what, **extra})


def _record(session: Session, study_id: int, user_id: int, action: str, extra: dict[str, Any]) -> None:
    """One log; an archive leaves the study's state alone."""
    study = session.get_one(Study, study_id)
    record(
        session,
        study,
        action=action,
        user_id=user_id,
        state_before=study.state,
        state_after=study.state,
        extra=extra,
    )


def _tell(session: Session, claim: ArchiveClaim, template: str, outcome: str, what: dict[str, Any]) -> None:
    """The one mail of an archive, to the person who asked, unless the account has been closed since."""
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
            **what,
        },
        recipients=[requester] if requester.is_active else [],
        study=session.get_one(Study, claim.study_id),
    )
