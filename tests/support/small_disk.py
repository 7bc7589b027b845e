"""A small disk of its own for a folder, which a test can fill to the last byte."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BLOCK = bytes(4096)
AS_ROOT = () if os.getuid() == 0 else ("sudo", "-n")
MOUNT, UNMOUNT = (shutil.which(name) or name for name in ("mount", "umount"))


@dataclass(frozen=True)
class SmallDisk:
    """The folder that the disk is mounted on."""

    folder: Path

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self) -> None:
        """Leave room for nothing."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while file.write(BLOCK):
                    pass
            except OSError:  # no space left on device
                return

    def make_room(self) -> None:
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[SmallDisk]:
    """Mount an empty file system of this size, which only root may, or who may be root without a password.

    Elsewhere the test is skipped, but not in CI: there nothing is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={size_mb}m,uid={os.getuid()},mode=0700"
    try:
        done = subprocess.run(
            [*AS_ROOT, MOUNT, "-t", "tmpfs", "-o", size, "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        why = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        why = str(error)
    if why:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"a disk that can be filled cannot be mounted: {why}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run([*AS_ROOT, UNMOUNT, "--lazy", str(folder)], check=True)
