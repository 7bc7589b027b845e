"""Ends what a dead worker left open: forward if its `index.html` is live, back to the state before otherwise.

Dead may mean asleep: before a build is given up, the bucket is fenced, so that the sleeper's page can never go live.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from domain.errors import LeaseLost
from domain.requests.build_claims import Claim
from domain.requests.builds import BuildLedger
from domain.requests.queue import WORKER_DIED, Failure
from lookit_ops.deployments.commit_point import fence, finish_public_files
from lookit_ops.deployments.manifest import facts_of, folder_of, live_deployment
from lookit_ops.runs.in_use import clear_away_after
from lookit_ops.services import Services
from lookit_ops.storage.experiments import ExperimentBucket, NoSuchObject

logger = logging.getLogger(__name__)

TAKEN_FOR = timedelta(minutes=5)
"""How long one attempt to end a dead worker's build may take, before another reconciler may try."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The ids of the requests that were ended, by how."""

    rolled_forward: tuple[int, ...] = ()
    expired: tuple[int, ...] = ()
    """Back in the queue, or failed if that was the last attempt."""
    failed: tuple[int, ...] = ()
    """Still open: database or bucket failed, which the log tells of; the next time tries again."""
    runs: tuple[str, ...] = ()
    """The runs that had worked on the requests that were ended."""

    def __bool__(self) -> bool:
        """Whether there was anything to do."""
        return bool(self.rolled_forward or self.expired or self.failed)


def reconcile_builds(services: Services) -> Reconciled:
    """End every build whose lease has run out; one that cannot be ended now never stops the others."""
    forward: list[int] = []
    expired: list[int] = []
    failed: list[int] = []
    runs: list[str] = []
    ended: list[Claim] = []
    for claim in services.ledger.running(expired_only=True):
        try:
            run_id = services.ledger.run_of(claim)
            # Read some time ago: another reconciler may have ended it, and a new build of the study may have begun.
            with _taken_over(services, claim, expired_only=True) as held:
                is_live = _roll_forward_or_fence(services, held)
                if not is_live:
                    services.ledger.retry(held, WORKER_DIED, {"note": f"nothing of this {claim.act} is live"})
                logger.warning("build request %s: its worker died, and nothing of it is live", claim.request_id)
            (forward if is_live else expired).append(claim.request_id)
            runs += [run_id] if run_id else []
        except LeaseLost:
            logger.info("build request %s ended by itself", claim.request_id)
        except Exception:  # its trouble is not the others'
            logger.exception("build request %s, whose worker died, cannot be ended now", claim.request_id)
            failed.append(claim.request_id)
        else:
            ended.append(claim)
    if ended:  # not before all have their end: the engine, which it needs, may hang
        clear_away_after(services, ended)
    return Reconciled(tuple(forward), tuple(expired), tuple(failed), tuple(runs))


def end_build_of_run(
    services: Services, run_id: str, cancelled_by: str | None, failure: Failure = WORKER_DIED
) -> int | None:
    """End the build that a run held which has ended itself, without waiting for the lease to run out.

    The run was cancelled by a person, or (None) it failed so. Returns the id of the request, None if the run held none.
    Raises StorageError if the bucket cannot be asked; the reconciler then ends the build when its lease has run out.
    """
    claim = services.ledger.held_by(run_id)
    if claim is None:
        return None
    note = {"note": f"run {run_id} had ended, and nothing of this {claim.act} was live"}
    try:
        with _taken_over(services, claim, expired_only=False) as held:
            if cancelled_by is not None:  # remembered first: should the bucket be away now, it is not tried again later
                services.ledger.note_wish(held)
            if not _roll_forward_or_fence(services, held):
                if cancelled_by is None:
                    services.ledger.retry(held, failure, note)
                else:
                    services.ledger.cancelled(held, services.ledger.canceller(held) or cancelled_by, note)
    except LeaseLost:
        return None
    clear_away_after(services, [claim])
    return claim.request_id


@contextmanager
def _taken_over(services: Services, claim: Claim, *, expired_only: bool) -> Generator[Claim]:
    """Hold a dead worker's claim while it is ended; after a failure its lease has run out, so that others may try.

    Raises LeaseLost.
    """
    held = services.ledger.take_over(claim, TAKEN_FOR, expired_only=expired_only)
    try:
        yield held
    except LeaseLost:
        raise
    except BaseException:
        with suppress(LeaseLost):
            services.ledger.heartbeat(held, timedelta(0))
        raise


def _roll_forward_or_fence(services: Services, claim: Claim) -> bool:
    """True if the build was finished for its worker; False if its page is not live, and from now on never will be."""
    folder = folder_of(claim.kind, claim.study_uuid)
    if fence(services.bucket, folder, claim.page_owner, claim.fencing_token):
        return roll_forward(services.ledger, services.bucket, claim, {})
    return False


def roll_forward(ledger: BuildLedger, bucket: ExperimentBucket, claim: Claim, extra: dict[str, Any]) -> bool:
    """Finish the build if the live `index.html` is this claim's; False, and nothing done, if it is not.

    Raises LeaseLost if somebody else ended the request, StorageError if the bucket cannot be read or written.
    """
    folder = folder_of(claim.kind, claim.study_uuid)
    live = live_deployment(bucket, folder)
    if live is None or (live.request_id, live.fencing_token) != (claim.page_owner, claim.fencing_token):
        return False
    note = f"index.html was live when its worker stopped, so the {claim.act} was finished for it"
    try:
        finish_public_files(bucket, live)
    except NoSuchObject as error:  # families have the page; its lesser files will not come back by waiting
        note += f"; but not all its other files have their public names, deploy again: {error}"
    facts = {"bucket": bucket.name, "folder": folder, **facts_of(bucket, live)}
    ledger.finish(claim, {**extra, "facts": facts, "note": note})
    logger.warning("build request %s: %s", claim.request_id, note)
    return True
