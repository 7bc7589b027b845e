"""One claimed build in this process: its heartbeat, its log, the step it is in, and its one end.

Not in charge of the steps themselves: `jobs/build_experiment.py` runs them inside `session.step(name)`.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dagster import DagsterExecutionInterruptedError, OpExecutionContext

from domain.builds.ledger import Claim, Failure
from domain.errors import LeaseLost
from domain.models import BuildKind
from ember_build.errors import BuildCancelled
from lookit_ops.assets.experiments import report_build
from lookit_ops.failures import as_dagster_failure, exception_for_log, failure_of
from lookit_ops.platform import Platform
from lookit_ops.reconcile import roll_forward
from lookit_ops.storage.experiments import NoAnswer
from lookit_ops.transcript import Transcript, TranscriptHandler

logger = logging.getLogger(__name__)

BEATS_IN_A_LEASE = 4
PACKAGES = ("domain", "ember_build", "lookit_ops")
STEPS_THAT_COMMIT = frozenset({"upload", "finish"})
"""Steps in which index.html may have been written before something else failed."""

OUTPUT_INTERVAL = 2.0
"""Seconds between two pieces of build output on the run's page: a line each would be thousands of events."""


class BuildSession:
    """The life of one build between its claim and its end.

    Whatever happens after `claim`, the request is ended once: by `finish`, or as failed or cancelled when a step
    raises, or by `close` when the run is torn down in between.
    """

    def __init__(
        self,
        platform: Platform,
        run_id: str,
        show: Callable[[int, str], None],
        is_canceling: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_canceling` says whether somebody asked Dagster to end the run."""
        self.platform = platform
        self._is_canceling = is_canceling
        self.run_id = run_id
        self.image_output = Transcript(platform.redact)
        self.build_output = Transcript(platform.redact)
        self.stop = threading.Event()
        """Set when the build must end at once: cancelled, or the lease is lost."""
        self.rolled_forward = False
        """Whether the build counts although a step failed."""
        self._show = show
        self._log = Transcript(platform.redact)
        self._handler = TranscriptHandler(self._log, lambda level, text: self._show(level, text))
        self._claim: Claim | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._cancel_requested = False
        self._step = "claim"
        self._durations: dict[str, float] = {}
        self._beats: threading.Thread | None = None
        self._quiet = threading.Event()
        self._pending: list[str] = []
        self._shown_at = 0.0

    # -- the claim ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to listen to the log."""
        for package in PACKAGES:
            logging.getLogger(package).addHandler(self._handler)
            logging.getLogger(package).setLevel(logging.INFO)

    def claim(self, request_id: int) -> Claim:
        """Claim the request and keep its lease alive. Raises what the ledger raises."""
        return self._hold(self.platform.ledger.claim(request_id, self.run_id, self.platform.settings.lease_duration))

    def launch(self, study_id: int, user_id: int, kind: BuildKind, origin: str) -> Claim:
        """Ask for the build that this run is to be, and claim it, both or neither. Raises what the ledger raises."""
        lease = self.platform.settings.lease_duration
        return self._hold(self.platform.ledger.launch(study_id, user_id, kind, self.run_id, lease, origin=origin))

    def _hold(self, claim: Claim) -> Claim:
        self._claim = claim
        self._beats = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._beats.start()
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

    def held(self) -> Claim:
        """The claim. Raises LeaseLost when there is none."""
        if self._claim is None:
            raise LeaseLost("this run holds no build request")
        return self._claim

    @property
    def output_folder(self) -> Path:
        """Where this claim's bundle is built; removed when the session is closed."""
        claim = self.held()
        name = f"{claim.study_uuid}-{claim.request_id}-{claim.fencing_token}"
        return self.platform.settings.home_folder / "ember_build" / "deployments" / name

    def _beat(self) -> None:
        claim, lease = self.held(), self.platform.settings.lease_duration
        while not self._quiet.wait(lease.total_seconds() / BEATS_IN_A_LEASE):
            try:
                if self.platform.ledger.heartbeat(claim, lease).cancel_requested:
                    self._cancel_requested = True
                    self.stop.set()
            except LeaseLost:
                self.stop.set()
                return
            except Exception:  # the database may be away for a moment; the lease says for how long that is bearable
                logger.exception("heartbeat of build request %s failed; trying again", claim.request_id)

    def check(self) -> None:
        """Make sure that this worker may go on, and prolong the lease. Raises LeaseLost or BuildCancelled."""
        beat = self.platform.ledger.heartbeat(self.held(), self.platform.settings.lease_duration)
        if beat.cancel_requested and self._step != "finish":  # index.html is live: too late to stop
            self._cancel_requested = True
            raise BuildCancelled("somebody asked for this build to be cancelled")

    # -- the steps ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def step(self, context: OpExecutionContext) -> Generator[None]:
        """Run one step, named as its op: an error in it, or an interruption, ends the request and then the run."""
        self._step = context.op.name
        self._show = context.log.log
        started = time.monotonic()
        try:
            self.check()
            yield
        except BaseException as error:  # an interruption by Dagster is no Exception
            self._durations[self._step] = round(time.monotonic() - started, 2)
            self.flush_output()
            self.end_with(error)
            if self.rolled_forward:
                report_build(context.instance, self.platform, self.held().request_id)
            if isinstance(error, Exception):
                # Without its cause, whose message nobody has redacted; the traceback is in the log.
                raise as_dagster_failure(self.failure(self._step, error)) from None
            raise
        self.flush_output()
        self._durations[self._step] = round(time.monotonic() - started, 2)
        logger.info("%s took %.1f s", self._step, self._durations[self._step])

    def show_output(self, transcript: Transcript) -> Callable[[str], None]:
        """A place for the output of a build: kept in the transcript, shown on the run's page every few seconds."""

        def take(line: str) -> None:
            self._pending.append(transcript.add(line))
            if time.monotonic() - self._shown_at > OUTPUT_INTERVAL:
                self.flush_output()

        return take

    def flush_output(self) -> None:
        """Show what has not been shown."""
        if self._pending:
            self._show(logging.INFO, "\n".join(self._pending))
        self._pending.clear()
        self._shown_at = time.monotonic()

    # -- the end --------------------------------------------------------------------------------------------------

    def finish(self, facts: dict[str, Any]) -> str:
        """The build succeeded. Returns the study's state. Raises LeaseLost."""
        state = self.platform.ledger.finish(self.held(), self._extra({"facts": facts}))
        self._ended = True
        logger.info("build request %s succeeded; the study is %s", self.held().request_id, state)
        return state

    def end_with(self, error: BaseException) -> None:
        """End the request as failed or cancelled, unless it has an end, or `index.html` is live: then forward.

        If nobody knows whether it is or will be, the request stays open, and the reconciler ends it.
        """
        self._error = self._error or error
        if self._ended or self._claim is None:
            return
        if isinstance(error, NoAnswer):  # its page may still go live: whoever calls it a failure must fence it before
            logger.warning(
                "build request %s stays open until its lease has run out and the bucket can be asked: %s",
                self._claim.request_id,
                error,
            )
            self._ended = True  # by this session
            return
        extra = self._extra({"exception": self._redacted(exception_for_log(error))})
        try:
            if self._step in STEPS_THAT_COMMIT and roll_forward(self.platform, self._claim, extra):
                self.rolled_forward = True
                logger.warning("%s failed after index.html had been written; the build counts: %s", self._step, error)
            elif self._is_wish(error):
                canceller = self.platform.ledger.canceller(self._claim) or "an operator, in Dagster"
                self.platform.ledger.cancelled(self._claim, canceller, extra)
            else:
                self.platform.ledger.fail(self._claim, self.failure(self._step, error), extra)
        except LeaseLost as lost:
            logger.warning("%s", lost)
        except Exception:  # database or bucket are away: the reconciler ends the request when its lease has run out
            logger.exception("build request %s cannot be ended now", self._claim.request_id)
            return
        self._ended = True

    def _is_wish(self, error: BaseException) -> bool:
        """Whether somebody wanted this end. Dagster interrupts also at a shutdown, and after the longest run time."""
        if self._cancel_requested or isinstance(error, BuildCancelled):
            return True
        return isinstance(error, DagsterExecutionInterruptedError) and self._is_canceling()

    def failure(self, step: str, error: BaseException) -> Failure:
        """What the ledger and the run's page are told of an error: redacted."""
        failure = failure_of(step, error)
        return replace(failure, message=self.platform.redact(failure.message))

    def close(self) -> None:
        """Tear down: no more heartbeats, no claim left open, mails on their way, the log let go."""
        self._quiet.set()
        self.flush_output()
        if self._beats:
            self._beats.join(timeout=5)
        self.end_with(self._error or DagsterExecutionInterruptedError())
        try:
            if self._claim:
                shutil.rmtree(self.output_folder, ignore_errors=True)
                self.platform.deliver_mails()
        except Exception:  # the mails wait in the outbox; the build has its end already
            logger.exception("mails could not be delivered now; they wait in the outbox")
        for package in PACKAGES:
            logging.getLogger(package).removeHandler(self._handler)

    def _redacted(self, texts: dict[str, str]) -> dict[str, str]:
        return {name: self.platform.redact(text) for name, text in texts.items()}

    def _extra(self, more: dict[str, Any]) -> dict[str, Any]:
        return {
            "image_output": self.image_output.text(),
            "build_output": self.build_output.text(),
            "durations_seconds": self._durations,
            "log": self._log.text(),
            **more,
        }
