"""Build requests: who may ask for a build, the study that it locks, and what its end changes.

The life that they share with other requests is in `lifecycle.py`, the lock in `build_claim.py`, logs and mails in
`build_reports.py`. Rollbacks are rows of the same table (`rollbacks.py`), and end here.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from domain.db import database_now, is_violated, storable
from domain.errors import InvalidRequest, PermissionDenied, StudyIsLocked, TransitionNotAllowed
from domain.models import BuildKind, BuildRequest, RequestStatus, State, Study, User
from domain.models.requests import ONE_RUNNING_BUILD, ONE_WAITING_BUILD
from domain.models.studies import LOCK_STATES, PageState
from domain.requests import build_claim
from domain.requests.build_claim import (
    MAY_START_FROM,
    BuildClaim,
    described,
    hold_study_of,
    lock_study,
    not_from,
    player_of,
    require_for,
    unlock_study,
    who_holds,
)
from domain.requests.build_reports import (
    log_build,
    mail_build,
    pin_sha,
    tell_cancelled_while_waiting,
    tell_replaced,
)
from domain.requests.lifecycle import RequestLedger


@contextmanager
def one_build_each() -> Generator[None]:
    """Translate the violation of the unique index when two claim at the same moment. Raises StudyIsLocked."""
    try:
        yield
    except IntegrityError as error:
        if is_violated(error, ONE_RUNNING_BUILD):
            raise StudyIsLocked(
                "another build of the same study has just begun: wait until it has ended, or cancel it"
            ) from error
        raise


@dataclass(frozen=True)
class BuildLedger(RequestLedger[BuildRequest, BuildClaim]):
    """The builds and rollbacks of one database."""

    model = BuildRequest
    noun = "build request"
    list_command = "lookit-ops build list"
    one_waiting = ONE_WAITING_BUILD
    refusals = (InvalidRequest, PermissionDenied, TransitionNotAllowed)

    # -- asking ---------------------------------------------------------------------------------------------------

    def request(self, study_id: int, user_id: int, kind: BuildKind, *, origin: str = "") -> int:
        """Ask for a build and return the request's id. A newer request takes the place of one that still waits.

        Raises PermissionDenied, or TransitionNotAllowed where the study's state can never lead to this build.
        """
        with self.sessions.begin() as session:
            return self._ask(session, study_id, user_id, kind, origin).id

    def launch(
        self,
        study_id: int,
        user_id: int,
        kind: BuildKind,
        run_id: str,
        lease: timedelta,
        *,
        origin: str = "",
        at_once: int | None = None,
    ) -> BuildClaim:
        """Ask and claim in one transaction: the run that asks works at once, or nothing has changed.

        Raises what `request` raises, StudyIsLocked and QueueIsFull; then requests that wait go on waiting.
        """
        return self._launch(lambda session: self._ask(session, study_id, user_id, kind, origin), run_id, lease, at_once)

    def _ask(self, session: Session, study_id: int, user_id: int, kind: BuildKind, origin: str) -> BuildRequest:
        study = session.get_one(Study, study_id, with_for_update=True, populate_existing=True)
        user = session.get_one(User, user_id)
        require_for(session, user, study, kind)
        state = study.state_before_build or study.state
        if state not in MAY_START_FROM[kind]:
            raise not_from(study, kind, state)
        for replaced in self._replace_waiting(session, BuildRequest.study_id == study.id, BuildRequest.kind == kind):
            tell_replaced(session, replaced, user)
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
        return request

    # -- the claim ------------------------------------------------------------------------------------------------

    def _claiming(self) -> Any:
        return one_build_each()

    def _admit(self, session: Session, request: BuildRequest) -> dict[str, Any]:
        study = session.get_one(Study, request.study_id, with_for_update=True, populate_existing=True)
        user, kind = session.get_one(User, request.requested_by_id), BuildKind(request.kind)
        require_for(session, user, study, kind)
        if not lock_study(session, study, kind):
            session.refresh(study)
            session.refresh(request)
            if request.status != RequestStatus.QUEUED:
                raise self._comes_late(session, request)
            raise (
                StudyIsLocked(who_holds(session, study))
                if study.state in LOCK_STATES
                else not_from(study, kind, study.state)
            )
        return {"fencing_token": study.fencing_token, "state_before": study.state_before_build, "taken_over": 0}

    def _not_waiting(self, message: str) -> StudyIsLocked:
        return StudyIsLocked(message)

    def _hold(self, session: Session, request_id: int) -> None:
        hold_study_of(session, request_id)

    def _is_held(self, claim: BuildClaim) -> tuple[ColumnElement[bool], ...]:
        return (*super()._is_held(claim), BuildRequest.taken_over == claim.taken_over)

    def claim_of(self, session: Session, request: BuildRequest) -> BuildClaim:
        return build_claim.claim_of(session, request)

    def _unclaimed(self, session: Session, request: BuildRequest) -> BuildClaim:
        return described(session, request, 0, session.get_one(Study, request.study_id).state)

    def take_over(self, claim: BuildClaim, lease: timedelta, *, expired_only: bool) -> BuildClaim:
        """Take the claim from a worker that died or sleeps, for `lease`, in order to end it.

        From then on the earlier claim can neither be prolonged nor ended, by the worker or another reconciler; so the
        study is not claimed anew before this is done. Raises LeaseLost when the request has ended, was taken over, or,
        with `expired_only`, when its lease was prolonged.
        """
        expired = [BuildRequest.lease_expires_at < database_now()] if expired_only else []
        taken = (
            update(BuildRequest)
            .where(*self._is_held(claim), *expired)
            .values(taken_over=BuildRequest.taken_over + 1, lease_expires_at=database_now(lease))
            .returning(BuildRequest.taken_over)
        )
        with self.sessions.begin() as session:
            times = session.scalar(taken)
        if times is None:
            raise self._lost(claim)
        return replace(claim, taken_over=times)

    def note_commit(
        self, claim: BuildClaim, *, repository: str, sha: str, reason: str, warnings: Sequence[str] = ()
    ) -> None:
        """Remember what is being built and what is amiss with it, also if this worker dies. Raises LeaseLost."""
        values = {"player_repo": repository, "player_sha": sha, "sha_reason": reason}
        with self.sessions.begin() as session:
            self._write(session, claim, {**values, "warnings": [storable(warning) for warning in warnings]})

    # -- the end --------------------------------------------------------------------------------------------------

    def finish(self, claim: BuildClaim, extra: dict[str, Any]) -> str:
        """End the request well: a deployment makes the study active, all else leaves it as it was. Returns the state.

        A SHA is pinned in the study's metadata when the study named none: see `pin_sha`. Raises LeaseLost.
        """
        is_build = claim.restores_id is None
        is_deployment = claim.kind is BuildKind.DEPLOYMENT and is_build
        with self.sessions.begin() as session:
            after = State.ACTIVE.value if is_deployment else claim.state_before
            request = self._close(session, claim, RequestStatus.SUCCEEDED, {}, after)
            study = session.get_one(Study, claim.study_id)
            if is_deployment:
                study.deployed_at = request.finished_at
            if claim.kind is BuildKind.DEPLOYMENT:
                study.page_state = PageState.SERVED.value
            if is_build:
                extra = {**extra, **pin_sha(study, claim, request)}
            self._report(session, claim, request, "succeeded", {}, extra)
            return after

    def _release(self, session: Session, claim: BuildClaim, state_after: str | None) -> None:
        state = state_after or claim.state_before
        if not unlock_study(session, claim.study_id, claim.kind, claim.fencing_token, state):
            raise self._lost(claim)

    def _is_tried_again(self, claim: BuildClaim) -> bool:
        return claim.restores_id is None  # a user who rolls back waits for no queue

    def _record(
        self,
        session: Session,
        claim: BuildClaim,
        request: BuildRequest,
        outcome: str,
        facts: dict[str, Any],
        extra: dict[str, Any],
    ) -> None:
        log_build(session, claim, request, outcome, facts, extra)

    def _tell(
        self, session: Session, claim: BuildClaim, request: BuildRequest, outcome: str, facts: dict[str, Any]
    ) -> None:
        mail_build(session, claim, request, outcome, facts)

    def _tell_cancelled_while_waiting(
        self, session: Session, request: BuildRequest, cancelled_by: str, user_id: int | None
    ) -> None:
        tell_cancelled_while_waiting(session, request, cancelled_by, user_id)

    def _tell_replaced(self, session: Session, request: BuildRequest) -> None:
        newer = (
            select(User)
            .join(BuildRequest, BuildRequest.requested_by_id == User.id)
            .where(
                BuildRequest.study_id == request.study_id,
                BuildRequest.kind == request.kind,
                BuildRequest.status == RequestStatus.QUEUED,
            )
        )
        tell_replaced(session, request, session.scalars(newer).one())

    # -- looking --------------------------------------------------------------------------------------------------

    def is_building(self, kind: BuildKind, study_uuid: UUID) -> bool:
        """Return whether a build of this kind, or a rollback, runs: from its claim until it has an end."""
        running = (
            select(BuildRequest.id)
            .join(Study, Study.id == BuildRequest.study_id)
            .where(Study.uuid == study_uuid, BuildRequest.kind == kind, BuildRequest.status == RequestStatus.RUNNING)
            .limit(1)
        )
        with self.sessions.begin() as session:
            return session.scalar(running) is not None

    def player_repo_url(self, request_id: int) -> str | None:
        """Return the repository that the request would build, None for the default one. Raises InvalidRequest."""
        with self.sessions.begin() as session:
            request = self.by_id(session, request_id)
            return player_of(session.get_one(Study, request.study_id), BuildKind(request.kind)).repository_url
