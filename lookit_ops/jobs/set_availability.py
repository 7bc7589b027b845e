"""The job `set_availability`: takes down what families may no longer get, and puts back what they may get again."""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts and configs as they are.

import dagster as dg

from lookit_ops.maintenance.availability import bring_pages_into_line
from lookit_ops.run_tags import KIND_TAG
from lookit_ops.services import Services


@dg.op(
    name="set_pages",
    description="Write the page that each study's state says, its own or one that says that it is not available.",
)
def set_pages(context: dg.OpExecutionContext, services: dg.ResourceParam[Services]) -> None:
    done = bring_pages_into_line(services)
    context.add_output_metadata(
        {"taken down": len(done.taken_down), "put back": len(done.put_back), "failed": len(done.failed)}
    )
    if done.failed:
        raise dg.Failure(
            f"the pages of studies {', '.join(done.failed)} cannot be changed now; the log says why. The sensor asks"
            " again",
            allow_retries=False,
        )


@dg.job(
    description="Take studies down, and put them back, as their states say. A sensor starts it.",
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": 600, "dagster/priority": "10", KIND_TAG: "availability"},
)
def set_availability() -> None:
    """One op: each page is noted, written on a condition, and noted again."""
    set_pages()
