"""The built studies as assets, one partition a study: what is live, from which commit, since when.

They are external: `build_experiment` reports each success. A Materialize button here could not know for whom it acts.
"""

from __future__ import annotations

from dagster import AssetSpec

from domain.models import BuildKind
from lookit_ops.runs.report import ASSET_OF, studies

experiment_preview = AssetSpec(
    ASSET_OF[BuildKind.PREVIEW],
    description="The preview of a study, for researchers: `preview_experiments/{uuid}/` in the bucket.",
    partitions_def=studies,
    group_name="experiments",
    kinds={"ember"},
)

experiment_deployment = AssetSpec(
    ASSET_OF[BuildKind.DEPLOYMENT],
    description="The study as families meet it: `experiments/{uuid}/` in the bucket.",
    partitions_def=studies,
    group_name="experiments",
    kinds={"ember"},
)
