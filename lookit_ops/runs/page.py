"""One claimed build or rollback in this process: its page in the bucket decides whether it counts.

What a build does besides is in `build.py`, what a rollback does in `rollback.py`.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

from domain.requests.build_claim import BuildClaim
from domain.requests.builds import BuildLedger
from lookit_ops.runs.reconcile import roll_forward
from lookit_ops.runs.request_run import RequestRun
from lookit_ops.storage.cancellable import CancellableExperimentBucket
from lookit_ops.storage.errors import NoAnswer

logger = logging.getLogger(__name__)


class PageRun(RequestRun[BuildClaim]):
    """Rolls forward if `index.html` is live when a step fails, and leaves open what is not known."""

    rolled_forward = False
    """Whether the work counts although a step failed."""
    _committing = False

    @cached_property
    def bucket(self) -> CancellableExperimentBucket:
        """The bucket, for as long as this worker may go on."""
        return CancellableExperimentBucket(lambda: self.services.bucket, self.stop)

    @property
    def ledger(self) -> BuildLedger:
        """The build ledger."""
        return self.services.ledger

    @property
    def at_once(self) -> int:
        """How many builds may run at once."""
        return self.services.settings.builds_at_once

    def before_commit(self) -> None:
        """Make sure that the page may be written, which is what comes next. Raises LeaseLost or RequestCancelled."""
        self.check()
        self._committing = True

    def _counts_all_the_same(self, claim: BuildClaim, error: BaseException, extra: dict[str, Any]) -> bool:
        """Roll forward if the page is live. A claim that never began to write it has none, and asks no bucket."""
        if self._committing and roll_forward(self.ledger, self.bucket, claim, extra):
            self.rolled_forward = True
            logger.warning("%s failed after index.html had been written; it counts: %s", self._step, error)
        return self.rolled_forward

    def _may_still_happen(self, error: BaseException) -> bool:
        """Whether the page may yet go live: whoever calls the work a failure must fence it before."""
        return self._committing and isinstance(error, NoAnswer)
