"""One claimed archive request in this process: its claim, and its end; the rest is in `request_run.py`."""

from __future__ import annotations

import logging

from domain.models import ArchiveKind
from domain.requests.archives import ArchiveClaim, ArchiveFacts, ArchiveLedger
from lookit_ops.runs.archive_parts import scratch_of
from lookit_ops.runs.request_run import RequestRun

logger = logging.getLogger(__name__)


class ArchiveRun(RequestRun[ArchiveClaim]):
    """The life of one archive."""

    what = "archive request"

    @property
    def ledger(self) -> ArchiveLedger:
        """The archive ledger."""
        return self.services.archive_ledger

    @property
    def at_once(self) -> int:
        """How many archives may be made at once."""
        return self.services.settings.archives_at_once

    def launch(self, study_id: int, user_id: int, kind: ArchiveKind, name_contains: str, origin: str) -> ArchiveClaim:
        """Ask for the archive of this run, and claim it, both or neither. Raises what the ledger raises."""
        lease = self.services.settings.lease_duration
        return self._hold(
            self.ledger.launch(
                study_id, user_id, kind, self.run_id, lease, name_contains, origin=origin, at_once=self.at_once
            )
        )

    @property
    def scratch(self) -> str:
        """The folder of the bucket for this claim's parts; empty when the run is closed."""
        return scratch_of(self.held())

    def finish(self, facts: ArchiveFacts) -> None:
        """The archive is in the bucket. Raises LeaseLost."""
        self.ledger.finish(self.held(), facts, self._extra({}))
        self._ended = True
        logger.info("archive request %s succeeded: %s", self.held().request_id, facts.archive_key)
