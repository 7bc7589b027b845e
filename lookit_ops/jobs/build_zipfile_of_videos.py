"""The job `build_zipfile_of_videos`: a request becomes an archive in the bucket, and a mail with a link to it.

claim -> plan -> stream -> finish, one way. Each step takes what the one before returned.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts and configs as they are.

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import dagster as dg
from pydantic import Field

from domain.errors import DomainError, InvalidRequest, QueueIsFull
from domain.lookup import find_study, find_user
from domain.models import ArchiveKind
from domain.requests.archives import ArchiveClaim
from lookit_ops.archives.plan import ArchivePlan, plan_archive, probe
from lookit_ops.archives.stream import Progress, stream_archive
from lookit_ops.failures import as_dagster_failure
from lookit_ops.run_tags import KIND_TAG, tags_of
from lookit_ops.runs.archive import ArchiveRun
from lookit_ops.runs.report import archived, studies
from lookit_ops.services import Services
from lookit_ops.storage.errors import StorageError, VideoChanged, VideoUnreadable

logger = logging.getLogger(__name__)

LISTINGS = 3
"""How often one attempt begins again from the listing when a video changes under it."""


class BuildZipfileOfVideos(dg.Config):
    """Which videos: a waiting request by its id, or a study and the person who asks."""

    study: str = Field("", description="UUID or name of the study; leave empty when you give request_id.")
    requesting_user: str = Field(
        "", description="E-mail address of the person for whom you ask; their permissions count. Empty with request_id."
    )
    kind: Literal["consent", "all"] = Field(
        "consent", description="Consent footage, or all videos of responses whose newest consent ruling is accepted."
    )
    name_contains: str = Field("", description="Only videos whose object name contains this, letter by letter.")
    request_id: int | None = Field(None, description="Id of a waiting archive request (`lookit-ops videos list`).")


@dataclass(frozen=True, slots=True)
class FoundPlan:
    """What goes in, and the size of the archive of that name if there is one already."""

    plan: ArchivePlan
    archive_bytes: int | None


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive in the bucket, and what is in it."""

    plan: ArchivePlan
    archive_bytes: int
    was_there: bool


@dg.op(
    name="claim_archive",  # names of ops are unique among all jobs; in this one it is called `claim`, as in the other
    description="Take the request and start its lease.",
)
def claim(
    context: dg.OpExecutionContext,
    config: BuildZipfileOfVideos,
    services: dg.ResourceParam[Services],
    archive_run: dg.ResourceParam[ArchiveRun],
) -> ArchiveClaim:
    try:
        claimed = (
            _launch(services, archive_run, config)
            if config.request_id is None
            else _claim(archive_run, config.request_id)
        )
    except (DomainError, StorageError) as error:
        raise as_dagster_failure(archive_run.failure("claim", error)) from None
    with archive_run.step(context):
        context.instance.add_run_tags(context.run_id, tags_of(claimed))
        context.add_output_metadata(
            {
                "study": f"{claimed.study_name} ({claimed.study_uuid})",
                "request": claimed.request_id,
                "kind": claimed.kind.value,
                "name contains": claimed.name_contains,
                "asked for by": claimed.requested_by,
                "attempt": claimed.attempt,
            }
        )
        return claimed


@dg.op(
    description="Select the person's videos, list the bucket, and look whether the archive is there already.",
)
def plan(
    context: dg.OpExecutionContext,
    claimed: ArchiveClaim,
    services: dg.ResourceParam[Services],
    archive_run: dg.ResourceParam[ArchiveRun],
) -> FoundPlan:
    with archive_run.step(context):
        found = _plan(services, archive_run, claimed)
        context.add_output_metadata(
            {
                "archive": found.plan.archive_key,
                "was there already": found.archive_bytes is not None,
                "videos": len(found.plan.videos),
                "bytes": found.plan.video_bytes,
                "missing": len(found.plan.missing),
                "without permission": found.plan.without_permission,
                "without consent": found.plan.without_consent,
            }
        )
        return found


@dg.op(
    description="Read the videos and write the archive, in parts that are joined at the end. Nothing touches the disk.",
)
def stream(
    context: dg.OpExecutionContext,
    claimed: ArchiveClaim,
    found: FoundPlan,
    services: dg.ResourceParam[Services],
    archive_run: dg.ResourceParam[ArchiveRun],
) -> Archive:
    with archive_run.step(context):
        archive, progress = _stream(services, archive_run, claimed, found)
        metadata: dict[str, object] = {
            "bucket": services.archives.name,
            "archive": archive.plan.archive_key,
            "bytes": archive.archive_bytes,
            "was there already": archive.was_there,
        }
        if progress is not None:
            metadata |= {"videos read": progress.files, "MB per second": round(progress.bytes_per_second / 1e6, 1)}
        context.add_output_metadata(metadata)
        return archive


