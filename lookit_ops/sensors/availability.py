"""The sensor `availability`: starts the job `set_availability` when a study's page is not what its state says."""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

from datetime import timedelta

import dagster as dg

from domain.studies.availability import out_of_line
from lookit_ops.jobs.set_availability import set_availability
from lookit_ops.sensors.under_way import is_under_way
from lookit_ops.services import Services

TRUSTED_FOR = timedelta(minutes=5)
"""How long a run that has not ended is believed to be at work."""


@dg.sensor(
    name="availability",
    description="Runs set_availability when studies are to be taken down or put back.",
    job=set_availability,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def availability(
    context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]
) -> dg.RunRequest | dg.SkipReason:
    with services.sessions.begin() as session:
        waiting = len(out_of_line(session))
    if not waiting:
        return dg.SkipReason("every study has the page that its state says")
    if is_under_way(context.instance, set_availability.name, TRUSTED_FOR):
        return dg.SkipReason(f"{waiting} pages are to be changed, and a run that does it is on its way")
    return dg.RunRequest()
