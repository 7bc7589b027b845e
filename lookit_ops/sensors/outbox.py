"""The sensor `outbox`: starts the job `deliver_mails` when mails are due, one run at a time."""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

from datetime import timedelta

import dagster as dg

from domain.mail.outbox import outbox_state
from lookit_ops.jobs.deliver_mails import deliver_mails
from lookit_ops.sensors.under_way import is_under_way
from lookit_ops.services import Services

TRUSTED_FOR = timedelta(minutes=5)
"""How long a run that has not ended is believed to be at work."""


@dg.sensor(
    name="outbox",
    description="Runs deliver_mails when mails are due.",
    job=deliver_mails,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def outbox(context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]) -> dg.RunRequest | dg.SkipReason:
    state = outbox_state(services.sessions, timedelta())
    if not state.due:
        return dg.SkipReason(f"no mail is due; {state.waiting} wait for another attempt")
    # An older one may be dead without Dagster's knowing; and two at once send no mail twice.
    if is_under_way(context.instance, deliver_mails.name, TRUSTED_FOR):
        return dg.SkipReason(f"{state.due} mails are due, and a run that delivers them is on its way")
    # No run key: whether a mail is due is decided by its row, and the same mail may be due many times.
    return dg.RunRequest()
