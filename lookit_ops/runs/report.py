"""What Dagster is told of a build or an archive that succeeded: a materialization of the study's partition."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from dagster import AssetKey, AssetMaterialization, DagsterInstance, DynamicPartitionsDefinition, MetadataValue
from sqlalchemy import select

from domain.escaping import markdown_list
from domain.models import BuildKind, BuildRequest, Study, StudyLog
from domain.requests.archives import ArchiveClaim, ArchiveFacts
from lookit_ops.services import Services

logger = logging.getLogger(__name__)

studies = DynamicPartitionsDefinition(name="studies")

ASSET_OF: dict[BuildKind, AssetKey] = {
    BuildKind.PREVIEW: AssetKey("experiment_preview"),
    BuildKind.DEPLOYMENT: AssetKey("experiment_deployment"),
}

VIDEO_ARCHIVE = AssetKey("video_archive")


def archived(claim: ArchiveClaim, facts: ArchiveFacts) -> AssetMaterialization:
    """Return what an archive that succeeded means for its asset."""
    metadata = {
        "study": claim.study_name,
        "request": claim.request_id,
        "kind": claim.kind.value,
        "name contains": claim.name_contains,
        "asked for by": claim.requested_by,
        "archive": facts.archive_key,
        "bytes": facts.archive_bytes,
        "videos": facts.video_count,
        "missing": len(facts.missing),
        "was there already": facts.was_there,
    }
    return AssetMaterialization(VIDEO_ARCHIVE, partition=str(claim.study_uuid), metadata=metadata)


def built(services: Services, request_id: int) -> AssetMaterialization:
    """What a build that succeeded means for its asset, as the study's log tells it."""
    finished = (
        select(StudyLog, BuildRequest, Study)
        .join(BuildRequest, BuildRequest.id == StudyLog.build_request_id)
        .join(Study, Study.id == StudyLog.study_id)
        .where(BuildRequest.id == request_id)
    )
    with services.sessions.begin() as session:
        log, request, study = session.execute(finished).one()
    kind, uuid = BuildKind(request.kind), str(study.uuid)
    metadata = {
        "study": study.name,
        "state": log.state_after,
        "link": MetadataValue.url(services.links.built(kind, uuid)),
        "repository": log.extra["repository"],
        "sha": log.extra["sha"],
        "why this sha": log.extra["sha_reason"],
        **({"warnings": MetadataValue.md(markdown_list(log.extra["warnings"]))} if "warnings" in log.extra else {}),
        **log.extra.get("facts", {}),
        "finished": MetadataValue.timestamp(log.created_at),
    }
    return AssetMaterialization(ASSET_OF[kind], partition=uuid, metadata=metadata)


def report_build(instance: DagsterInstance, services: Services, request_id: int) -> None:
    """Tell Dagster of a build that was finished outside of its own run's last step.

    The build has ended well, so trouble here is logged, and the run goes on.
    """
    try:
        event = built(services, request_id)
        instance.add_dynamic_partitions(studies.name or "", [event.partition or ""])
        instance.report_runless_asset_event(event)
    except Exception:
        logger.exception("build request %s succeeded, but its asset cannot be reported", request_id)


def report_builds(services: Services, request_ids: Iterable[int]) -> None:
    """The same from outside of any run, to the instance that DAGSTER_HOME names."""
    with DagsterInstance.get() as instance:
        for request_id in request_ids:
            report_build(instance, services, request_id)
