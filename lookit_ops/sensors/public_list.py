"""The sensor `public_list`: has the public list in the bucket compared with the database, and mended, by a run.

Whoever changes a state brings the list up to date at once; this is for the time when the bucket was away, or a web
application wrote the change. The sensor asks the database alone: a run is requested for a list that none has written
yet, and once an hour, in case the bucket lost it.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

import hashlib
from datetime import UTC, datetime, timedelta

import dagster as dg

from lookit_ops.assets.public_list import discoverable_studies_asset
from lookit_ops.maintenance.public_list import wanted_list
from lookit_ops.sensors.under_way import UNFINISHED
from lookit_ops.services import Services

LIST_TAG = "lookit/public-list"
"""The digest of the list that the run is to write."""
COMPARED_EVERY = timedelta(hours=1)
AGAIN_AFTER = timedelta(minutes=1)
"""How long after a run that failed, or has not ended, another one is requested."""


@dg.sensor(
    name="public_list",
    description="Keeps the list of the public page true to the database.",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    asset_selection=[discoverable_studies_asset],
)
def public_list_sensor(
    context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]
) -> dg.RunRequest | dg.SkipReason:
    names, content = wanted_list(services)
    digest = hashlib.sha256(content).hexdigest()[:32]
    now = datetime.now(UTC)

    def was_run(statuses: list[dg.DagsterRunStatus], within: timedelta) -> bool:
        runs = dg.RunsFilter(tags={LIST_TAG: digest}, statuses=statuses, created_after=now - within)
        return bool(context.instance.get_runs(runs, limit=1))

    if was_run([dg.DagsterRunStatus.SUCCESS], COMPARED_EVERY):
        return dg.SkipReason(f"the list was compared within the last hour: {len(names)} studies")
    if was_run([*UNFINISHED, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED], AGAIN_AFTER):
        return dg.SkipReason("a run that compares the list is on its way, or has just failed")
    return dg.RunRequest(tags={LIST_TAG: digest})
