"""What a build or a rollback holds: its claim, the player that it builds, and the lock on its study.

The lock is compare-and-set on the study's row, within the caller's transaction: the state becomes a lock state, the
state to return to is remembered, and the fencing token is raised.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, case, select, update
from sqlalchemy.orm import Session

from domain.db import FRESH, can_be_id, database_now
from domain.errors import LeaseLost, TransitionNotAllowed
from domain.models import BuildKind, BuildRequest, RequestStatus, State, Study, User
from domain.models.studies import WORKFLOW_STATES
from domain.permissions.checks import require_permission
from domain.permissions.codes import Permission
from domain.requests.claims import Claim
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildClaim(Claim):
    """A running build or rollback in the hands of one worker."""

    kind: BuildKind
    state_before: str
    player_repo_url: str | None
    player_sha: str | None
    taken_over: int = 0
    """How often it was taken over from a worker that died; only the process that took it over last holds it."""
    restores_id: int | None = None
    """Of a rollback: the request that built what it puts back."""

    @property
    def act(self) -> str:
        """Return what people call this: preview, deployment or rollback."""
        return self.kind.value if self.restores_id is None else "rollback"

    @property
    def page_owner(self) -> str:
        """Return the request that the page names: a rollback puts back the page of the build."""
        return str(self.restores_id or self.request_id)


def player_of(study: Study, kind: BuildKind) -> Player:
    """Return what this kind of build builds: a deployment what was approved, a preview what the study names now."""
    return approved_player(study) if kind is BuildKind.DEPLOYMENT else named_player(study)


def claim_of(session: Session, request: BuildRequest) -> BuildClaim:
    """Return the claim on a running request. Raises LeaseLost if it was never claimed."""
    if request.fencing_token is None or request.state_before is None:
        raise LeaseLost(f"build request {request.id} is not claimed")
    return described(session, request, request.fencing_token, request.state_before)


def described(session: Session, request: BuildRequest, fencing_token: int, state_before: str) -> BuildClaim:
    """Return the request as a claim tells of it."""
    study, user = session.get_one(Study, request.study_id), session.get_one(User, request.requested_by_id)
    player = player_of(study, BuildKind(request.kind))
    return BuildClaim(
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


def _claimable(kind: BuildKind) -> ColumnElement[bool]:
    """The condition of compare-and-set on the study: it stands where this kind of build may start."""
    return Study.state.in_(MAY_START_FROM[kind])


def lock_study(session: Session, study: Study, kind: BuildKind) -> bool:
    """Put the study into the lock state and raise its fencing token. Returns whether it could be locked."""
    # SET reads the row as it was before: state_before_build gets the state that this UPDATE replaces.
    lock = (
        update(Study)
        .where(Study.id == study.id, _claimable(kind))
        .values(state_before_build=Study.state, state=LOCK_STATE[kind].value, fencing_token=Study.fencing_token + 1)
        .returning(Study)
    )
    return session.scalar(lock, execution_options=FRESH) is not None


def unlock_study(session: Session, study_id: int, kind: BuildKind, fencing_token: int, state_after: str) -> bool:
    """Put the study into this state, if the claim with this token holds it. Returns whether it does."""
    unlock = (
        update(Study)
        .where(Study.id == study_id, Study.fencing_token == fencing_token, Study.state == LOCK_STATE[kind])
        .values(
            state=state_after,
            state_before_build=None,
            state_changed_at=case(
                (Study.state_before_build == state_after, Study.state_changed_at), else_=database_now()
            ),
        )
        .returning(Study)
    )
    return session.scalar(unlock, execution_options=FRESH) is not None


def hold_study_of(session: Session, request_id: int) -> None:
    """Hold the row of the request's study: study first, as in every act, so that no two wait for each other."""
    if can_be_id(request_id):
        study = select(Study).join(BuildRequest, BuildRequest.study_id == Study.id).where(BuildRequest.id == request_id)
        session.scalar(study.with_for_update(of=Study).execution_options(populate_existing=True))


def require_for(session: Session, user: User, study: Study, kind: BuildKind) -> None:
    """Raise PermissionDenied unless the user holds all that this kind of build asks for."""
    for permission in PERMISSIONS[kind]:
        require_permission(session, user, permission, study)


def not_from(study: Study, kind: BuildKind, state: str) -> TransitionNotAllowed:
    """Return the error for a study that stands where this kind of build may not start."""
    starts = ", ".join(MAY_START_FROM[kind])
    advice = "submit it and have it approved first" if kind is BuildKind.DEPLOYMENT else "it can no longer be built"
    return TransitionNotAllowed(f"the study {study.name!r} is {state}; a {kind} may start from {starts} only: {advice}")


def who_holds(session: Session, study: Study) -> str:
    """Return which build holds a locked study, and what to do, in a sentence."""
    holder = session.scalar(
        select(BuildRequest).where(BuildRequest.study_id == study.id, BuildRequest.status == RequestStatus.RUNNING)
    )
    by = f" by build request {holder.id} (run {holder.run_id})" if holder else ""
    return f"the study {study.name!r} is {study.state}{by}: wait until that build has ended, or cancel it"
