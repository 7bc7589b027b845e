"""Removes old files and folders: nothing is followed out of the folder, one failure never stops the rest."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

REMOVED = ".removed-"
"""How the names begin under which things wait for their removal: gone for everybody, whatever becomes of the rest."""


@dataclass(slots=True)
class Removal:
    """What was removed, or in a dry run would have been. Sizes in bytes on the disk."""

    removed: list[str] = field(default_factory=list)
    freed_bytes: int = 0
    in_use: int = 0
    """Old enough, but something that runs or waits uses it."""
    size_is_known: bool = True
    """False if `freed_bytes` counts less than was removed, since the engine did not say how large it was."""
    failed: dict[str, str] = field(default_factory=dict)
    """What could not be removed, and why; the next cleanup tries again."""


def size_on_disk(path: Path) -> int:
    """The bytes that a file or a folder takes on its disk; symbolic links are not followed, hard links count once."""
    seen: set[tuple[int, int]] = set()
    size_bytes = 0
    waiting = [path]
    while waiting:
        try:
            one = waiting.pop()
            status = one.lstat()
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            size_bytes += status.st_blocks * 512
            if stat.S_ISDIR(status.st_mode):
                waiting += [Path(entry.path) for entry in os.scandir(one)]
        except OSError:  # it was removed while it was looked at
            continue
    return size_bytes


def remove(path: Path, removal: Removal, *, dry_run: bool) -> None:
    """Remove a file, a link or a folder, and note what became of it.

    It is renamed first, so nobody finds half of it. A link is removed, never what it leads to.
    """
    name = str(path)
    size_bytes = size_on_disk(path)
    if dry_run:
        removal.removed.append(name)
        removal.freed_bytes += size_bytes
        return
    try:
        gone = path
        if not path.name.startswith(REMOVED):
            gone = path.with_name(f"{REMOVED}{secrets.token_hex(8)}")
            path.rename(gone)
        if gone.is_dir() and not gone.is_symlink():
            shutil.rmtree(gone)
        else:
            gone.unlink()
    except FileNotFoundError:
        return  # somebody else was quicker
    except OSError as error:
        removal.failed[name] = str(error)
        return
    removal.removed.append(name)
    removal.freed_bytes += size_bytes


def remove_old(
    candidates: Iterable[Path],
    older_than: float,
    removal: Removal,
    *,
    in_use: Callable[[Path], bool],
    dry_run: bool,
) -> None:
    """Remove those whose time of change is before `older_than` (seconds since 1970), unless they are in use."""
    for path in candidates:
        try:
            if path.lstat().st_mtime >= older_than:
                continue
        except FileNotFoundError:
            continue
        except OSError as error:
            removal.failed[str(path)] = str(error)
            continue
        if in_use(path):
            removal.in_use += 1
            continue
        remove(path, removal, dry_run=dry_run)
