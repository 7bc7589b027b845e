"""Ends what a dead worker left open: forward if its `index.html` is live, back to the state before otherwise."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from domain.builds.ledger import Claim
from domain.errors import LeaseLost
from lookit_ops.platform import Platform
from lookit_ops.publish import finish_public_files, folder_of, live_deployment

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The ids of the requests that were ended, by how."""

    rolled_forward: tuple[int, ...]
    expired: tuple[int, ...]


def reconcile_builds(platform: Platform) -> Reconciled:
    """End every build whose lease has run out. A worker that comes back late finds its fencing token stale."""
    forward: list[int] = []
    expired: list[int] = []
    for claim in platform.ledger.running(expired_only=True):
        try:
            if roll_forward(platform, claim, {}):
                forward.append(claim.request_id)
            else:
                platform.ledger.expire(claim, {"note": "nothing of this build is live"})
                logger.warning("build request %s: its worker died, and nothing of it is live", claim.request_id)
                expired.append(claim.request_id)
        except LeaseLost:
            logger.info("build request %s ended by itself", claim.request_id)
    return Reconciled(tuple(forward), tuple(expired))


def roll_forward(platform: Platform, claim: Claim, extra: dict[str, Any]) -> bool:
    """Finish the build if the live `index.html` is this claim's; False, and nothing done, if it is not.

    Raises LeaseLost if somebody else ended the request, StorageError if the bucket cannot be read or written.
    """
    folder = folder_of(claim.kind, claim.study_uuid)
    live = live_deployment(platform.bucket, folder)
    if live is None or (live.request_id, live.fencing_token) != (str(claim.request_id), claim.fencing_token):
        return False
    finish_public_files(platform.bucket, live)
    note = "index.html was live when its worker stopped, so the build was finished for it"
    platform.ledger.finish(claim, {**extra, "note": note})
    logger.warning("build request %s: %s", claim.request_id, note)
    return True
