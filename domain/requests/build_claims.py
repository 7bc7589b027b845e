"""From the wish to the claim: who may ask, from which states, and how exactly one worker gets the request.

All within the caller's transaction. A claim is compare-and-set: the study's state becomes a lock state, the request
starts to run under a lease, and both remember a fencing token. The study comes first, so that no two wait for each
other.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from domain.db import can_be_id, database_now, is_violated, storable
from domain.errors import InvalidRequest, LeaseLost, StudyIsLocked, TransitionNotAllowed
from domain.mail.outbox import enqueue
from domain.models import BuildKind, BuildRequest, RequestStatus, State, Study, User
from domain.models.requests import ONE_RUNNING_BUILD, ONE_WAITING_BUILD
from domain.models.studies import LOCK_STATES, WORKFLOW_STATES
from domain.permissions.checks import require_permission
from domain.permissions.codes import Permission
from domain.requests.queue import awaits, why_not_waiting
from domain.studies.approval import Player, approved_player, named_player

LOCK_STATE = {BuildKind.PREVIEW: State.PREVIEWING, BuildKind.DEPLOYMENT: State.DEPLOYING}
MAY_START_FROM: dict[BuildKind, tuple[State, ...]] = {
    BuildKind.PREVIEW: tuple(state for state in WORKFLOW_STATES if state is not State.ARCHIVED),
    BuildKind.DEPLOYMENT: (State.APPROVED, State.ACTIVE, State.PAUSED),
}
PERMISSIONS: dict[BuildKind, tuple[Permission, ...]] = {
    BuildKind.PREVIEW: (Permission.CHANGE_STUDY,),
    BuildKind.DEPLOYMENT: (Permission.CHANGE_STUDY, Permission.CHANGE_STUDY_STATUS),
}


@dataclass(frozen=True, slots=True)
class Claim:
    """A running request in the hands of one worker; `fencing_token` proves it."""

    request_id: int
    study_id: int
    study_uuid: UUID
    study_name: str
    kind: BuildKind
    requested_by: str
    fencing_token: int
    attempt: int
    state_before: str
    player_repo_url: str | None
    player_sha: str | None
    taken_over: int = 0
    """How often it was taken over from a worker that died; only who took it over last holds it."""
    restores_id: int | None = None
    """Of a rollback: the request that built what it puts back."""

    @property
    def act(self) -> str:
        """What people call this: preview, deployment or rollback."""
        return self.kind.value if self.restores_id is None else "rollback"

    @property
    def page_owner(self) -> str:
        """The request that the page names: a rollback puts back the page of the build."""
        return str(self.restores_id or self.request_id)


@contextmanager
def one_build_each() -> Generator[None]:
    """Two who claim at the same moment: the second's violation of the unique index, in words."""
    try:
        yield
    except IntegrityError as error:
        if is_violated(error, ONE_RUNNING_BUILD):
            raise StudyIsLocked(
                "another build of the same study has just begun: wait until it has ended, or cancel it"
            ) from error
        raise


def ask(
    session: Session, study_id: int, user_id: int, kind: BuildKind, origin: str
) -> tuple[BuildRequest, Sequence[int]]:
    """A new request, and the ids of those whose place it took.

    Raises PermissionDenied, TransitionNotAllowed or StudyIsLocked.
    """
    study = session.get_one(Study, study_id, with_for_update=True, populate_existing=True)
    user = session.get_one(User, user_id)
    require_for(session, user, study, kind)
    state = study.state_before_build or study.state
    if state not in MAY_START_FROM[kind]:
        raise _forbidden(study, kind, state)
    replaced = _make_way(session, study, kind, user)
    request = BuildRequest(study_id=study.id, requested_by_id=user.id, kind=kind.value, origin=origin)
    session.add(request)
    try:
        session.flush()
    except IntegrityError as error:
        if is_violated(error, ONE_WAITING_BUILD):
            raise StudyIsLocked(
                f"somebody else has asked for a {kind} of {study.name!r} at the same moment; theirs is waiting"
            ) from error
        raise
    return request, replaced


