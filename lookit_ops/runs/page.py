"""One claimed build or rollback in this process: its page in the bucket decides whether it counts.

What a build does besides is in `build.py`, what a rollback does in `rollback.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from domain.requests.build_claims import Claim
from domain.requests.builds import BuildLedger
from lookit_ops.runs.interruption import Interruption
from lookit_ops.runs.reconcile import roll_forward
from lookit_ops.runs.session import WorkSession
from lookit_ops.services import Services
from lookit_ops.storage.cancellable import CancellableExperimentBucket
from lookit_ops.storage.experiments import NoAnswer

logger = logging.getLogger(__name__)


class PageSession(WorkSession[Claim]):
    """Rolls forward if `index.html` is live when a step fails, and leaves open what is not known."""

    def __init__(
        self,
        services: Services,
        run_id: str,
        show: Callable[[int, str], None],
        interruption: Callable[[], Interruption | None] = lambda: None,
        submission: int | None = None,
    ) -> None:
        """See `WorkSession`."""
        super().__init__(services, run_id, show, interruption, submission)
        self.bucket = CancellableExperimentBucket(lambda: services.bucket, self.stop)
        """The bucket, for as long as this worker may go on."""
        self.rolled_forward = False
        """Whether the work counts although a step failed."""
        self._committing = False

    @property
    def ledger(self) -> BuildLedger:
        """The build ledger."""
        return self.services.ledger

    def before_commit(self) -> None:
        """Make sure that the page may be written, which is what comes next. Raises LeaseLost or RequestCancelled."""
        self.check()
        self._committing = True

    def _counts_all_the_same(self, claim: Claim, error: BaseException, extra: dict[str, Any]) -> bool:
        """Roll forward if the page is live. A claim that never began to write it has none, and asks no bucket."""
        if self._committing and roll_forward(self.ledger, self.bucket, claim, extra):
            self.rolled_forward = True
            logger.warning("%s failed after index.html had been written; it counts: %s", self._step, error)
        return self.rolled_forward

    def _may_still_happen(self, error: BaseException) -> bool:
        """Whether the page may yet go live: whoever calls the work a failure must fence it before."""
        return self._committing and isinstance(error, NoAnswer)
