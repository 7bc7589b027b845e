"""Stamps a folder into another one, in a child process with limits: the files are a stranger's."""

from __future__ import annotations

import threading
from pathlib import Path
from types import FunctionType

from ember_build.bounded import Bounds, run_bounded
from ember_build.bundle import Bundle, check_bundle
from ember_build.errors import NotStampable
from ember_build.templates.stamping import first_difference, read_folder, stamp

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
    _in_child(write_stamped, root, prefix, output, wanted, cancelled)
    return check_bundle(output, wanted, cancelled=cancelled)


def compare_with_build(
    root: Path, prefix: str, built: Path, wanted: str, cancelled: threading.Event | None = None
) -> None:
    """Make sure that the template `root`, stamped for `wanted`, equals a full build. Raises as `stamp_folder` does."""
    _in_child(require_equal, root, prefix, built, wanted, cancelled)


def _in_child(
    function: FunctionType, root: Path, prefix: str, other: Path, wanted: str, cancelled: threading.Event | None
) -> None:
    arguments = (str(root.absolute()), prefix, str(other.absolute()), wanted)
    run_bounded(function, *arguments, subject="the template", bounds=BOUNDS, cancelled=cancelled)


def write_stamped(root: str, prefix: str, output: str, wanted: str) -> None:
    """Stamp and write in this process. Raises NotStampable."""
    for path, content in stamp(read_folder(Path(root)), prefix, wanted).items():
        file = Path(output, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def require_equal(root: str, prefix: str, built: str, wanted: str) -> None:
    """Stamp in this process, and raise NotStampable if a full build has made something else."""
    stamped = stamp(read_folder(Path(root)), prefix, wanted)
    if different := first_difference(stamped, read_folder(Path(built))):
        raise NotStampable(f"{different} differs between the stamped bundle and a full build")
