"""One rollback from its claim to its end, in the process that asks for it: it takes seconds, so no run of Dagster.

Whatever happens after the claim, the request is ended once: here, or by the reconciler, which reads the page as it does
for any deployment.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

from domain.builds.ledger import Claim, require_for
from domain.builds.rollback import KIND, begin_rollback
from domain.errors import LeaseLost
from domain.models import Study, User
from ember_build.errors import BuildCancelled
from lookit_ops.deployments import folder_of, live_deployment
from lookit_ops.failures import exception_for_log, failure_of
from lookit_ops.platform import Platform
from lookit_ops.reconcile import roll_forward
from lookit_ops.rollback import NotRestorable, choose_whole, rollback
from lookit_ops.storage.experiments import NoAnswer

logger = logging.getLogger(__name__)

STEP = "rollback"


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A rollback that has ended well."""

    request_id: int
    """Of the rollback."""
    restores_id: int
    """Of the build that is live again."""
    state: str
    """The study's, the same as before."""


def roll_back(platform: Platform, study_id: int, user_id: int, to: int | None, *, origin: str) -> RolledBack:
    """Put back what the request `to` built, or the build before the live one, and record it.

    Raises PermissionDenied, TransitionNotAllowed, StudyIsLocked, InvalidRequest and NotRestorable before anything has
    changed; StorageError, LeaseLost and BuildCancelled when it failed on the way, and the study is as before; NoAnswer
    when nobody knows, and the study stays locked until the reconciler has found out.
    """
    with platform.sessions.begin() as session:
        study = session.get_one(Study, study_id)
        require_for(session, session.get_one(User, user_id), study, KIND)
        folder = folder_of(KIND, study.uuid)
    target = choose_whole(platform.bucket, folder, None if to is None else str(to)).manifest.request_id
    if not target.isdecimal():
        raise NotRestorable(f"the deployment of request {target!r} in {folder} is not one of this platform's")
    claim = begin_rollback(
        platform.sessions,
        study_id,
        user_id,
        int(target),
        f"rollback in process {os.getpid()} on {socket.gethostname()}"[:64],
        platform.settings.lease_duration,
        origin=origin,
    )
    logger.info("claimed rollback %s: %s (%s) to request %s", claim.request_id, claim.study_name, folder, target)
    try:
        state = platform.ledger.finish(claim, {"facts": _restore(platform, claim, folder)})
    except BaseException as error:
        if not _end(platform, claim, error):
            raise
        state = claim.state_before
    return RolledBack(claim.request_id, int(target), state)


def _restore(platform: Platform, claim: Claim, folder: str) -> dict[str, Any]:
    """The bucket's part, and what the log tells of it."""

    def may_go_on() -> None:
        if platform.ledger.heartbeat(claim, platform.settings.lease_duration).cancel_requested:
            raise BuildCancelled("somebody asked for this rollback to be cancelled")

    live = live_deployment(platform.bucket, folder)
    done = rollback(
        platform.bucket,
        folder,
        request_id=claim.page_owner,
        fencing_token=claim.fencing_token,
        seen_generation=live.generation if live else 0,
        before_commit=may_go_on,
    )
    return {
        "bucket": platform.bucket.name,
        "folder": folder,
        "files": done.file_count,
        "bytes": done.size_bytes,
        "replaced request": done.replaced_request_id,
    }


def _end(platform: Platform, claim: Claim, error: BaseException) -> bool:
    """End the request after an error. True if the earlier page is live all the same: then the rollback counts."""
    if isinstance(error, NoAnswer):
        logger.warning(
            "rollback %s stays open, and the study locked, until its lease has run out and the bucket can be asked",
            claim.request_id,
        )
        return False
    extra = {"exception": {name: platform.redact(text) for name, text in exception_for_log(error).items()}}
    try:
        if roll_forward(platform, claim, extra):
            return True
        if isinstance(error, BuildCancelled):
            platform.ledger.cancelled(claim, platform.ledger.canceller(claim) or "an operator", extra)
        else:
            platform.ledger.fail(claim, failure_of(STEP, error), extra)
    except LeaseLost as lost:
        logger.warning("%s", lost)
    except Exception:  # database or bucket are away: the reconciler ends the request when its lease has run out
        logger.exception("rollback %s cannot be ended now", claim.request_id)
    return False