def _make_way(session: Session, study: Study, kind: BuildKind, user: User) -> list[int]:
    """Cancel the request that waits, if one does; its person is told, unless they themselves ask again."""
    replaced = (
        update(BuildRequest)
        .where(
            BuildRequest.study_id == study.id,
            BuildRequest.kind == kind,
            BuildRequest.status == RequestStatus.QUEUED,
        )
        .values(status=RequestStatus.CANCELLED, finished_at=database_now(), error_code="replaced")
        .returning(BuildRequest.id, BuildRequest.requested_by_id, BuildRequest.attempt)
        .execution_options(synchronize_session=False)
    )
    rows = session.execute(replaced).all()
    for row in rows:
        tell_replaced(session, study, row.id, kind, row.requested_by_id, user, row.attempt)
    return [row.id for row in rows]


def tell_replaced(
    session: Session, study: Study, request_id: int, kind: BuildKind, asked_by_id: int, user: User, attempt: int
) -> None:
    """Tell whose request gave way to this user's, unless they asked again themselves. `attempt`: 0 if none began."""
    asker = session.get_one(User, asked_by_id)
    if asker.id == user.id or not asker.is_active:
        return
    enqueue(
        session,
        event=f"build_request:{request_id}:replaced",
        template="build_replaced",
        context={
            "study": {"name": study.name, "uuid": str(study.uuid)},
            "kind": kind.value,
            "replaced_by": user.name,
            "attempt": attempt,
        },
        recipients=[asker],
        study=study,
    )


def _claimable(kind: BuildKind) -> ColumnElement[bool]:
    """The condition of compare-and-set on the study: it stands where this kind of build may start."""
    return Study.state.in_(MAY_START_FROM[kind])


def take(session: Session, request_id: int, run_id: str, lease: timedelta, submission: int | None = None) -> Claim:
    """Claim a waiting request for this run. Raises StudyIsLocked, and what says that it can never run."""
    request = request_by_id(session, request_id)
    study = session.get_one(Study, request.study_id, with_for_update=True, populate_existing=True)
    user, kind = session.get_one(User, request.requested_by_id), BuildKind(request.kind)
    require_for(session, user, study, kind)
    locked = lock_study(session, study, kind)
    if locked is None:
        session.refresh(study)
        session.refresh(request)
        if request.status != RequestStatus.QUEUED:
            raise _not_waiting(request)
        if study.state in LOCK_STATES:
            raise StudyIsLocked(who_holds(session, study))
        raise _forbidden(study, kind, study.state)
    token, state_before = locked
    start = (
        update(BuildRequest)
        .where(BuildRequest.id == request_id, awaits(BuildRequest, submission))
        .values(
            status=RequestStatus.RUNNING,
            run_id=run_id,
            attempt=BuildRequest.attempt + 1,
            claimed_at=database_now(),
            lease_expires_at=database_now(lease),
            fencing_token=token,
            taken_over=0,
            state_before=state_before,
            submitted_at=None,
            error_code=None,
        )
        .returning(BuildRequest.id)
        .execution_options(synchronize_session=False)
    )
    is_taken = session.scalar(start) is not None
    session.refresh(request)
    if not is_taken:
        raise _not_waiting(request)
    session.refresh(study)
    return claim_of(session, request)


def lock_study(session: Session, study: Study, kind: BuildKind) -> tuple[int, str | None] | None:
    """Put the study into the lock state; the new fencing token and the state before, None where it cannot be locked."""
    # SET reads the row as it was before: state_before_build gets the state that this UPDATE replaces.
    lock = (
        update(Study)
        .where(Study.id == study.id, _claimable(kind))
        .values(state_before_build=Study.state, state=LOCK_STATE[kind].value, fencing_token=Study.fencing_token + 1)
        .returning(Study.fencing_token, Study.state_before_build)
        .execution_options(synchronize_session=False)
    )
    row = session.execute(lock).one_or_none()
    return None if row is None else (row[0], row[1])


