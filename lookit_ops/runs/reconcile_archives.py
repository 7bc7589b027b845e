"""Ends the archive requests whose workers have died, and removes the parts that nobody is making an archive of.

An archive is there whole or not at all, and the next attempt finds it by its name; so there is nothing to roll forward.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from domain.errors import LeaseLost
from domain.models import RequestStatus
from domain.requests.queue import WORKER_DIED, Failure
from lookit_ops.services import Services
from lookit_ops.storage.archives import PARTS
from lookit_ops.storage.experiments import StorageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReconciledArchives:
    """The ids of the requests that were ended or wait again, and how many parts were removed."""

    waiting: tuple[int, ...]
    ended: tuple[int, ...]
    parts_removed: int = 0
    failed: tuple[int, ...] = ()
    """Still running by the database: it failed, which the log tells of; the next time tries again."""
    runs: tuple[str, ...] = ()
    """The runs that had worked on the requests that wait again or were ended."""

    def __bool__(self) -> bool:
        """Whether there was anything to do."""
        return bool(self.waiting or self.ended or self.parts_removed or self.failed)


def reconcile_archives(services: Services, *, look_for_parts: bool = True) -> ReconciledArchives:
    """Give back every archive request whose lease has run out; one that cannot be, never stops the others.

    The bucket is looked through for parts that nobody needs if a request was given back, or if that is asked for.
    """
    waiting: list[int] = []
    ended: list[int] = []
    failed: list[int] = []
    runs: list[str] = []
    ledger = services.archive_ledger
    for claim in ledger.running(expired_only=True):
        try:
            run_id = ledger.run_of(claim)
            status = ledger.expire(claim, {"note": "whatever was made is not visible; another attempt starts anew"})
            (waiting if status is RequestStatus.QUEUED else ended).append(claim.request_id)
            runs += [run_id] if run_id else []
            logger.warning("archive request %s: its worker died; it is %s now", claim.request_id, status)
        except LeaseLost:
            logger.info("archive request %s ended by itself", claim.request_id)
        except Exception:  # its trouble is not the others'
            logger.exception("archive request %s, whose worker died, cannot be ended now", claim.request_id)
            failed.append(claim.request_id)
    removed = remove_orphans(services) if waiting or ended or look_for_parts else 0
    return ReconciledArchives(tuple(waiting), tuple(ended), removed, tuple(failed), tuple(runs))


def end_archive_of_run(
    services: Services, run_id: str, cancelled_by: str | None, failure: Failure = WORKER_DIED
) -> int | None:
    """End the archive that a run held which has ended itself, without waiting for the lease to run out.

    The run was cancelled by a person, or (None) it failed so. Returns the id of the request, None if the run held none.
    """
    ledger = services.archive_ledger
    claim = ledger.held_by(run_id)
    if claim is None:
        return None
    note = {"note": f"run {run_id} had ended"}
    try:
        if cancelled_by is None:
            ledger.retry(claim, failure, note)
        else:
            ledger.cancelled(claim, ledger.canceller(claim) or cancelled_by, note)
    except LeaseLost:
        return None
    remove_orphans(services)
    return claim.request_id


def remove_orphans(services: Services) -> int:
    """Remove the parts of claims that no longer run. The parts are listed first: a claim that begins later has none."""
    try:
        keys = [file.key for file in services.archives.files(f"{PARTS}/")]
        alive = {
            f"{claim.request_id}-{claim.fencing_token}" for claim in services.archive_ledger.running(expired_only=False)
        }
        orphans = [key for key in keys if key.split("/")[1] not in alive]
        for key in orphans:
            services.archives.delete(key)
    except StorageError as error:
        logger.warning("the parts of archives cannot be looked through now: %s", error)
        return 0
    return len(orphans)
