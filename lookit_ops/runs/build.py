"""One claimed build in this process: its claim, its output, and how it ends.

What it shares with rollbacks is in `page.py`, what it shares with archives in `session.py`. The steps themselves
are in `jobs/build_experiment.py`, each inside `session.step(context)`.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dagster import OpExecutionContext

from domain.models import BuildKind, RequestStatus
from domain.requests.build_claims import Claim
from domain.requests.queue import Failure
from lookit_ops.failures import RETRIED
from lookit_ops.runs.in_use import output_folder
from lookit_ops.runs.interruption import Interruption
from lookit_ops.runs.log_buffer import Transcript
from lookit_ops.runs.page import PageSession
from lookit_ops.runs.report import report_build
from lookit_ops.services import Services

logger = logging.getLogger(__name__)

OUTPUT_INTERVAL = 2.0
"""Seconds between two pieces of build output on the run's page: a line each would be thousands of events."""


class BuildSession(PageSession):
    """The life of one build."""

    what = "build request"

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
        self.image_output = Transcript(services.redact)
        self.build_output = Transcript(services.redact)
        self._pending: list[str] = []
        self._showing = threading.Lock()
        self._shown_at = 0.0

    def claim(self, request_id: int) -> Claim:
        """Claim the request and keep its lease alive. Raises what the ledger raises."""
        settings = self.services.settings
        return self._hold(
            self.ledger.claim(
                request_id,
                self.run_id,
                settings.lease_duration,
                at_once=settings.builds_at_once,
                submission=self.submission,
            )
        )

    def launch(self, study_id: int, user_id: int, kind: BuildKind, origin: str) -> Claim:
        """Ask for the build that this run is to be, and claim it, both or neither. Raises what the ledger raises."""
        settings = self.services.settings
        return self._hold(
            self.ledger.launch(
                study_id,
                user_id,
                kind,
                self.run_id,
                settings.lease_duration,
                origin=origin,
                at_once=settings.builds_at_once,
            )
        )

    def _hold(self, claim: Claim) -> Claim:
        super()._hold(claim)
        logger.info(
            "claimed build request %s: %s of %s (%s), attempt %s, fencing token %s",
            claim.request_id,
            claim.kind,
            claim.study_name,
            claim.study_uuid,
            claim.attempt,
            claim.fencing_token,
        )
        return claim

    @property
    def output_folder(self) -> Path:
        """Where this claim's bundle is built; removed when the session is closed."""
        return self.services.settings.home_folder / "ember_build" / "deployments" / output_folder(self.held())

    def show_output(self, transcript: Transcript) -> Callable[[str], None]:
        """A place for the output of a build: kept in the transcript, shown on the run's page every few seconds."""

        def take(line: str) -> None:
            kept = transcript.add(line)
            with self._showing:
                self._pending.append(kept)
            if time.monotonic() - self._shown_at > OUTPUT_INTERVAL:
                self.flush_output()

        return take

    def flush_output(self) -> None:
        """Show what has not been shown; from any thread, in the order in which it came."""
        with self._showing:
            if self._pending:
                self._show(logging.INFO, "\n".join(self._pending))
            self._pending.clear()
            self._shown_at = time.monotonic()

    def finish(self, facts: dict[str, Any]) -> str:
        """The build succeeded. Returns the study's state. Raises LeaseLost."""
        state = self.ledger.finish(self.held(), self._extra({"facts": facts}))
        self._ended = True
        logger.info("build request %s succeeded; the study is %s", self.held().request_id, state)
        return state

    def _fail(self, claim: Claim, failure: Failure, error: BaseException, extra: dict[str, Any]) -> None:
        del error
        if failure.code not in RETRIED:
            self.ledger.fail(claim, failure, extra)
        elif self.ledger.retry(claim, failure, extra) is RequestStatus.QUEUED:
            logger.warning("build request %s waits for another attempt", claim.request_id)

    def _after_error(self, context: OpExecutionContext) -> None:
        if self.rolled_forward:
            report_build(context.instance, self.services, self.held().request_id)

    def _outputs(self) -> dict[str, str]:
        return {"image_output": self.image_output.text(), "build_output": self.build_output.text()}

    def _tidy(self, claim: Claim) -> None:
        del claim
        shutil.rmtree(self.output_folder, ignore_errors=True)
