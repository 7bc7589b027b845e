"""Says whether there is room for a build, and how much is missing: a full disk fails late, and others with it."""

from __future__ import annotations

import os
from pathlib import Path

from ember_build.errors import BuildPlatformError

MB = 1_000_000


def free_mb(folder: Path) -> int:
    """The MB that are free on the disk of a folder, which need not be there yet."""
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize // MB


def require_room(folder: Path, needed_mb: int) -> None:
    """Refuse a build whose files would not find room on the disk of `folder`.

    Raises:
        BuildPlatformError: naming the disk and what is missing.
    """
    require(f"the disk of {folder}", "free", free_mb(folder), needed_mb)


def require(what: str, how: str, there_mb: int, needed_mb: int) -> None:
    """Refuse a build for which not enough is there; `what` has so many MB `how`. Raises BuildPlatformError."""
    if there_mb < needed_mb:
        raise BuildPlatformError(
            f"No build may start: {what} has {there_mb:,} MB {how}, and {needed_mb:,} MB are needed; "
            f"{needed_mb - there_mb:,} MB are missing."
        )
