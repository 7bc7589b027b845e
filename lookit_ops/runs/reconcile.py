"""End what dead workers left open: forward if it counts already, back otherwise.

A build counts if its `index.html` is live. Dead may mean asleep: before a build is given up, the bucket is fenced, so
that the sleeper's page can never go live. An archive is there whole or not at all, and the next attempt finds it by its
name, so there is nothing to roll forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from domain.errors import LeaseLost
from domain.models import RequestStatus
from domain.requests.build_claim import BuildClaim
from domain.requests.builds import BuildLedger
from domain.requests.claims import ClaimT
from domain.requests.failure import WORKER_DIED, Failure
from domain.requests.lifecycle import RequestLedger
from lookit_ops.deployments.commit_point import fence, finish_public_files
from lookit_ops.deployments.manifest import facts_of, folder_of, live_deployment
from lookit_ops.runs.archive_parts import remove_orphaned_parts
from lookit_ops.runs.in_use import clear_away_after
from lookit_ops.services import Services
from lookit_ops.storage.errors import NoSuchObject
from lookit_ops.storage.experiments import ExperimentBucket

logger = logging.getLogger(__name__)

TAKEN_FOR = timedelta(minutes=5)
"""How long one attempt to end a dead worker's build may take, before another reconciler may try."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The ids of the requests of one kind that were ended, by how."""

    rolled_forward: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    """Back in the queue, for another attempt."""
    ended: tuple[int, ...] = ()
    """Failed, since that was the last attempt, or cancelled."""
    failed: tuple[int, ...] = ()
    """Still open: database or bucket failed, which the log tells of; the next time tries again."""
    runs: tuple[str, ...] = ()
    """The runs that had worked on the requests that were ended."""
    parts_removed: int = field(default=0, kw_only=True)
    """Of archives."""

    @property
    def expired(self) -> tuple[int, ...]:
        """Return the requests that were given up by their worker, and have not been rolled forward."""
        return tuple(sorted((*self.waiting, *self.ended)))

    def __bool__(self) -> bool:
        """Return whether there was anything to do."""
        return bool(self.rolled_forward or self.expired or self.failed or self.parts_removed)


def reconcile_builds(services: Services) -> Reconciled:
    """End every build whose lease has run out; one that cannot be ended now never stops the others."""

    def end(claim: BuildClaim) -> RequestStatus:
        note = {"note": f"nothing of this {claim.act} is live"}
        return _end_build(services, claim, None, WORKER_DIED, note, expired_only=True)

    done, ended = _reconcile(services.ledger, end)
    if ended:  # not before all have their end: the engine, which it needs, may hang
        clear_away_after(services, ended)
    return done


def reconcile_archives(services: Services, *, look_for_parts: bool = True) -> Reconciled:
    """Give back every archive request whose lease has run out; one that cannot be, never stops the others.

    The bucket is looked through for parts that no worker needs if a request was given back, or if that is asked for.
    """
    note = {"note": "whatever was made is not visible; another attempt starts anew"}
    ledger = services.archive_ledger
    done, ended = _reconcile(ledger, lambda claim: ledger.expire(claim, note))
    if ended or look_for_parts:
        done = replace(done, parts_removed=remove_orphaned_parts(services))
    return done


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
        _end_build(services, claim, cancelled_by, failure, note, expired_only=False)
    except LeaseLost:
        return None
    clear_away_after(services, [claim])
    return claim.request_id


def end_archive_of_run(
    services: Services, run_id: str, cancelled_by: str | None, failure: Failure = WORKER_DIED
) -> int | None:
    """End the archive that a run held which has ended itself, likewise."""
    claim = services.archive_ledger.held_by(run_id)
    if claim is None:
        return None
    try:
        _end(services.archive_ledger, claim, cancelled_by, failure, {"note": f"run {run_id} had ended"})
    except LeaseLost:
        return None
    remove_orphaned_parts(services)
    return claim.request_id


def roll_forward(ledger: BuildLedger, bucket: ExperimentBucket, claim: BuildClaim, extra: dict[str, Any]) -> bool:
    """Finish the build if the live `index.html` is this claim's. Returns False, and does nothing, if it is not.

    Raises LeaseLost if the request was ended elsewhere, StorageError if the bucket cannot be read or written.
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


def _reconcile(
    ledger: RequestLedger[Any, ClaimT], end: Callable[[ClaimT], RequestStatus]
) -> tuple[Reconciled, Sequence[ClaimT]]:
    """End all whose lease has run out by `end`; return the claims that were ended, too."""
    by_status: dict[RequestStatus, list[int]] = {}
    failed: list[int] = []
    runs: list[str] = []
    ended: list[ClaimT] = []
    for claim in ledger.running(expired_only=True):
        what = f"{ledger.noun} {claim.request_id}"
        try:
            run_id = ledger.run_of(claim)
            # Read some time ago: another reconciler may have ended it, and a new build of the study may have begun.
            status = end(claim)
        except LeaseLost:
            logger.info("%s ended by itself", what)
        except Exception:  # its trouble is not the others'
            logger.exception("%s, whose worker died, cannot be ended now", what)
            failed.append(claim.request_id)
        else:
            logger.warning("%s: its worker died; it is %s now", what, status)
            by_status.setdefault(status, []).append(claim.request_id)
            runs += [run_id] if run_id else []
            ended.append(claim)
    forward, waiting = by_status.pop(RequestStatus.SUCCEEDED, []), by_status.pop(RequestStatus.QUEUED, [])
    others = sorted(request_id for ids in by_status.values() for request_id in ids)
    return Reconciled(tuple(forward), tuple(waiting), tuple(others), tuple(failed), tuple(runs)), ended


def _end(
    ledger: RequestLedger[Any, ClaimT],
    claim: ClaimT,
    cancelled_by: str | None,
    failure: Failure,
    note: dict[str, Any],
) -> RequestStatus:
    if cancelled_by is None:
        return ledger.retry(claim, failure, note)
    ledger.cancelled(claim, ledger.canceller(claim) or cancelled_by, note)
    return RequestStatus.CANCELLED


def _end_build(
    services: Services,
    claim: BuildClaim,
    cancelled_by: str | None,
    failure: Failure,
    note: dict[str, Any],
    *,
    expired_only: bool,
) -> RequestStatus:
    with _taken_over(services.ledger, claim, expired_only=expired_only) as held:
        if cancelled_by is not None:  # remembered first: should the bucket be away now, it is not tried again later
            services.ledger.note_wish(held)
        folder = folder_of(claim.kind, claim.study_uuid)
        is_live = fence(services.bucket, folder, claim.page_owner, claim.fencing_token)
        if is_live and roll_forward(services.ledger, services.bucket, held, {}):
            return RequestStatus.SUCCEEDED
        return _end(services.ledger, held, cancelled_by, failure, note)


@contextmanager
def _taken_over(ledger: BuildLedger, claim: BuildClaim, *, expired_only: bool) -> Generator[BuildClaim]:
    """Hold a dead worker's claim while it is ended; after a failure its lease has run out, so that others may try.

    Raises LeaseLost.
    """
    held = ledger.take_over(claim, TAKEN_FOR, expired_only=expired_only)
    try:
        yield held
    except LeaseLost:
        raise
    except BaseException:
        with suppress(LeaseLost):
            ledger.heartbeat(held, timedelta(0))
        raise
