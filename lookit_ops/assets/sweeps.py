"""The asset `deployment_sweep`: what each night's sweep of the bucket did, in numbers that Dagster plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from lookit_ops.deployments.sweep import Sweep
from lookit_ops.platform import Platform

deployment_sweep = dg.AssetSpec(
    "deployment_sweep",
    description="What the nightly sweep removed from the bucket of built studies; the job `sweep_deployments` reports.",
    group_name="experiments",
)


def facts(platform: Platform, done: Sweep) -> Mapping[str, Any]:
    """The numbers of one sweep."""
    return {
        "bucket": platform.bucket.name,
        "files removed": len(done.removed),
        "bytes freed": done.freed_bytes,
        "folders left alone": len(done.left_alone),
        "failures": len(done.failed),
    }
