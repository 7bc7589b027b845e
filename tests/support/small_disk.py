"""A small disk of its own for a folder, which a test can fill to the last byte."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BLOCK = bytes(4096)
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
    """Mount an empty file system of this size; a test is skipped where that is not allowed, since only root may."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = [MOUNT, "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"a disk that can be filled needs `mount`: {error}")
    if done.returncode != 0:
        pytest.skip(f"a disk that can be filled cannot be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run([UNMOUNT, "--lazy", str(folder)], check=True)
