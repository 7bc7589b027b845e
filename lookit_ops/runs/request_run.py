"""One claimed request in this process: its heartbeat, its log, the step it is in, and its one end.

What is done for the request, and how each kind ends, is in the subclasses: `build.py`, `rollback.py`, `archive.py`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

from dagster import DagsterExecutionInterruptedError, OpExecutionContext

from domain.errors import LeaseLost
from domain.models import RequestStatus
from domain.requests.claims import ClaimT
from domain.requests.failure import TOO_LONG, Failure
from domain.requests.lifecycle import RequestLedger
from ember_build.errors import BuildCancelled
from ember_build.waiting import Grace, answer_of
from lookit_ops.failures import RETRIED, RequestCancelled, as_dagster_failure, exception_for_log, failure_of
from lookit_ops.runs.interruption import Interruption
from lookit_ops.runs.log_buffer import Transcript, TranscriptHandler
from lookit_ops.services import Services

logger = logging.getLogger(__name__)

BEATS_IN_A_LEASE = 4
LONGEST_PAUSE = 2.0
"""Seconds between two heartbeats at most: so soon a worker learns that somebody cancelled."""
PACKAGES = ("domain", "ember_build", "lookit_ops")


AnswerT = TypeVar("AnswerT")


class RequestRun(ABC, Generic[ClaimT]):
    """The life of one request between its claim and its end.

    Whatever happens after the claim, the request is ended once: by the subclass's `finish`, or as failed or cancelled
    when a step raises, or by `close` when the run is torn down in between.
    """

    what: ClassVar[str]
    """What a request of this kind is called in the log."""

    def __init__(
        self,
        services: Services,
        run_id: str,
        show: Callable[[int, str], None],
        interruption: Callable[[], Interruption | None] = lambda: None,
        submission: int | None = None,
    ) -> None:
        """`interruption` says why Dagster ends the run, if it does; `submission`: see `BuildLedger.claim`."""
        self.services = services
        self.run_id = run_id
        self.submission = submission
        self.stop = threading.Event()
        """Set when the work must end at once: cancelled, or the lease is lost."""
        self._grace = Grace(self.stop)
        self._interruption = interruption
        self._show = show
        self._log = Transcript(services.redact)
        self._handler = TranscriptHandler(self._log, lambda level, text: self._show(level, text))
        self._claim: ClaimT | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._cancel_requested = False
        self._step = "claim"
        self._durations: dict[str, float] = {}
        self._beats: threading.Thread | None = None
        self._quiet = threading.Event()

    # -- what the kinds differ in ---------------------------------------------------------------------------------

    @property
    @abstractmethod
    def ledger(self) -> RequestLedger[Any, ClaimT]:
        """The ledger of these requests."""

    @property
    @abstractmethod
    def at_once(self) -> int:
        """How many requests of this kind may run at once."""

    def _fail(self, claim: ClaimT, failure: Failure, extra: dict[str, Any]) -> None:
        """End the request, or let it wait for another attempt. Raises LeaseLost."""
        if failure.code not in RETRIED:
            self.ledger.fail(claim, failure, extra)
        elif self.ledger.retry(claim, failure, extra) is RequestStatus.QUEUED:
            logger.warning("%s %s waits for another attempt: %s", self.what, claim.request_id, failure.message)

    def _counts_all_the_same(self, claim: ClaimT, error: BaseException, extra: dict[str, Any]) -> bool:
        """Whether the work was done before the error, so that the request has been ended as a success."""
        del claim, error, extra
        return False

    def _may_still_happen(self, error: BaseException) -> bool:
        """Whether nobody knows if the work was done or yet will be: then the request stays open for the reconciler."""
        del error
        return False

    def _outputs(self) -> dict[str, str]:
        """Other streams of lines that belong into the study's log."""
        return {}

    def flush_output(self) -> None:
        """Show what has not been shown."""

    def _after_error(self, context: OpExecutionContext) -> None:
        """What else is to be told of a step that failed, once the request has its end."""

    def _tidy(self, claim: ClaimT) -> None:
        """Remove what the work left on this machine."""

    # -- the claim ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to listen to the log."""
        for package in PACKAGES:
            logging.getLogger(package).addHandler(self._handler)
            logging.getLogger(package).setLevel(logging.INFO)

    def claim(self, request_id: int) -> ClaimT:
        """Claim the request and keep its lease alive. Raises what the ledger raises."""
        lease = self.services.settings.lease_duration
        return self._hold(
            self.ledger.claim(request_id, self.run_id, lease, at_once=self.at_once, submission=self.submission)
        )

    def _hold(self, claim: ClaimT) -> ClaimT:
        """Keep the lease of a claim alive from now on."""
        logger.info(
            "claimed %s %s: %s of %s (%s), attempt %s, fencing token %s",
            self.what,
            claim.request_id,
            claim.act,
            claim.study_name,
            claim.study_uuid,
            claim.attempt,
            claim.fencing_token,
        )
        self._claim = claim
        self._beats = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._beats.start()
        # A thread of its own: Dagster's storage may hang, and the lease must not run out for that.
        threading.Thread(target=self._show_regularly, name="output", daemon=True).start()
        return claim

    def _show_regularly(self) -> None:
        """The last line before a long silence must not wait for the next one."""
        while not self._quiet.wait(LONGEST_PAUSE):
            self.flush_output()

    def held(self) -> ClaimT:
        """The claim. Raises LeaseLost when there is none."""
        if self._claim is None:
            raise LeaseLost(f"this run holds no {self.what}")
        return self._claim

    def _beat(self) -> None:
        claim, lease = self.held(), self.services.settings.lease_duration
        while not self._quiet.wait(min(lease.total_seconds() / BEATS_IN_A_LEASE, LONGEST_PAUSE)):
            try:
                if self.ledger.heartbeat(claim, lease).cancel_requested:
                    self._cancel_requested = True
                    self.stop.set()
            except LeaseLost:
                self.stop.set()
                return
            except Exception:  # the database may be away for a moment; the lease says for how long that is bearable
                logger.exception("heartbeat of %s %s failed; trying again", self.what, claim.request_id)

    def check(self) -> None:
        """Make sure that this worker may go on, and prolong the lease. Raises LeaseLost or RequestCancelled."""
        beat = self.ledger.heartbeat(self.held(), self.services.settings.lease_duration)
        if beat.cancel_requested and self._step != "finish":  # the work is done and can be seen: too late to stop
            self._cancel_requested = True
            raise RequestCancelled(f"somebody asked for this {self.what} to be cancelled")

    def answer_of(self, ask: Callable[[], AnswerT], what: str) -> AnswerT:
        """Return what `ask` returns. Once this worker is told to stop, `ask` has a moment left and is then left alone.

        Only for what may be left alone. `what` completes "cancelled while …". Raises BuildCancelled.
        """
        try:
            return answer_of(ask, self._grace, what)
        except Exception:
            raise
        except BaseException:
            self.stop.set()
            raise

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
            if not isinstance(error, Exception):
                self.stop.set()  # the threads of this step end, too
            self._durations[self._step] = round(time.monotonic() - started, 2)
            self.flush_output()
            self.end_with(error)
            self._after_error(context)
            if isinstance(error, Exception):
                # Without its cause, whose message nobody has redacted; the traceback is in the log.
                raise as_dagster_failure(self.failure(self._step, error)) from None
            raise
        self.flush_output()
        self._durations[self._step] = round(time.monotonic() - started, 2)
        logger.info("%s took %.1f s", self._step, self._durations[self._step])

    # -- the end --------------------------------------------------------------------------------------------------

    def end_with(self, error: BaseException) -> None:
        """End the request as failed or cancelled, unless it has an end, or the work counts all the same.

        If nobody knows whether it counts, the request stays open: the reconciler ends it.
        """
        self._error = self._error or error
        if self._ended or self._claim is None:
            return
        told = exception_for_log(error)
        extra = self._extra({"exception": {name: self.services.redact(text) for name, text in told.items()}})
        try:
            interruption = self._interruption_by(error)
            is_cancelled = self._cancel_requested or isinstance(error, BuildCancelled | RequestCancelled)
            is_wish = is_cancelled or interruption is Interruption.OPERATOR  # of a person
            if is_wish:  # remembered first: should the bucket be away now, whoever ends this later must not try again
                self.ledger.note_wish(self._claim)
            if self._may_still_happen(error):
                why = "stays open until its lease has run out and the bucket can be asked"
                logger.warning("%s %s %s: %s", self.what, self._claim.request_id, why, error)
            elif self._counts_all_the_same(self._claim, error, extra):
                pass
            elif is_wish:
                canceller = self.ledger.canceller(self._claim) or "an operator, in Dagster"
                self.ledger.cancelled(self._claim, canceller, extra)
            else:
                too_long = interruption is Interruption.TOO_LONG
                failure = replace(TOO_LONG, step=self._step) if too_long else self.failure(self._step, error)
                self._fail(self._claim, failure, extra)
        except LeaseLost as lost:
            logger.warning("%s", lost)
        except Exception:  # database or bucket are away: the reconciler ends the request when its lease has run out
            logger.exception("%s %s cannot be ended now", self.what, self._claim.request_id)
            return
        self._ended = True

    def _interruption_by(self, error: BaseException) -> Interruption | None:
        """Why Dagster interrupted the work, if that is how it ended; None also at a shutdown."""
        interrupted = any(isinstance(one, DagsterExecutionInterruptedError) for one in (error, error.__cause__))
        return self._interruption() if interrupted else None

    def failure(self, step: str, error: BaseException) -> Failure:
        """What the ledger and the run's page are told of an error: redacted."""
        failure = failure_of(step, error)
        return replace(failure, message=self.services.redact(failure.message))

    def close(self) -> None:
        """Tear down: no more heartbeats, no claim left open, nothing left on this machine, the log let go."""
        self._quiet.set()
        self.flush_output()
        if self._beats:
            self._beats.join(timeout=5)
        try:
            self.end_with(self._error or DagsterExecutionInterruptedError())
            if self._claim:
                self._tidy(self._claim)
        finally:
            for package in PACKAGES:
                logging.getLogger(package).removeHandler(self._handler)

    def _extra(self, more: dict[str, Any]) -> dict[str, Any]:
        return {**self._outputs(), "durations_seconds": self._durations, "log": self._log.text(), **more}
