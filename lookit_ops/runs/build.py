"""One claimed build in this process: its claim, its output, and how it ends.

What it shares with rollbacks is in `page.py`, what it shares with archives in `request_run.py`. The steps themselves
are in `jobs/build_experiment.py`, each inside `build_run.step(context)`.
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

from domain.models import BuildKind
from domain.requests.build_claim import BuildClaim
from lookit_ops.runs.in_use import output_folder
from lookit_ops.runs.interruption import Interruption
from lookit_ops.runs.log_buffer import Transcript
from lookit_ops.runs.page import PageRun
from lookit_ops.runs.report import report_build
from lookit_ops.services import Services

logger = logging.getLogger(__name__)

OUTPUT_INTERVAL = 2.0
"""Seconds between two pieces of build output on the run's page: a line each would be thousands of events."""


class BuildRun(PageRun):
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
        """See `RequestRun`."""
        super().__init__(services, run_id, show, interruption, submission)
        self.image_output = Transcript(services.redact)
        self.build_output = Transcript(services.redact)
        self._pending: list[str] = []
        self._showing = threading.Lock()
        self._shown_at = 0.0

    def launch(self, study_id: int, user_id: int, kind: BuildKind, origin: str) -> BuildClaim:
        """Ask for the build that this run is to be, and claim it, both or neither. Raises what the ledger raises."""
        lease = self.services.settings.lease_duration
        return self._hold(
            self.ledger.launch(study_id, user_id, kind, self.run_id, lease, origin=origin, at_once=self.at_once)
        )

    @property
    def output_folder(self) -> Path:
        """Where this claim's bundle is built; removed when the run is closed."""
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

    def _after_error(self, context: OpExecutionContext) -> None:
        if self.rolled_forward:
            report_build(context.instance, self.services, self.held().request_id)

    def _outputs(self) -> dict[str, str]:
        return {"image_output": self.image_output.text(), "build_output": self.build_output.text()}

    def _tidy(self, claim: BuildClaim) -> None:
        del claim
        shutil.rmtree(self.output_folder, ignore_errors=True)
