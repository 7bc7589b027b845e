"""What an operator watches, as assets with checks: the queue, what became of requests, the outbox, dead workers.

The sensor `watch` reports numbers and checks without any run; a check can also be run by hand.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import dagster as dg

from domain.mail.outbox import outbox_state
from domain.models import ArchiveRequest, BuildRequest
from domain.requests.queue import Model, QueueState
from domain.requests.statistics import outcomes
from lookit_ops.failures import RETRIED
from lookit_ops.run_tags import OWNERS
from lookit_ops.services import Services

GROUP = "watch"
A_DAY = timedelta(days=1)
KINDS: dict[str, Model] = {"builds": BuildRequest, "archives": ArchiveRequest}
OUR_FAULTS = RETRIED | {"worker_died", "run_not_started"}
LONGEST_WAIT = timedelta(minutes=30)
"""A request that could have been worked on for this long is worth a look."""
LARGEST_SHARE, FEWEST = 0.2, 5
"""So many of a day's builds or archives may fail by our fault; fewer of them than that say nothing."""
LONGEST_IN_OUTBOX = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one thing: numbers, and whether somebody should look, with the reason."""

    facts: Mapping[str, Any]
    is_well: bool
    why: str


@dataclass(frozen=True, slots=True)
class Watched:
    """One asset with its one check."""

    spec: dg.AssetSpec
    check: str
    look: Callable[[Services], Seen]

    def observation(self, seen: Seen) -> dg.AssetObservation:
        """The numbers, as Dagster plots them."""
        return dg.AssetObservation(self.spec.key, metadata=seen.facts)

    def evaluation(self, seen: Seen) -> dg.AssetCheckEvaluation:
        """The verdict."""
        return dg.AssetCheckEvaluation(
            asset_key=self.spec.key,
            check_name=self.check,
            passed=seen.is_well,
            severity=dg.AssetCheckSeverity.WARN,
            description=seen.why,
            metadata=seen.facts,
        )


def _minutes(since: datetime | None) -> float:
    return round((datetime.now(UTC) - since) / timedelta(minutes=1), 1) if since else 0.0


def _look_at_the_queue(services: Services) -> Seen:
    states: dict[str, QueueState] = {"builds": services.build_queue.state(), "archives": services.archive_queue.state()}
    facts: dict[str, Any] = {}
    for name, state in states.items():
        facts |= {
            f"{name} waiting": state.due + state.submitted,
            f"{name} waiting for a later attempt": state.later,
            f"{name} running": state.running,
        }
    ages = {name: _minutes(state.oldest_due_at) for name, state in states.items()}
    facts |= {f"oldest of the {name}, minutes": age for name, age in ages.items()}
    oldest = max(ages.values())
    is_well = oldest * timedelta(minutes=1) < LONGEST_WAIT
    return Seen(facts, is_well, f"the oldest request has waited for {oldest:g} minutes")


def _look_at_outcomes(what: str, services: Services) -> Seen:
    seen = outcomes(services.sessions, KINDS[what], A_DAY)
    share = seen.share_failed_by(OUR_FAULTS)
    facts: dict[str, Any] = {"succeeded": seen.succeeded, "cancelled": seen.cancelled, "tried again": seen.tried_again}
    facts |= {f"failed: {code}": count for code, count in sorted(seen.failed.items())}
    facts["share failed by the platform's fault"] = round(share, 3)
    is_well = seen.ended < FEWEST or share <= LARGEST_SHARE
    return Seen(facts, is_well, f"of {seen.ended} {what} within a day, {share:.0%} failed by the platform's fault")


def _look_at_the_outbox(services: Services) -> Seen:
    seen = outbox_state(services.sessions, A_DAY)
    age = _minutes(seen.oldest_waiting_at)
    facts = {"waiting": seen.waiting, "oldest, minutes": age, "failed within a day": seen.failed}
    is_well = not seen.failed and age * timedelta(minutes=1) < LONGEST_IN_OUTBOX
    why = f"{seen.failed} mails of the last day could not be delivered; {seen.waiting} wait, the oldest {age:g} minutes"
    return Seen(facts, is_well, f"{why}; `lookit-ops mail list` names them")


def _look_at_workers(services: Services) -> Seen:
    died = {what: outcomes(services.sessions, model, A_DAY).workers_died for what, model in KINDS.items()}
    facts = {f"of {what}, died within a day": count for what, count in died.items()}
    count = sum(died.values())
    return Seen(facts, not count, f"{count} workers stopped answering within a day")


def _watched(name: str, description: str, check: str, look: Callable[[Services], Seen]) -> Watched:
    return Watched(
        dg.AssetSpec(name, description=description, group_name=GROUP, kinds={"table"}, owners=OWNERS), check, look
    )


WATCHED = (
    _watched("request_queue", "How many requests wait, and how long the oldest has.", "is_moving", _look_at_the_queue),
    _watched(
        "build_outcomes",
        "What became of a day's builds, by cause.",
        "few_faults_of_ours",
        partial(_look_at_outcomes, "builds"),
    ),
    _watched(
        "archive_outcomes",
        "The same of the archives of videos.",
        "few_faults_of_ours",
        partial(_look_at_outcomes, "archives"),
    ),
    _watched("outbox", "Mails that wait, and those that cannot be delivered.", "is_delivered", _look_at_the_outbox),
    _watched("workers", "Workers that died and whose work had to be ended for them.", "live", _look_at_workers),
)


def _check_of(watched: Watched) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=watched.spec.key,
        name=watched.check,
        description=watched.spec.description,
    )
    def check(context: dg.AssetCheckExecutionContext, services: dg.ResourceParam[Services]) -> dg.AssetCheckResult:
        seen = watched.look(services)
        return dg.AssetCheckResult(
            passed=seen.is_well, severity=dg.AssetCheckSeverity.WARN, description=seen.why, metadata=seen.facts
        )

    return check


watched_checks = [_check_of(watched) for watched in WATCHED]
