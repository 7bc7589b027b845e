"""What Dagster hands to ops: the platform, made from the settings when a run starts, and the session of its request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, TypeVar

import dagster as dg

from lookit_ops.archive_session import ArchiveSession
from lookit_ops.build_session import BuildSession
from lookit_ops.platform import Platform
from lookit_ops.run_tags import SUBMISSION_TAG, number_in
from lookit_ops.settings import load_settings
from lookit_ops.work_session import WorkSession

SessionT = TypeVar("SessionT", bound=WorkSession[Any])


@dg.resource(description="Settings, database, bucket, GitHub, builder and mail of this environment.")
def platform_resource(context: dg.InitResourceContext) -> Iterator[Platform]:
    """The platform for one run; its database connections are closed afterwards."""
    platform = Platform(load_settings())
    yield platform
    platform.close()


@dg.resource(required_resource_keys={"platform"}, description="The claim, heartbeat, log and end of the run's build.")
def build_session_resource(context: dg.InitResourceContext) -> Iterator[BuildSession]:
    """The build session of one run. Its teardown runs on failure and on termination alike."""
    yield from _session(context, BuildSession)


@dg.resource(required_resource_keys={"platform"}, description="The claim, heartbeat, log and end of the run's archive.")
def archive_session_resource(context: dg.InitResourceContext) -> Iterator[ArchiveSession]:
    """The archive session of one run, likewise."""
    yield from _session(context, ArchiveSession)


def is_cancelled_by_somebody(record: dg.RunRecord) -> bool:
    """Whether a person had the run cancelled. Dagster does it too, with the same status, to one that took too long."""
    run = record.dagster_run
    if run.status not in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED):
        return False
    longest = float(run.tags.get("dagster/max_runtime", "inf"))
    return record.start_time is None or time.time() - record.start_time < longest


def _session(context: dg.InitResourceContext, kind: type[SessionT]) -> Iterator[SessionT]:
    run_id = context.run.run_id if context.run else "no run"
    log = context.log
    instance = context.instance

    def is_canceling() -> bool:
        record = instance.get_run_record_by_id(run_id) if instance else None
        return record is not None and is_cancelled_by_somebody(record)

    show = log.log if log else lambda _level, _text: None
    submission = number_in(context.run.tags, SUBMISSION_TAG) if context.run else None
    session = kind(context.resources.platform, run_id, show, is_canceling, submission)
    session.open()
    try:
        yield session
    finally:
        session.close()
