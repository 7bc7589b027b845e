"""The sensor `public_list`: compares the public list in the bucket with the database, and mends it.

Whoever changes a state brings the list up to date at once; this is for the time when the bucket was away, or a web
application wrote the change. The comparison costs one query and one small read, so the sensor does it by itself: a run
would take longer to start than the work takes.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

import dagster as dg

from lookit_ops.assets.public_list import discoverable_studies_asset, facts
from lookit_ops.platform import Platform
from lookit_ops.public_list import refresh_public_list


@dg.sensor(
    name="public_list",
    description="Keeps the list of the public page true to the database.",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"platform"},
    asset_selection=[discoverable_studies_asset],
)
def public_list_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    platform: Platform = context.resources.platform
    written = refresh_public_list(platform)
    if not written.rewritten:
        return dg.SensorResult(skip_reason=f"the list is up to date: {len(written.names)} studies")
    seen = dg.AssetMaterialization(discoverable_studies_asset.key, metadata=facts(platform, written))
    return dg.SensorResult(
        asset_events=[seen], skip_reason=f"the list was brought up to date: {len(written.names)} studies; no run needed"
    )
