"""Removes from the bucket of built studies what no kept deployment names, a day after it was last needed.

A file is needed as long as a kept deployment names it, and for `older_than` after the last deployment that named it was
superseded: a family may have loaded its page just before. When that was is told by the deployments themselves (each
says since when the one that it replaced had been live), not by the files' own times. What was uploaded and never became
live is removed once it is that old.

What is never touched: the folder of a running build; a folder whose live page does not say what it names; every
index.html; everything outside the studies' folders, such as the public list and the mark of the environment.

A build that begins while the pruning works is seen before each single removal; and each build looks, right before its
page is written, whether all that it names is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby

from lookit_ops.deployments.manifest import (
    DEPLOYMENTS,
    FOLDERS,
    KEPT,
    MANIFEST,
    NOTHING_YET,
    PAGE,
    PastDeployment,
    history,
    kept_of,
)
from lookit_ops.storage.errors import StorageError
from lookit_ops.storage.experiments import ExperimentBucket, StoredFile

logger = logging.getLogger(__name__)

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a pruning did, or in a dry run would have done."""

    removed: tuple[StoredFile, ...]
    left_alone: dict[str, str] = field(default_factory=dict)
    """Folders that were not pruned, and why."""
    failed: dict[str, str] = field(default_factory=dict)
    """Files and folders that the storage failed with. The next cleanup tries again."""

    @property
    def freed_bytes(self) -> int:
        """How much room the removed files took."""
        return sum(file.size_bytes for file in self.removed)

    @property
    def trouble(self) -> str:
        """What could not be pruned, in a sentence; empty if everything could."""
        if not self.failed:
            return ""
        key, error = next(iter(self.failed.items()))
        return (
            f"{len(self.failed)} files or folders could not be pruned, the first of them {key}: {error};"
            " the next cleanup tries again"
        )


class _LeftAlone(Exception):
    """This folder is not pruned."""


def prune(
    bucket: ExperimentBucket,
    *,
    keep: int = KEPT,
    older_than: timedelta = DAY,
    now: datetime,
    in_use: Callable[[str], bool],
    dry_run: bool = False,
) -> Pruned:
    """Remove what is no longer needed; one failure never stops the rest.

    `keep` is how many builds of a study stay restorable, the live one among them. `in_use` says whether a build or a
    rollback is running in a folder of the bucket; it is asked often, and from when a request is claimed until it has an
    end it must say so.
    """
    if keep < 1:
        raise ValueError(f"at least the live deployment is kept, so `keep` cannot be {keep}")
    if now.tzinfo is None:
        raise ValueError("`now` must have a time zone")
    removed: list[StoredFile] = []
    left_alone: dict[str, str] = {}
    failed: dict[str, str] = {}
    for root in FOLDERS.values():
        try:
            for folder, files in _folders(bucket, root):
                try:
                    for file in _unneeded(bucket, folder, files, keep, now - older_than, in_use):
                        if not dry_run and not _remove(bucket, folder, file, in_use, failed):
                            continue
                        removed.append(file)
                except _LeftAlone as reason:
                    left_alone[folder] = str(reason)
                except Exception as error:  # of the storage, or of whoever is asked what is in use
                    logger.exception("%s in %s cannot be pruned now", folder, bucket.name)
                    failed[folder] = str(error)
        except StorageError as error:
            logger.exception("%s/ in %s cannot be listed now", root, bucket.name)
            failed[root] = str(error)
    return Pruned(tuple(removed), left_alone, failed)


def _folders(bucket: ExperimentBucket, root: str) -> Iterator[tuple[str, list[StoredFile]]]:
    """Each study's folder with all its files; one at a time, since there may be thousands."""
    for folder, files in groupby(bucket.files(f"{root}/"), key=lambda file: "/".join(file.key.split("/")[:2])):
        members = [file for file in files if file.key.startswith(f"{folder}/")]
        if members:
            yield folder, members


def _unneeded(
    bucket: ExperimentBucket,
    folder: str,
    files: list[StoredFile],
    keep: int,
    before: datetime,
    in_use: Callable[[str], bool],
) -> list[StoredFile]:
    """What may go, manifests last and the oldest of them first, so that the chain of those that stay has no gap.

    The files were listed before this is called, `in_use` is asked next, and the page is read last: a build that ended
    in between is in the history, one that has not is in use, and one that begins later finds these files as they are.
    """
    if in_use(folder):
        raise _LeftAlone("a build is running")
    past = history(bucket, folder)
    if not past:
        _check_nothing_is_live(bucket, folder, files)
    needed = _needed(folder, past, keep, before)
    # What no manifest names may belong to what was live before the oldest deployment that we know of.
    nothing_before = not past or past[-1].live_since <= before
    known = {file.key for found in past for file in found.manifest.files} | {found.manifest_key for found in past}
    unneeded = [
        file
        for file in files
        if file.key not in needed and file.updated_at <= before and (nothing_before or file.key in known)
    ]
    age = {found.manifest_key: number for number, found in enumerate(past, 1)}
    return sorted(unneeded, key=lambda file: (_is_manifest(file), -age.get(file.key, 0)))


def _needed(folder: str, past: Sequence[PastDeployment], keep: int, before: datetime) -> set[str]:
    """All that the deployments name which are kept, or were live after that time."""
    stay = list(kept_of(past, keep))
    stay += [found for found in past[len(stay) :] if found.superseded_at is None or found.superseded_at > before]
    needed = {f"{folder}/{PAGE}"}
    for found in stay:
        needed.add(found.manifest_key)
        for file in found.manifest.files:
            needed |= {file.key, f"{folder}/{file.path}"}
    return needed


def _check_nothing_is_live(bucket: ExperimentBucket, folder: str, files: list[StoredFile]) -> None:
    """Only where surely nothing was ever deployed, leftovers of failed builds may go. Raises _LeftAlone."""
    page = bucket.page(f"{folder}/{PAGE}")
    if page is not None and page.content != NOTHING_YET:
        raise _LeftAlone("its index.html does not say which files it needs")
    if any(map(_is_manifest, files)):
        raise _LeftAlone("it has deployments, but no index.html that says which of them is live")


def _is_manifest(file: StoredFile) -> bool:
    return f"/{DEPLOYMENTS}/" in file.key and file.key.endswith(f"/{MANIFEST}") and file.key.count("/") == 4


def _remove(
    bucket: ExperimentBucket, folder: str, file: StoredFile, in_use: Callable[[str], bool], failed: dict[str, str]
) -> bool:
    if in_use(folder):
        raise _LeftAlone("a build has begun")
    try:
        bucket.delete(file.key)
    except StorageError as error:
        logger.warning("%s cannot be removed now: %s", file.key, error)
        failed[file.key] = str(error)
        return False
    return True
