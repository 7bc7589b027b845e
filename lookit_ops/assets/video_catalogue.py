"""The asset `video_catalogue`: the table of videos, compared with the bucket every night."""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

from collections.abc import Mapping
from typing import Any

import dagster as dg

from domain.errors import InvalidRequest
from domain.escaping import markdown_code, markdown_text, one_line
from domain.videos.catalogue import CatalogueReport, Found
from lookit_ops.archives.catalogue import refresh_catalogue, without_row
from lookit_ops.run_tags import OWNERS
from lookit_ops.services import Services
from lookit_ops.storage.errors import StorageError

EVERY_VIDEO_HAS_A_ROW = "every_video_has_a_row"
EVERY_BUCKET_IS_READ = "every_bucket_is_read"


def _named(studies: Found) -> dg.MetadataValue:
    names = ", ".join(map(markdown_text, studies.examples))
    return dg.MetadataValue.md(f"{studies.count}, such as {names}" if studies.count else "none")


def facts(bucket: str, report: CatalogueReport) -> Mapping[str, Any]:
    """What the asset's page tells of one comparison."""
    lines = [
        f"- **{finding}**: {found.count}, as {', '.join(map(markdown_code, found.examples))}"
        for finding, found in report.without_row.items()
    ]
    return {
        "bucket": bucket,
        "listed": report.listed,
        "added": report.added,
        "changed": report.changed,
        "came back": report.returned,
        "found in another bucket": report.moved,
        "gone": report.gone.count,
        "gone, for example": ", ".join(report.gone.examples),
        "without row": without_row(report),
        "in buckets that are not read": ", ".join(
            f"{n} in {one_line(bucket)}" for bucket, n in report.not_read.items()
        ),
        "studies without consent footage": _named(report.unmarked),
        "objects without a row": dg.MetadataValue.md("\n".join(lines) or "none"),
    }


@dg.asset(
    name="video_catalogue",
    description="The table of videos, brought up to date from a listing of the buckets. What no row can be made for is"
    " reported, never guessed; if implausibly many videos are gone, nothing is changed.",
    group_name="videos",
    kinds={"table"},
    owners=OWNERS,
    check_specs=[
        dg.AssetCheckSpec(
            EVERY_VIDEO_HAS_A_ROW,
            asset="video_catalogue",
            description="Warns of objects in the bucket that are nobody's test and belong to no known response.",
        ),
        dg.AssetCheckSpec(
            EVERY_BUCKET_IS_READ,
            asset="video_catalogue",
            description="Warns of rows whose bucket is not among LOOKIT_VIDEOS_BUCKET and LOOKIT_VIDEOS_OTHER_BUCKETS.",
        ),
    ],
)
def video_catalogue_asset(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]
) -> dg.MaterializeResult:
    try:
        report = refresh_catalogue(services)
    except (InvalidRequest, StorageError) as error:
        raise dg.Failure(services.redact(str(error)), allow_retries=False) from None
    count = without_row(report)
    found = facts(services.videos.name, report)
    return dg.MaterializeResult(
        metadata=found,
        check_results=[
            dg.AssetCheckResult(
                passed=count == 0,
                check_name=EVERY_VIDEO_HAS_A_ROW,
                severity=dg.AssetCheckSeverity.WARN,
                description=f"{count} objects of {report.listed} have no row" if count else "every video has a row",
                metadata={"objects without a row": found["objects without a row"]},
            ),
            dg.AssetCheckResult(
                passed=not report.not_read,
                check_name=EVERY_BUCKET_IS_READ,
                severity=dg.AssetCheckSeverity.WARN,
                description=found["in buckets that are not read"] or "every row names a bucket that is read",
            ),
        ],
    )


refresh_video_catalogue = dg.define_asset_job(
    "refresh_video_catalogue",
    selection=[video_catalogue_asset],
    description="Compare the table of videos with the buckets.",
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": 3600},
)
