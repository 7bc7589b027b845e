"""The studies, and what is built and archived of them, as assets with one partition a study.

They are external: the database has the studies, and the jobs report each success. A Materialize button here could not
know for whom it acts.
"""

from __future__ import annotations

from dagster import AssetSpec

from domain.models import BuildKind
from lookit_ops.run_tags import OWNERS
from lookit_ops.runs.report import ASSET_OF, VIDEO_ARCHIVE, studies

studies_asset = AssetSpec(
    "studies",
    description="The studies in the database: content, state, approval.",
    partitions_def=studies,
    group_name="studies",
    kinds={"table"},
    owners=OWNERS,
)

experiment_preview = AssetSpec(
    ASSET_OF[BuildKind.PREVIEW],
    deps=[studies_asset],
    description="The preview of a study, for researchers: `preview_experiments/{uuid}/` in the bucket.",
    partitions_def=studies,
    group_name="experiments",
    kinds={"ember"},
    owners=OWNERS,
)

experiment_deployment = AssetSpec(
    ASSET_OF[BuildKind.DEPLOYMENT],
    deps=[studies_asset],
    description="The study as families meet it: `experiments/{uuid}/` in the bucket.",
    partitions_def=studies,
    group_name="experiments",
    kinds={"ember"},
    owners=OWNERS,
)

video_archive = AssetSpec(
    VIDEO_ARCHIVE,
    deps=["video_catalogue"],
    description="The newest zip of a study's videos; the job `build_zipfile_of_videos` makes it.",
    partitions_def=studies,
    group_name="videos",
    kinds={"zip"},
    owners=OWNERS,
)
