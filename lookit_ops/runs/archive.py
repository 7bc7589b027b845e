"""One claimed archive request in this process: its claim, and how it ends; the rest is in `session.py`."""

from __future__ import annotations

import logging

from domain.models import ArchiveKind, RequestStatus
from domain.requests.archives import ArchiveClaim, ArchiveFacts, ArchiveLedger
from domain.requests.queue import Failure
from lookit_ops.failures import RETRIED
from lookit_ops.runs.session import WorkSession
from lookit_ops.storage.archives import PARTS

logger = logging.getLogger(__name__)


class ArchiveSession(WorkSession[ArchiveClaim]):
    """The life of one archive."""

    what = "archive request"

    @property
    def ledger(self) -> ArchiveLedger:
        """The archive ledger."""
        return self.services.archive_ledger

    def claim(self, request_id: int) -> ArchiveClaim:
        """Claim the request and keep its lease alive. Raises what the ledger raises."""
        settings = self.services.settings
        return self._hold(
            self.ledger.claim(
                request_id,
                self.run_id,
                settings.lease_duration,
                at_once=settings.archives_at_once,
                submission=self.submission,
            )
        )

    def launch(self, study_id: int, user_id: int, kind: ArchiveKind, name_contains: str, origin: str) -> ArchiveClaim:
        """Ask for the archive of this run, and claim it, both or neither. Raises what the ledger raises."""
        settings = self.services.settings
        return self._hold(
            self.ledger.launch(
                study_id,
                user_id,
                kind,
                self.run_id,
                settings.lease_duration,
                name_contains,
                origin=origin,
                at_once=settings.archives_at_once,
            )
        )

    def _hold(self, claim: ArchiveClaim) -> ArchiveClaim:
        super()._hold(claim)
        logger.info(
            "claimed archive request %s: %s videos of %s (%s), attempt %s, fencing token %s",
            claim.request_id,
            claim.kind,
            claim.study_name,
            claim.study_uuid,
            claim.attempt,
            claim.fencing_token,
        )
        return claim

    @property
    def scratch(self) -> str:
        """The folder of the bucket for this claim's parts; empty when the session is closed."""
        return scratch_of(self.held())

    def finish(self, facts: ArchiveFacts) -> None:
        """The archive is in the bucket. Raises LeaseLost."""
        self.ledger.finish(self.held(), facts, self._extra({}))
        self._ended = True
        logger.info("archive request %s succeeded: %s", self.held().request_id, facts.archive_key)

    def _fail(self, claim: ArchiveClaim, failure: Failure, error: BaseException, extra: dict[str, object]) -> None:
        del error
        if failure.code not in RETRIED:
            self.ledger.fail(claim, failure, extra)
            return
        status = self.ledger.retry(claim, failure, extra)
        if status is RequestStatus.QUEUED:
            logger.warning("archive request %s waits for another attempt: %s", claim.request_id, failure.message)


def scratch_of(claim: ArchiveClaim) -> str:
    """Where the parts of this claim are."""
    return f"{PARTS}/{claim.request_id}-{claim.fencing_token}"
