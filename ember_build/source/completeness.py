"""What a source archive of GitHub's leaves out: the contents of Git LFS files, and the files of submodules."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from ember_build.bounded import run_bounded

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
"""The beginning of a file that stands for one in Git LFS."""
LONGEST_LFS_POINTER = 1024
"""Bytes; by the specification of Git LFS a pointer has fewer."""

_MOST_NAMES = 5
_MOST_BYTES_OF_GITMODULES = 1_000_000
_SUBMODULE_PATH = re.compile(r"^\s*path\s*=\s*(.+?)\s*$", re.MULTILINE)


def left_out(checkout: Path, cancelled: threading.Event | None = None) -> tuple[str, ...]:
    """Return a sentence for each kind of thing that the checkout lacks; an ordinary one lacks nothing.

    Raises:
        PlayerBuildFailed: the files cannot be read within bounds.
        BuildPlatformError: this machine could not read them.
        BuildCancelled: `cancelled` was set.
    """
    found = run_bounded(find_left_out, str(checkout.absolute()), subject="the player's source", cancelled=cancelled)
    told = []
    if found["pointers"]:
        told.append(
            f"The source holds Git LFS pointers in place of {names_of(found['pointers'])}, since GitHub's archives have"
            " no files of Git LFS. Put the files themselves into the repository."
        )
    if found["submodules"]:
        told.append(
            f"The source has nothing in {names_of(found['submodules'])}, since GitHub's archives leave submodules out."
            " Put their files into the repository, or name them as packages."
        )
    return tuple(told)


def find_left_out(checkout: str) -> dict[str, list[str]]:
    """Return the paths of LFS pointers and of empty submodules; reads a stranger's files in this process."""
    root = Path(checkout)
    pointers = [path.relative_to(root).as_posix() for path in _files(root) if is_lfs_pointer(path)]
    return {"pointers": sorted(pointers), "submodules": sorted(_empty_submodules(root))}


def is_lfs_pointer(path: Path) -> bool:
    """Whether a plain file is a pointer of Git LFS."""
    if path.stat().st_size >= LONGEST_LFS_POINTER:
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def names_of(paths: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(paths)
    more = f" and {len(listed) - _MOST_NAMES:,} more" if len(listed) > _MOST_NAMES else ""
    return ", ".join(listed[:_MOST_NAMES]) + more


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _empty_submodules(root: Path) -> Iterator[str]:
    declared = root / ".gitmodules"
    if declared.is_symlink() or not declared.is_file():
        return
    with declared.open("rb") as file:
        text = file.read(_MOST_BYTES_OF_GITMODULES).decode("utf-8", "replace")
    for match in _SUBMODULE_PATH.finditer(text):
        name = match[1].strip('"')
        path = root / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            continue  # outside of the checkout: it says nothing about what is missing in it
        with contextlib.suppress(OSError, ValueError):  # no file can have this name
            if not path.exists() or (path.is_dir() and not any(path.iterdir())):
                yield name
