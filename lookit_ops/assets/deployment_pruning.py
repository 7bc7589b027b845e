"""The asset `deployment_pruning`: what each night's pruning of the bucket did, in numbers that Dagster plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from lookit_ops.assets.experiments import experiment_deployment, experiment_preview
from lookit_ops.deployments.prune import Pruned
from lookit_ops.run_tags import OWNERS
from lookit_ops.services import Services

deployment_pruning = dg.AssetSpec(
    "deployment_pruning",
    description="What the job `prune_deployments` removed from the bucket of built studies at night.",
    group_name="experiments",
    deps=[experiment_deployment, experiment_preview],
    kinds={"cleanup"},
    owners=OWNERS,
)


def facts(services: Services, done: Pruned) -> Mapping[str, Any]:
    """The numbers of one pruning."""
    return {
        "bucket": services.bucket.name,
        "files removed": len(done.removed),
        "bytes freed": done.freed_bytes,
        "folders left alone": len(done.left_alone),
        "failures": len(done.failed),
    }
