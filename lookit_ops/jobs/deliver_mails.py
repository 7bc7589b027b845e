"""The job `deliver_mails`: sends the mails that are due, each once, oldest first; one run for all of them."""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts and configs as they are.

import dagster as dg
from pydantic import Field

from lookit_ops.mail_delivery import deliver_mails as send_mails
from lookit_ops.run_tags import KIND_TAG
from lookit_ops.services import Services


class DeliverMails(dg.Config):
    """How much one run does."""

    limit: int = Field(200, description="How many mails this run tries at most; the next run goes on.")


@dg.op(
    name="deliver",
    description="Render each mail that is due, make its links, and hand it to the mail server.",
)
def deliver_op(context: dg.OpExecutionContext, config: DeliverMails, services: dg.ResourceParam[Services]) -> None:
    done = send_mails(services, config.limit)
    context.log.info(
        f"{done.sent} sent, {done.delayed} delayed, {done.failed} failed for good, {done.withdrawn} withdrawn"
    )
    context.add_output_metadata(
        {"sent": done.sent, "delayed": done.delayed, "failed": done.failed, "withdrawn": done.withdrawn}
    )


@dg.job(
    description="Deliver the mails that are due. A sensor starts it; a mail that is delayed waits for another run.",
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": 1800, KIND_TAG: "mails"},
)
def deliver_mails() -> None:
    """One op: mails are taken one by one, by compare-and-set, so two runs at once send none twice."""
    deliver_op()
