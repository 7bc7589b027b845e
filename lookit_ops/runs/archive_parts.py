"""The parts of archives that are being made: where a claim keeps them, and removing those of claims that have ended."""

from __future__ import annotations

import logging

from domain.requests.archives import ArchiveClaim
from lookit_ops.services import Services
from lookit_ops.storage.archives import PARTS
from lookit_ops.storage.errors import StorageError

logger = logging.getLogger(__name__)


def scratch_of(claim: ArchiveClaim) -> str:
    """Return the folder of the bucket for this claim's parts."""
    return f"{PARTS}/{claim.request_id}-{claim.fencing_token}"


def remove_orphaned_parts(services: Services) -> int:
    """Remove the parts of claims that no longer run, and return how many.

    The parts are listed first: a claim that begins later has none among them.
    """
    try:
        keys = [file.key for file in services.archives.files(f"{PARTS}/")]
        alive = {scratch_of(claim) for claim in services.archive_ledger.running(expired_only=False)}
        orphans = [key for key in keys if "/".join(key.split("/")[:2]) not in alive]
        for key in orphans:
            services.archives.delete(key)
    except StorageError as error:
        logger.warning("the parts of archives cannot be looked through now: %s", error)
        return 0
    return len(orphans)
