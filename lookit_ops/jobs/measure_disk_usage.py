"""The job `measure_disk_usage`: materializes `build_disk_usage` with its check, so that somebody is warned in time."""

from __future__ import annotations

import dagster as dg

from lookit_ops.assets.disk import build_disk_usage

measure_disk_usage = dg.define_asset_job(
    "measure_disk_usage",
    selection=dg.AssetSelection.assets(build_disk_usage),
    description="Measure how much room builds take, and warn before a disk is full.",
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": 3600},
)
