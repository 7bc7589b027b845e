"""The claim on a build or a rollback, and the player that it builds."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from domain.errors import LeaseLost
from domain.models import BuildKind, BuildRequest, Study, User
from domain.requests.claims import Claim
from domain.studies.approval import Player, approved_player, named_player


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