@dg.op(
    name="finish_archive",
    description="Record it in the study's log, and tell who asked: the mail gets its link when it is sent.",
)
def finish(
    context: dg.OpExecutionContext,
    archive: Archive,
    services: dg.ResourceParam[Services],
    archive_run: dg.ResourceParam[ArchiveRun],
) -> None:
    with archive_run.step(context):
        facts = archive.plan.facts(archive.archive_bytes, was_there=archive.was_there)
        archive_run.finish(facts)
        materialization = archived(archive_run.held(), facts)
        context.instance.add_dynamic_partitions(studies.name or "", [materialization.partition or ""])
        context.log_event(materialization)


@dg.job(
    description="Zip a study's videos from S3 into the bucket of archives, and mail a link to the person who asked.",
    executor_def=dg.in_process_executor,  # a process per op costs 5 to 7 s
    tags={"dagster/max_runtime": 6 * 3600, KIND_TAG: "archive"},
)
def build_zipfile_of_videos() -> None:
    """The way of an archive."""
    claimed = claim.alias("claim")()
    finish.alias("finish")(stream(claimed, plan(claimed)))


def _claim(archive_run: ArchiveRun, request_id: int) -> ArchiveClaim:
    """Claim a request that waits; without room it goes on waiting. Raises what the ledger raises."""
    try:
        return archive_run.claim(request_id)
    except QueueIsFull:
        archive_run.services.archive_queue.release(request_id, archive_run.submission)
        raise


def _launch(services: Services, archive_run: ArchiveRun, config: BuildZipfileOfVideos) -> ArchiveClaim:
    """Ask for what this run was configured to make. Raises InvalidRequest, PermissionDenied, ..."""
    if not config.study.strip() or not config.requesting_user.strip():
        raise InvalidRequest(
            "give either request_id, or both study and requesting_user; study was"
            f" {config.study!r} and requesting_user {config.requesting_user!r}"
        )
    with services.sessions.begin() as session:
        study, user = find_study(session, config.study), find_user(session, config.requesting_user)
    origin = f"on behalf of {user.email} through Dagster"
    return archive_run.launch(study.id, user.id, ArchiveKind(config.kind), config.name_contains, origin)


def _plan(
    services: Services, archive_run: ArchiveRun, claimed: ArchiveClaim, unreadable: Mapping[str, str] | None = None
) -> FoundPlan:
    made = archive_run.answer_of(
        lambda: plan_archive(services, claimed, unreadable, archive_run.stop), "the videos were listed"
    )
    size = archive_run.answer_of(lambda: services.archives.size_of(made.archive_key), "the archive was looked for")
    return FoundPlan(made, size)


def _stream(
    services: Services, archive_run: ArchiveRun, claimed: ArchiveClaim, found: FoundPlan
) -> tuple[Archive, Progress | None]:
    """Make the archive, from a new listing whenever a video turns out to be no longer the listed one, or unreadable."""
    last: Progress | None = None
    unreadable: dict[str, str] = {}

    def report(progress: Progress) -> None:
        nonlocal last
        last = progress
        logger.info("%s", progress)

    for listing in range(1, LISTINGS + 1):
        if found.archive_bytes is not None:
            logger.info("%s is in %s already", found.plan.archive_key, services.archives.name)
            return Archive(found.plan, found.archive_bytes, was_there=True), last
        try:
            archives = archive_run.answer_of(lambda: services.archives, "the bucket of archives was opened")
            size = stream_archive(
                found.plan,
                services.videos,
                archives,
                archive_run.scratch,
                stop=archive_run.stop,
                before_commit=archive_run.check,
                report=report,
            )
        except (VideoChanged, VideoUnreadable) as change:
            if listing == LISTINGS:
                raise
            logger.warning("%s; beginning again from the listing", change)
            archive_run.check()
            if isinstance(change, VideoUnreadable):
                unreadable |= archive_run.answer_of(
                    partial(probe, services, found.plan, archive_run.stop), "the videos were tried"
                )
            found = _plan(services, archive_run, claimed, unreadable)
        else:
            return Archive(found.plan, size, was_there=False), last
    raise AssertionError("the last listing returns or raises")
