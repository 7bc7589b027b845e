"""The sensor `study_partitions`: a partition for each study, so that its diagram can be asked for in Dagster's UI."""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

import dagster as dg
from sqlalchemy import select

from domain.models import Study
from lookit_ops.assets.experiments import studies
from lookit_ops.platform import Platform

AT_ONCE = 500


@dg.sensor(
    name="study_partitions",
    description="Adds a partition for each new study.",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"platform"},
)
def study_partitions_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    platform: Platform = context.resources.platform
    seen = int(context.cursor or 0)
    newer = select(Study.id, Study.uuid).where(Study.id > seen).order_by(Study.id).limit(AT_ONCE)
    with platform.sessions.begin() as session:
        found = session.execute(newer).all()
    if not found:
        return dg.SkipReason("no new study")
    there = set(context.instance.get_dynamic_partitions(studies.name or ""))
    missing = [str(uuid) for _, uuid in found if str(uuid) not in there]
    return dg.SensorResult(
        dynamic_partitions_requests=[studies.build_add_request(missing)] if missing else [],
        cursor=str(found[-1].id),
        skip_reason=f"{len(missing)} partitions added; no run needed",
    )
