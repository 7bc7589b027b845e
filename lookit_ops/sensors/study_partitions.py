"""The sensor `study_partitions`: a partition for each study, and for no other, so that its diagram can be asked for."""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

import dagster as dg
from sqlalchemy import select

from domain.models import Study
from lookit_ops.runs.report import studies
from lookit_ops.services import Services

AT_ONCE = 500


@dg.sensor(
    name="study_partitions",
    description="Adds a partition for each new study, and removes those of studies that were deleted.",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def study_partitions_sensor(
    context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]
) -> dg.SensorResult | dg.SkipReason:
    # All of them, not those above some id: ids are given out before a transaction commits, not in the order of commits.
    with services.sessions.begin() as session:
        found = [str(uuid) for uuid in session.scalars(select(Study.uuid).order_by(Study.id))]
    there = set(context.instance.get_dynamic_partitions(studies.name or ""))
    missing = [uuid for uuid in found if uuid not in there][:AT_ONCE]
    gone = sorted(there - set(found))[:AT_ONCE]
    if not missing and not gone:
        return dg.SkipReason("no new study, and none deleted")
    return dg.SensorResult(
        dynamic_partitions_requests=[
            *([studies.build_add_request(missing)] if missing else []),
            *([studies.build_delete_request(gone)] if gone else []),
        ],
        skip_reason=f"{len(missing)} partitions added, {len(gone)} removed; no run needed",
    )
