"""Stamps a folder into another one, in a child process with limits: the files are a stranger's."""

from __future__ import annotations

import threading
from pathlib import Path

from ember_build.bounded import Bounds, run_bounded
from ember_build.bundle import Bundle, check_bundle
from ember_build.templates.stamping import NotStampable, first_difference, read_folder, stamp

BOUNDS = Bounds(cpu_seconds=30, seconds=120, result_mb=400)
"""For the largest bundle that a build may make; the real player takes a tenth of a second."""


def stamp_folder(
    root: Path, prefix: str, output: Path, wanted: str, cancelled: threading.Event | None = None
) -> Bundle:
    """Write the bundle of the folder `root`, built for `prefix`, as that for `wanted` into the new folder `output`.

    Raises:
        NotStampable: the bundle has something that cannot be explained.
        PlayerBuildFailed: what came out is no complete bundle.
        BuildPlatformError: this machine could not read or write the files.
        BuildCancelled: `cancelled` was set.
    """
    folders = (str(root.absolute()), prefix, str(output.absolute()), wanted)
    refusal = run_bounded(write_stamped, *folders, subject="the template", bounds=BOUNDS, cancelled=cancelled)
    if refusal:
        raise NotStampable(refusal)
    return check_bundle(output, wanted, cancelled=cancelled)


def compare_with_build(
    root: Path, prefix: str, built: Path, wanted: str, cancelled: threading.Event | None = None
) -> None:
    """Make sure that the template `root`, stamped for `wanted`, equals a full build. Raises NotStampable."""
    folders = (str(root.absolute()), prefix, str(built.absolute()), wanted)
    refusal = run_bounded(find_difference, *folders, subject="the template", bounds=BOUNDS, cancelled=cancelled)
    if refusal:
        raise NotStampable(refusal)


def write_stamped(root: str, prefix: str, output: str, wanted: str) -> str:
    """Stamp and write in this process; return why it was refused, or nothing."""
    try:
        stamped = stamp(read_folder(Path(root)), prefix, wanted)
    except NotStampable as refusal:
        return str(refusal)
    for path, content in stamped.items():
        file = Path(output, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return ""


def find_difference(root: str, prefix: str, built: str, wanted: str) -> str:
    """Stamp in this process and compare; return the first difference, or why it was refused, or nothing."""
    try:
        stamped = stamp(read_folder(Path(root)), prefix, wanted)
    except NotStampable as refusal:
        return str(refusal)
    different = first_difference(stamped, read_folder(Path(built)))
    return f"{different} differs between the stamped bundle and a full build" if different else ""
