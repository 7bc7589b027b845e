"""The sensor `watch`: reports what an operator watches, when it changes and once an hour, without any run."""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

import json
import time

import dagster as dg

from lookit_ops.assets.watch import WATCHED, Seen
from lookit_ops.services import Services

AT_LEAST_EVERY = 3600.0
"""Seconds after which what has not changed is reported again."""


@dg.sensor(
    name="watch",
    description="Reports queue, outcomes, outbox and workers to their assets, and evaluates their checks.",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def watch(context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]) -> dg.SensorResult:
    told: dict[str, list] = json.loads(context.cursor or "{}")
    now = time.time()
    events: list = []
    for watched in WATCHED:
        name, seen = watched.spec.key.to_user_string(), watched.look(services)
        before = told.get(name)
        if before and before[1] == _changes(seen) and now - before[0] < AT_LEAST_EVERY:
            continue
        events += [watched.observation(seen), watched.evaluation(seen)]
        told[name] = [now, _changes(seen)]
    what = ", ".join(event.check_name for event in events if isinstance(event, dg.AssetCheckEvaluation))
    return dg.SensorResult(
        asset_events=events,
        cursor=json.dumps(told),
        skip_reason=f"reported: {what}; no run needed" if events else "nothing has changed since the last report",
    )


def _changes(seen: Seen) -> list:
    """What of it is worth a report: the verdict and the counts, not that everything is a minute older."""
    return [seen.is_well, *(value for name, value in seen.facts.items() if "minutes" not in name)]
