"""The assets about room: what each cleanup did, and `build_disk_usage`, which warns before a disk is full."""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

from collections.abc import Mapping
from typing import Any

import dagster as dg

from ember_build.disk import MB
from ember_build.errors import BuildPlatformError
from ember_build.removal import Removal
from lookit_ops.failures import as_dagster_failure, failure_of
from lookit_ops.maintenance.cleanup import CLEANUPS
from lookit_ops.maintenance.disk_usage import disk_usage
from lookit_ops.run_tags import OWNERS
from lookit_ops.services import Services

GROUP = "operations"
WARNS_AT = 2
"""How many times the room that a build needs must be free for the check to be content."""

cleanup_assets = {
    cleanup.name: dg.AssetSpec(
        f"cleanup_of_{cleanup.name}",
        description=f"{cleanup.description} Each night's numbers; the job `cleanup_{cleanup.name}` reports them.",
        group_name=GROUP,
        kinds={"cleanup"},
        owners=OWNERS,
    )
    for cleanup in CLEANUPS
}


def facts(done: Removal) -> Mapping[str, Any]:
    """The numbers of one cleanup."""
    return {
        "removed": len(done.removed),
        "freed MB": round(done.freed_bytes / MB, 1) if done.size_is_known else "unknown",
        "kept, being in use": done.in_use,
        "failures": len(done.failed),
    }


@dg.asset(
    name="build_disk_usage",
    description="How much room builds take, and how much is free, in the home and on the Docker engine.",
    group_name=GROUP,
    kinds={"disk"},
    owners=OWNERS,
    check_specs=[
        dg.AssetCheckSpec(
            "room_for_builds",
            asset="build_disk_usage",
            description="Warns while there is room for builds still; fails when no build may start any more.",
        )
    ],
)
def build_disk_usage(context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]) -> dg.MaterializeResult:
    try:
        told = disk_usage(services)
    except BuildPlatformError as error:
        raise as_dagster_failure(failure_of("build_disk_usage", error)) from None
    return dg.MaterializeResult(metadata=told, check_results=[room_check(told, services.settings.free_disk_mb)])


def room_check(told: Mapping[str, float], needed_mb: int) -> dg.AssetCheckResult:
    """Compare what is free with what a build needs."""
    free = {name: value for name, value in told.items() if name.endswith("free MB")}
    place, least = min(free.items(), key=lambda entry: entry[1])
    return dg.AssetCheckResult(
        check_name="room_for_builds",
        passed=least >= WARNS_AT * needed_mb,
        severity=dg.AssetCheckSeverity.WARN if least >= needed_mb else dg.AssetCheckSeverity.ERROR,
        metadata={**free, "a build needs MB": needed_mb},
        description=f"{place.split(':')[0]} has {least:,.0f} MB free; a build needs {needed_mb:,} MB to start, and"
        f" {WARNS_AT * needed_mb:,} MB are comfortable",
    )