def _not_waiting(request: BuildRequest) -> StudyIsLocked:
    """Not a refusal: whoever has the request decides what becomes of it."""
    return StudyIsLocked(f"build request {request.id} {why_not_waiting(request)}; nothing is left to claim")


def request_by_id(session: Session, request_id: int) -> BuildRequest:
    """The request of this number. Raises InvalidRequest."""
    request = session.get(BuildRequest, request_id) if can_be_id(request_id) else None
    if request is None:
        raise InvalidRequest(f"there is no build request {request_id}; `lookit-ops build list` shows them")
    return request


def hold_study_of(session: Session, request_id: int) -> Study | None:
    """Read the request's study and hold its row: study first, as in every act, so that no two wait for each other."""
    if not can_be_id(request_id):
        return None
    study = select(Study).join(BuildRequest, BuildRequest.study_id == Study.id).where(BuildRequest.id == request_id)
    return session.scalar(study.with_for_update(of=Study).execution_options(populate_existing=True))


def require_for(session: Session, user: User, study: Study, kind: BuildKind) -> None:
    """Raise PermissionDenied unless the user holds all that this kind of build asks for."""
    for permission in PERMISSIONS[kind]:
        require_permission(session, user, permission, study)


def _forbidden(study: Study, kind: BuildKind, state: str) -> TransitionNotAllowed:
    starts = ", ".join(MAY_START_FROM[kind])
    advice = "submit it and have it approved first" if kind is BuildKind.DEPLOYMENT else "it can no longer be built"
    return TransitionNotAllowed(f"the study {study.name!r} is {state}; a {kind} may start from {starts} only: {advice}")


def who_holds(session: Session, study: Study) -> str:
    """Which build holds a locked study, and what to do, in a sentence."""
    holder = session.scalar(
        select(BuildRequest).where(BuildRequest.study_id == study.id, BuildRequest.status == RequestStatus.RUNNING)
    )
    by = f" by build request {holder.id} (run {holder.run_id})" if holder else ""
    return f"the study {study.name!r} is {study.state}{by}: wait until that build has ended, or cancel it"


def end_waiting(session: Session, request_id: int, code: str, message: str) -> bool:
    """End a request that still waits as failed; False if it does not wait, or is none."""
    if not can_be_id(request_id):
        return False
    ended = (
        update(BuildRequest)
        .where(BuildRequest.id == request_id, BuildRequest.status == RequestStatus.QUEUED)
        .values(status=RequestStatus.FAILED, finished_at=database_now(), error_code=code, error=storable(message))
        .returning(BuildRequest.id)
        .execution_options(synchronize_session=False)
    )
    return session.scalar(ended) is not None


def player_of(study: Study, kind: BuildKind) -> Player:
    """Return what this kind of build builds: a deployment what was approved, a preview what the study names now."""
    return approved_player(study) if kind is BuildKind.DEPLOYMENT else named_player(study)


def claim_of(session: Session, request: BuildRequest) -> Claim:
    """The claim on a running request. Raises LeaseLost if it was never claimed."""
    if request.fencing_token is None or request.state_before is None:
        raise LeaseLost(f"build request {request.id} is not claimed")
    return described(session, request, request.fencing_token, request.state_before)


def described(session: Session, request: BuildRequest, fencing_token: int, state_before: str) -> Claim:
    """The request as a claim tells of it."""
    study, user = session.get_one(Study, request.study_id), session.get_one(User, request.requested_by_id)
    player = player_of(study, BuildKind(request.kind))
    return Claim(
        request_id=request.id,
        study_id=study.id,
        study_uuid=study.uuid,
        study_name=study.name,
        kind=BuildKind(request.kind),
        requested_by=user.name,
        fencing_token=fencing_token,
        attempt=request.attempt,
        state_before=state_before,
        player_repo_url=player.repository_url,
        player_sha=player.sha,
        restores_id=request.restores_id,
        taken_over=request.taken_over,
    )
