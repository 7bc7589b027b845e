"""What Dagster hands to ops: the services, made from the settings when a run starts, and its claimed request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import dagster as dg

from lookit_ops.run_tags import SUBMISSION_TAG, number_in
from lookit_ops.runs.archive import ArchiveRun
from lookit_ops.runs.build import BuildRun
from lookit_ops.runs.interruption import Interruption, interruption_of
from lookit_ops.runs.request_run import RequestRun
from lookit_ops.services import Services
from lookit_ops.settings import load_settings

RunT = TypeVar("RunT", bound=RequestRun[Any])


@dg.resource(description="Settings, database, bucket, GitHub, builder and mail of this environment.")
def services_resource(context: dg.InitResourceContext) -> Iterator[Services]:
    """The platform for one run; its database connections are closed afterwards."""
    services = Services(load_settings())
    yield services
    services.close()


@dg.resource(required_resource_keys={"services"}, description="The claim, heartbeat, log and end of the run's build.")
def build_run_resource(context: dg.InitResourceContext) -> Iterator[BuildRun]:
    """The claimed build of one run. Its teardown runs on failure and on termination alike."""
    yield from _run_of(context, BuildRun)


@dg.resource(required_resource_keys={"services"}, description="The claim, heartbeat, log and end of the run's archive.")
def archive_run_resource(context: dg.InitResourceContext) -> Iterator[ArchiveRun]:
    """The claimed archive of one run, likewise."""
    yield from _run_of(context, ArchiveRun)


def _run_of(context: dg.InitResourceContext, kind: type[RunT]) -> Iterator[RunT]:
    run_id = context.run.run_id if context.run else "no run"
    log = context.log
    instance = context.instance

    def interruption() -> Interruption | None:
        record = instance.get_run_record_by_id(run_id) if instance else None
        return interruption_of(record) if record else None

    show = log.log if log else lambda _level, _text: None
    submission = number_in(context.run.tags, SUBMISSION_TAG) if context.run else None
    run = kind(context.resources.services, run_id, show, interruption, submission)
    run.open()
    try:
        yield run
    finally:
        run.close()
