"""The database's part of a rollback: who may, from where, and the lock that keeps builds and other rollbacks out.

A rollback is a row of `build_request` that names the request whose build it puts back. It begins as running: the
process that asks for it does it. Heartbeat, end, log and mails are those of any deployment (`builds.py`), and so is its
reconciling.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from domain.db import Sessions, can_be_id, database_now, storable
from domain.errors import InvalidRequest, StudyIsLocked, TransitionNotAllowed
from domain.models import BuildKind, BuildRequest, RequestStatus, Study, User
from domain.models.studies import LOCK_STATES
from domain.permissions.checks import has_permission
from domain.permissions.codes import Permission
from domain.requests.build_claim import MAY_START_FROM, BuildClaim, claim_of, lock_study, require_for, who_holds
from domain.requests.builds import one_build_each
from domain.studies.approval import not_covered

KIND = BuildKind.DEPLOYMENT
"""Permissions, states and lock of a rollback are a deployment's: it changes what families meet."""


def begin_rollback(
    sessions: Sessions,
    study_id: int,
    user_id: int,
    restores_id: int,
    run_id: str,
    lease: timedelta,
    *,
    origin: str,
    comment: str = "",
) -> BuildClaim:
    """Lock the study for putting back what the earlier request built; all or nothing, in one transaction.

    What was deployed under an approval that no longer stands is put back only by a user who may approve the study, with
    a comment that says why. Raises PermissionDenied, TransitionNotAllowed, StudyIsLocked, or InvalidRequest if the
    study has no such request.
    """
    with sessions.begin() as session, one_build_each():
        study = session.get_one(Study, study_id, with_for_update=True, populate_existing=True)
        user = session.get_one(User, user_id)
        require_for(session, user, study, KIND)
        earlier = session.get(BuildRequest, restores_id) if can_be_id(restores_id) else None
        if earlier is None or (earlier.study_id, earlier.kind) != (study.id, KIND):
            raise InvalidRequest(
                f"the study {study.name!r} has no deployment of request {restores_id};"
                " `lookit-ops build deployments` lists what can be restored"
            )
        override = _override(session, study, user, earlier, comment.strip())
        if not lock_study(session, study, KIND):
            session.refresh(study)
            if study.state in LOCK_STATES:
                raise StudyIsLocked(who_holds(session, study))
            raise TransitionNotAllowed(
                f"the study {study.name!r} is {study.state}; a rollback may start from"
                f" {', '.join(MAY_START_FROM[KIND])} only, since it changes what families meet"
            )
        running = (
            insert(BuildRequest)
            .values(
                study_id=study.id,
                requested_by_id=user.id,
                kind=KIND.value,
                status=RequestStatus.RUNNING.value,
                origin=origin,
                restores_id=earlier.id,
                run_id=run_id,
                attempt=1,
                claimed_at=database_now(),
                lease_expires_at=database_now(lease),
                fencing_token=study.fencing_token,
                state_before=study.state_before_build,
                player_repo=earlier.player_repo,
                player_sha=earlier.player_sha,
                sha_reason=f"This is what build request {earlier.id} had built.{override}",
            )
            .returning(BuildRequest)
        )
        return claim_of(session, session.scalars(running).one())


def _override(session: Session, study: Study, user: User, earlier: BuildRequest, comment: str) -> str:
    """Return what the log tells of an override; nothing where the approval of the earlier deployment stands.

    Raises:
        TransitionNotAllowed: the approval does not stand, and the user may not approve, or gives no comment.
    """
    reason = not_covered(session, study, [earlier]).get(earlier.id)
    if reason is None:
        return ""
    if not has_permission(session, user, Permission.APPROVE_STUDY, study):
        raise TransitionNotAllowed(
            f"the deployment of request {earlier.id} may not be put back: {reason}. Have the study approved with that"
            f" commit, or ask a user with {Permission.APPROVE_STUDY.value} to put it back"
        )
    if not comment:
        raise TransitionNotAllowed(
            f"the deployment of request {earlier.id} is no longer approved: {reason}. You may put it back all the same:"
            " say why with --comment"
        )
    return f" Its approval no longer stands ({reason}); {user.name} put it back all the same: {storable(comment)}"


def approvals_of(sessions: Sessions, study_id: int, request_ids: Sequence[int]) -> dict[int, str]:
    """Return why deployments of these requests may not be put back, by the request's id; none that may."""
    with sessions.begin() as session:
        query = select(BuildRequest).where(BuildRequest.study_id == study_id, BuildRequest.id.in_(request_ids))
        return not_covered(session, session.get_one(Study, study_id), session.scalars(query).all())
