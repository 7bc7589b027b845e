"""Our errors, as the ledger and Dagster want them: the step, a stable code, a message, and what is never retried."""

from __future__ import annotations

import traceback

from dagster import DagsterExecutionInterruptedError, MetadataValue
from dagster import Failure as DagsterFailure
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from domain.errors import DomainError
from domain.requests.failure import TOO_LONG, Failure
from ember_build.errors import BuildCancelled, BuildPlatformError, InvalidPlayer, PlayerBuildFailed
from lookit_ops.storage.errors import NameTaken, StorageError, VideoChanged, WrongEnvironment


class RequestCancelled(Exception):
    """Somebody asked for the work on a request to end, and it has."""


CODES: dict[type[BaseException], str] = {
    BuildCancelled: "cancelled",
    RequestCancelled: "cancelled",
    DagsterExecutionInterruptedError: "interrupted",
    KeyboardInterrupt: "interrupted",
    InvalidPlayer: "player_invalid",
    PlayerBuildFailed: "player_build_failed",
    BuildPlatformError: "platform_error",
    NameTaken: "name_taken",
    VideoChanged: "video_changed",
    WrongEnvironment: "wrong_environment",
    StorageError: "storage_error",
}
"""The stable names of causes in the database; the operator's guide explains each. A class stands before its base: the
first that fits is taken."""

UNEXPECTED = "unexpected_error"
RETRIED = frozenset({"platform_error", "storage_error", "video_changed", "interrupted", TOO_LONG.code, UNEXPECTED})
"""The causes after which builds and archives are tried again: ours, the network's, or what passes by itself. (A worker
that died is one, too.)"""
INTERRUPTED = "the process that did this was told to stop by a shutdown or a restart; ask for it again"


def failure_of(step: str, error: BaseException) -> Failure:
    """What the ledger keeps of an error: for an error of ours its message, for any other also its type."""
    if isinstance(error, (DagsterExecutionInterruptedError, KeyboardInterrupt)):
        return Failure(step=step, code=CODES[DagsterExecutionInterruptedError], message=INTERRUPTED)
    for kind, code in CODES.items():
        if isinstance(error, kind):
            retry_at = error.retry_at if isinstance(error, BuildPlatformError) else None
            return Failure(step=step, code=code, message=str(error), retry_at=retry_at)
    if isinstance(error, DomainError):
        return Failure(step=step, code=error.code, message=str(error))
    if isinstance(error, DBAPIError) and not isinstance(error, (IntegrityError, ProgrammingError)):
        # Without the statement, which is nothing for people.
        said = str(error.orig).strip().partition("\n")[0]
        return Failure(step=step, code=CODES[BuildPlatformError], message=f"the database could not be used: {said}")
    return Failure(step=step, code=UNEXPECTED, message=f"{type(error).__name__}: {error}")


def exception_for_log(error: BaseException) -> dict[str, str]:
    """An exception for the study log: type, message and traceback."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


def as_dagster_failure(failure: Failure) -> DagsterFailure:
    """What Dagster shows on the run's page. Never retried by Dagster: the ledger has already ended the request."""
    return DagsterFailure(
        description=f"{failure.step}: {failure.message}",
        metadata={"step": failure.step, "cause": MetadataValue.text(failure.code)},
        allow_retries=False,
    )
