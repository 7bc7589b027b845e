"""Turn a commit's archive into `{root}/{owner}__{repo}/{sha}`: atomically, safely, once.

An archive is a stranger's file. Nothing of it is trusted: not its names, not its modes, not the sizes that it states.
A checkout counts only if its manifest `{sha}.json`, beside the tree and never inside it, agrees with what is on disk.
The manifest is written before the rename that makes the tree appear, so no order of crashes leaves half a checkout that
counts; one that lost files or bytes since (a half-done deletion, a power cut) no longer agrees and is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ember_build.errors import InvalidPlayer
from ember_build.removal import REMOVED, Removal, remove_old
from ember_build.source.extraction import ArchiveLimits, BrokenArchive, Contents, Extraction
from ember_build.source.github import GitHub, disk_error
from ember_build.source.repository import Repository, ResolvedCommit
from ember_build.waiting import lock

_SHA = re.compile(r"[0-9a-f]{40}")
_LOCKS, _INCOMING = ".locks", ".incoming-"


@dataclass(frozen=True, slots=True)
class Checkout:
    """A commit's files on this machine. Nobody may write into them: other builds use them, too."""

    repository: Repository
    sha: str
    path: Path
    file_count: int
    size_bytes: int
    reused: bool
    """It was here already; nothing was downloaded."""


class Checkouts:
    """The folder of checkouts on this machine."""

    def __init__(self, root: Path, github: GitHub, limits: ArchiveLimits | None = None) -> None:
        self.root = root.absolute()
        self.github = github
        self.limits = limits or ArchiveLimits()

    def cancelled_by(self, stop: threading.Event) -> Checkouts:
        """The same checkouts; what is fetched through this one ends with BuildCancelled once `stop` is set."""
        return Checkouts(self.root, replace(self.github, cancelled=stop), self.limits)

    def path_of(self, repository: Repository, sha: str) -> Path:
        """Where this commit's checkout is, or would be."""
        return self.root / repository.slug / sha

    def fetch(self, commit: ResolvedCommit) -> Checkout:
        """The commit's checkout, downloaded unless it is here already. Of two that ask at once, one waits.

        Raises:
            InvalidPlayer: the archive is too big, hostile, or still broken at the second download.
            BuildPlatformError: GitHub could not be reached, or our disk refused.
        """
        final = self.path_of(commit.repository, commit.sha)
        manifest = final.with_name(f"{commit.sha}.json")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with self._alone(commit.repository.slug, commit.sha):
                contents = _verified(final, manifest)
                reused = contents is not None
                if contents is None:
                    contents = self._make(commit, final, manifest)
                # The nightly cleanup goes by this time, so a checkout in use stays.
                os.utime(final)
                os.utime(manifest)
        except OSError as error:
            raise disk_error(error, final) from error
        return Checkout(commit.repository, commit.sha, final, contents.file_count, contents.size_bytes, reused)

    def clean(self, older_than: float, in_use: Callable[[str], bool], *, dry_run: bool) -> Removal:
        """Remove checkouts that nobody has fetched since `older_than` (seconds since 1970), and half ones of that age.

        `in_use` says whether a commit, by its SHA, is wanted by something that runs or waits. It is asked while the
        commit's lock is held, so a build either finds its checkout or fetches it anew, never half of it.
        """
        removal = Removal()
        if not self.root.is_dir():
            return removal
        for repository in sorted(self.root.iterdir()):
            if repository.name == _LOCKS:
                continue
            if repository.is_symlink() or not repository.is_dir() or repository.name.startswith((_INCOMING, REMOVED)):
                remove_old([repository], older_than, removal, in_use=lambda _: False, dry_run=dry_run)
                continue
            for path in sorted(repository.iterdir()):
                sha = path.name.removesuffix(".json")
                if not _SHA.fullmatch(sha):
                    remove_old([path], older_than, removal, in_use=lambda _: False, dry_run=dry_run)
                    continue
                with self._alone(repository.name, sha):
                    remove_old([path], older_than, removal, in_use=lambda _, sha=sha: in_use(sha), dry_run=dry_run)
        if not dry_run:
            self._remove_locks()
        return removal

    def _remove_locks(self) -> None:
        """Remove the locks of checkouts that are not there, unless they are held."""
        for path in (self.root / _LOCKS).glob("*"):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                slug, _, sha = path.name.rpartition("@")
                if not (self.root / slug / sha).exists():
                    path.unlink(missing_ok=True)

    def _make(self, commit: ResolvedCommit, final: Path, manifest: Path) -> Contents:
        # On the same file system as the final place, since a rename is atomic only there.
        with tempfile.TemporaryDirectory(prefix=_INCOMING, dir=self.root, ignore_cleanup_errors=True) as folder:
            work = Path(folder)
            try:
                contents = self._download_and_extract(commit, work, "first")
            except BrokenArchive:
                # Broken on the way, perhaps: the second time it is the archive's own fault.
                try:
                    contents = self._download_and_extract(commit, work, "second")
                except BrokenArchive as error:
                    raise InvalidPlayer(
                        f"broken archive: GitHub's archive of {commit.repository.full_name} at {commit.sha} "
                        f"cannot be read ({error}), nor could a second download"
                    ) from error
            if final.exists():  # it did not agree with its manifest
                final.rename(work / "disagreeing")
            written = work / manifest.name
            written.write_text(json.dumps(asdict(contents)), encoding="utf-8")
            written.replace(manifest)
            (work / "tree").rename(final)
        return contents

    def _download_and_extract(self, commit: ResolvedCommit, work: Path, attempt: str) -> Contents:
        archive = work / f"{attempt}.zip"
        size = self.github.download_archive(commit.repository, commit.sha, archive, self.limits.archive_bytes)
        extraction = work / f"{attempt}-tree"
        contents = Extraction(commit, archive, size, extraction, self.limits, self.github.cancelled).run()
        extraction.rename(work / "tree")
        return contents

    @contextlib.contextmanager
    def _alone(self, slug: str, sha: str) -> Generator[None, None, None]:
        """Hold the lock of this commit of this repository; the operating system lets go of it if we die.

        Raises:
            BuildCancelled: the build was cancelled while another one held it.
        """
        locks = self.root / _LOCKS
        locks.mkdir(exist_ok=True)
        path = locks / f"{slug}@{sha}"
        while True:
            with path.open("wb") as file:
                lock(file, self.github.cancelled, "another one fetched the same commit")
                # A cleanup may have removed the file between its opening and its lock: then it locks nothing.
                if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    yield
                    return


def _verified(tree: Path, manifest: Path) -> Contents | None:
    """What the manifest says, if that is what is on disk."""
    try:
        said = Contents(**json.loads(manifest.read_text(encoding="utf-8")))
        return said if tree.is_dir() and _on_disk(tree) == said else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _on_disk(tree: Path) -> Contents:
    sizes = [(Path(folder) / name).lstat().st_size for folder, _, names in os.walk(tree) for name in names]
    return Contents(len(sizes), sum(sizes))
