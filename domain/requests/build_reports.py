"""What is told of a build or a rollback: the one study log, the mails, and the commit that a study is pinned to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from domain.mail.audience import Audience, people
from domain.mail.outbox import enqueue
from domain.models import BuildRequest, Study, StudyLog, User
from domain.requests.build_claim import BuildClaim
from domain.studies.approval import APPROVED_STATES, has_changed, named_player
from domain.studies.log import record

_READERS = (Audience.STUDY_ADMINS, Audience.SITE_ADMINS)
"""Who is told how a build ended, besides the user who asked for it."""


def log_build(
    session: Session,
    claim: BuildClaim,
    request: BuildRequest,
    outcome: str,
    facts: dict[str, Any],
    extra: dict[str, Any],
) -> None:
    """Write the one study log of a build."""
    study = session.get_one(Study, claim.study_id)
    record(
        session,
        study,
        action=claim.act,
        user_id=request.requested_by_id,
        state_before=claim.state_before,
        state_after=study.state,
        extra={**_told(claim, request, outcome, facts), **extra},
        build_request_id=claim.request_id,
    )


def mail_build(session: Session, claim: BuildClaim, request: BuildRequest, outcome: str, facts: dict[str, Any]) -> None:
    """Tell the user who asked, and those who look after the study, how a build ended."""
    study, requester = session.get_one(Study, claim.study_id), session.get_one(User, request.requested_by_id)
    readers = people(session, study, *_READERS, also=(requester,))
    _mail(session, study, request, outcome, _told(claim, request, outcome, facts), readers)


def tell_cancelled_while_waiting(
    session: Session, request: BuildRequest, cancelled_by: str, user_id: int | None
) -> None:
    """Log a build that was cancelled while no worker had it.

    A mail goes to the user who asked, unless that was `user_id`: who cancels their own request has just been answered.
    """
    study = session.get_one(Study, request.study_id)
    when = " for another attempt" if request.attempt else "; nothing had begun"
    extra: dict[str, Any] = {
        "outcome": "cancelled",
        "kind": request.kind,
        "request_id": request.id,
        "cancelled_by": cancelled_by,
        "note": f"cancelled while it waited{when}",
    }
    if request.failed_attempts:
        extra["failed_attempts"] = request.failed_attempts
    record(
        session,
        study,
        action=request.kind,
        user_id=user_id,
        state_before=study.state,
        state_after=study.state,
        extra=extra,
        build_request_id=request.id,
    )
    requester = session.get_one(User, request.requested_by_id)
    told = [requester] if requester.is_active and requester.id != user_id else []
    _mail(session, study, request, "cancelled", extra, told)


def tell_replaced(session: Session, request: BuildRequest, newer_user: User) -> None:
    """Tell the user whose request gave way to another user's. A user who asks again is not told."""
    asker, study = session.get_one(User, request.requested_by_id), session.get_one(Study, request.study_id)
    if asker.id == newer_user.id or not asker.is_active:
        return
    enqueue(
        session,
        event=f"build_request:{request.id}:replaced",
        template="build_replaced",
        context={
            "study": {"name": study.name, "uuid": str(study.uuid)},
            "kind": request.kind,
            "replaced_by": newer_user.name,
            "attempt": request.attempt,
        },
        recipients=[asker],
        study=study,
    )


def made_from(session: Session, template: str) -> list[str]:
    """Return the names of the studies whose log tells of a bundle that was stamped from a template."""
    facts = StudyLog.extra["facts"]
    stamped = (facts["template"].as_string() == template) & (facts["way"].as_string() == "stamped")
    return list(session.scalars(select(Study.name).join(StudyLog).where(stamped).distinct().order_by(Study.name)))


def pin_sha(study: Study, claim: BuildClaim, request: BuildRequest) -> dict[str, Any]:
    """Name in the study the commit that was built, if the study named none. Returns what the log tells of it.

    Before an approval this changes what will be reviewed, so it raises the revision. After one, the approval of a
    branch's head becomes that of the commit, and all further deployments build the same.
    """
    if claim.player_sha or not request.player_sha or named_player(study).sha:
        return {}
    before, after = study.study_metadata, {**study.study_metadata, "last_known_player_sha": request.player_sha}
    study.study_metadata = after
    if claim.state_before in APPROVED_STATES:
        if study.approved_revision is not None and study.approved_sha is None:
            study.approved_sha = request.player_sha
        return {"pinned": request.player_sha}
    has_changed(study)
    return {"pinned": request.player_sha, "diff": {"study_metadata": [before, after]}}


def _told(claim: BuildClaim, request: BuildRequest, outcome: str, facts: dict[str, Any]) -> dict[str, Any]:
    told = {
        "outcome": outcome,
        "kind": claim.act,
        "request_id": claim.request_id,
        "restores": claim.restores_id,
        "run_id": request.run_id,
        "attempt": claim.attempt,
        "origin": request.origin,
        "repository": request.player_repo,
        "sha": request.player_sha,
        "sha_reason": request.sha_reason,
        **facts,
    }
    if request.warnings:
        told["warnings"] = request.warnings
    if request.failed_attempts:
        told["failed_attempts"] = request.failed_attempts
    return told


def _mail(
    session: Session,
    study: Study,
    request: BuildRequest,
    outcome: str,
    told: dict[str, Any],
    recipients: Sequence[User],
) -> None:
    requester = session.get_one(User, request.requested_by_id)
    enqueue(
        session,
        event=f"build_request:{request.id}:{outcome}",
        template=f"build_{outcome}",
        context={
            **told,
            "study": {"name": study.name, "uuid": str(study.uuid)},
            "requested_by": requester.name,
            "state_after": study.state,
            "deployed": study.deployed_at is not None,
        },
        recipients=recipients,
        study=study,
        audiences=_READERS,
        asked_by=requester,
    )
