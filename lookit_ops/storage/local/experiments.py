"""The bucket of built studies as a folder that any static server can serve.

An object `experiments/{uuid}/assets/app.js` is the file of that name. What a plain file cannot say stands in the hidden
folder `.bucket`, which holds no secret:

    environment                       whose bucket this is
    objects/{xx}/{sha256 of key}.json   content type, cache header and checksum of an object
    pages/{key}/{generation}/         one version of a page: its content beside metadata.json
    incoming/                         files being written; a rename takes them to their place
    locks/                            256 files to lock by, so that none ever has to be deleted

A page's content and metadata must change in one step, but a rename moves one file. So the public `index.html` is a
relative symbolic link to the content within one version's folder. A new version is written next to the old one and
brought to disk; then a new link takes the old one's place by a rename: that is the commit. Whoever opens `index.html`
gets one whole version; whoever asks for its metadata reads the link first, and so gets what belongs to it. The
comparison with the seen generation and the rename happen under a lock of the operating system, which a dead process
cannot hold. Superseded versions stay for an hour: a reader may have followed the link but not have opened the file yet.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from lookit_ops.storage.errors import GenerationMismatch, NameTaken, PathTaken, StorageError, WrongEnvironment
from lookit_ops.storage.experiments import HIDDEN, StoredFile, StoredPage, check_key
from lookit_ops.storage.local.files import LocalFiles, as_json

_KEEP_SUPERSEDED_MICROSECONDS = 3600 * 10**6


class LocalExperimentBucket(LocalFiles):
    """A folder as a bucket. Safe for many threads and processes on one machine."""

    def close(self) -> None:
        """See `ExperimentBucket.close`. A folder has no connections."""

    def claim_environment(self, environment: str) -> None:
        """See `ExperimentBucket.claim_environment`."""
        mark = self._hidden / "environment"
        with self._translated("environment"), self._alone("environment"):
            try:
                owner = mark.read_text(encoding="utf-8").strip()
            except FileNotFoundError:
                self._write(mark, f"{environment}\n".encode())
            else:
                if owner != environment:
                    raise WrongEnvironment(
                        f"the bucket {self.name} belongs to the environment {owner!r}, and this is {environment!r}; "
                        "set another LOOKIT_BUCKET_FOLDER, or the right LOOKIT_ENVIRONMENT"
                    )
            self._remove_unfinished()

    def put(
        self,
        key: str,
        source: Path | bytes,
        *,
        content_type: str,
        cache_control: str,
        replace: bool = False,
        listed: Mapping[str, StoredFile] | None = None,  # here to ask the file itself costs nothing
    ) -> bool:
        """See `ExperimentBucket.put`."""
        path = self._path(key)
        try:
            digest = _sha256(source)
        except OSError as error:
            raise StorageError(f"cannot read {source}, which should go to {key}: {error.strerror or error}") from error

        # The file itself is asked, not what we noted of it: after a crash only the file is certain.
        with self._translated(key), contextlib.ExitStack() as stack:
            seen = _identity(path)
            present = seen is not None and _is(path, digest)
            arrived = None if present else stack.enter_context(self._arriving(source))
            stack.enter_context(self._alone(key))
            if (now := _identity(path)) != seen:  # put, replaced or deleted since
                present = now is not None and _is(path, digest)
            if not present and not replace and (taken := self._file_above(path)):
                raise PathTaken(
                    f"{key} in {self.name} needs a folder where {taken.relative_to(self.root)} is a file of the"
                    " deployment that is live; name one of them otherwise"
                )
            if not present and not replace and path.is_dir():
                raise PathTaken(f"{key} in {self.name} is a folder of the deployment that is live; name it otherwise")
            if not present and not replace and os.path.lexists(path):
                raise NameTaken(
                    f"{key} in {self.name} already has other contents and is never replaced, since a page in use may "
                    "name it; was the bucket changed by hand, or does the build not name files by their contents?"
                )
            if not present and arrived:
                self._place(arrived, path)
            elif not present:  # deleted since the first look
                self._write(path, source)
            self._note_headers(key, content_type, cache_control, digest)
        return not present

    def read(self, key: str) -> bytes:
        """See `ExperimentBucket.read`."""
        path = self._path(key)
        with self._translated(key):
            return path.read_bytes()

    def page(self, key: str) -> StoredPage | None:
        """See `ExperimentBucket.page`. A plain file that somebody put there counts as a page without metadata."""
        path = self._path(key)
        with self._translated(key):
            while True:
                try:
                    version = self._version(path)
                    if version is None:
                        if not path.exists():
                            return None
                        return StoredPage(path.read_bytes(), _changed_at(path), {}, _time_of(path))
                    said = json.loads((version / "metadata.json").read_bytes())
                    content = version / path.name
                    return StoredPage(content.read_bytes(), int(version.name), said["metadata"], _time_of(content))
                except FileNotFoundError:
                    # Superseded long ago and deleted while we read: then the link leads elsewhere by now.
                    if version is not None and self._version(path) == version:
                        raise

    def write_page(
        self,
        key: str,
        content: bytes,
        *,
        content_type: str,
        cache_control: str,
        metadata: Mapping[str, str],
        if_generation: int,
    ) -> int:
        """See `ExperimentBucket.write_page`."""
        path = self._path(key)
        versions = self._hidden / "pages" / key
        said = {"metadata": dict(metadata), "content_type": content_type, "cache_control": cache_control}
        with self._translated(key):
            self._require_generation(key, path, if_generation)  # before anything is written
            version = _new_version(versions, if_generation)
            generation = int(version.name)
            try:
                # Not under the lock: whoever is suspended over these bytes must hold up nobody.
                self._write(version / path.name, content)
                self._write(version / "metadata.json", as_json(said))
                self._sync(versions)
                with self._alone(key):
                    self._require_generation(key, path, if_generation)
                    (version / path.name).stat()  # gone if another page was written and deleted meanwhile
                    self._link(path, version / path.name)
            except BaseException:
                if self._generation(path) != generation:
                    shutil.rmtree(version, ignore_errors=True)
                raise
        with contextlib.suppress(OSError):  # the page is written; old versions can be removed another time
            self._remove_superseded(versions, keep={if_generation, generation})
        return generation

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        """See `ExperimentBucket.files`."""
        folder = self.root / prefix.rpartition("/")[0]
        if prefix:
            check_key(prefix.removesuffix("/"))
        found: list[StoredFile] = []
        with self._translated(prefix):
            for parent, folders, names in os.walk(folder):
                if Path(parent) == self.root and HIDDEN in folders:
                    folders.remove(HIDDEN)
                for name in names:
                    path = Path(parent) / name
                    key = path.relative_to(self.root).as_posix()
                    if not key.startswith(prefix) or key.startswith(f"{HIDDEN}/"):
                        continue
                    with contextlib.suppress(FileNotFoundError):  # deleted while we list
                        checksum = self.headers(key).get("sha256")
                        found.append(StoredFile(key, path.stat().st_size, checksum, _time_of(path)))
        yield from sorted(found, key=lambda file: file.key)

    def delete(self, key: str) -> None:
        """See `ExperimentBucket.delete`."""
        path = self._path(key)
        with self._translated(key), self._alone(key):
            version = self._version(path)
            path.unlink(missing_ok=True)
            self._headers_path(key).unlink(missing_ok=True)
            if version is not None:
                shutil.rmtree(version.parent, ignore_errors=True)

    def copy(self, source_key: str, destination_key: str) -> None:
        """See `ExperimentBucket.copy`."""
        source = self._path(source_key)
        destination = self._path(destination_key)
        headers = self.headers(source_key)  # before the bytes: without them there would be no copy
        with self._translated(source_key), self._arriving(source) as arrived:
            digest = _sha256(arrived)
            with self._alone(destination_key):
                self._place(arrived, destination)
                self._note_headers(
                    destination_key,
                    headers.get("content_type", "application/octet-stream"),
                    headers.get("cache_control", "no-cache"),
                    digest,
                )

    def headers(self, key: str) -> Mapping[str, str]:
        """Content type and cache header of an object or page, for a server that wants to send them."""
        path = self._path(key)
        with self._translated(key):
            version = self._version(path)
            said_in = version / "metadata.json" if version else self._headers_path(key)
            try:
                said = json.loads(said_in.read_bytes())
            except FileNotFoundError:
                return {}
        return {name: said[name] for name in ("content_type", "cache_control", "sha256") if name in said}

    # -- within -------------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        if check_key(key).split("/")[0] == HIDDEN:
            raise StorageError(f"{key!r} is no key for an object: {HIDDEN} is the bucket's own")
        return self.root / key

    def _headers_path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self._hidden / "objects" / digest[:2] / f"{digest}.json"

    def _note_headers(self, key: str, content_type: str, cache_control: str, sha256: str) -> None:
        noted = as_json({"key": key, "content_type": content_type, "cache_control": cache_control, "sha256": sha256})
        path = self._headers_path(key)
        if not path.exists() or path.read_bytes() != noted:
            self._write(path, noted)

    def _version(self, path: Path) -> Path | None:
        """The folder of the live version; None if the page is a plain file, or not there."""
        try:
            return (path.parent / path.readlink()).parent
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT, errno.ENOTDIR}:
                return None
            raise

    def _generation(self, path: Path) -> int:
        version = self._version(path)
        if version is not None:
            return int(version.name)
        return _changed_at(path) if path.exists() else 0

    def _require_generation(self, key: str, path: Path, expected: int) -> None:
        current = self._generation(path)
        if current != expected:
            raise GenerationMismatch(
                f"somebody else wrote {key} in {self.name} meanwhile: generation {expected} was seen, "
                f"now it is {current}; the build that came first stays"
            )

    def _remove_superseded(self, versions: Path, keep: set[int]) -> None:
        # A version was superseded when the next one was written; but one that a crash left unlinked superseded none,
        # which is why the version that was live until now is kept whatever the numbers say.
        oldest = time.time_ns() // 1000 - _KEEP_SUPERSEDED_MICROSECONDS
        known = sorted(int(folder.name) for folder in versions.iterdir() if folder.name.isdecimal())
        for generation, successor in itertools.pairwise(known):
            if successor < oldest and generation not in keep:
                shutil.rmtree(versions / str(generation), ignore_errors=True)


def _new_version(versions: Path, after: int) -> Path:
    """An empty folder for the next version of a page; its name is the generation.

    Microseconds as in Google's storage: a generation is never used twice, not even after a deletion.
    """
    generation = max(after + 1, time.time_ns() // 1000)
    while True:
        try:
            (versions / str(generation)).mkdir(parents=True)
        except FileExistsError:  # somebody else's who writes at the same time
            generation += 1
        else:
            return versions / str(generation)


def _sha256(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is(path: Path, sha256: str) -> bool:
    """Whether the file has these contents; not if it is deleted meanwhile."""
    try:
        return _sha256(path) == sha256
    except FileNotFoundError:
        return False


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What is another one when a file was put in the place of this one; None if there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _changed_at(path: Path) -> int:
    """Microseconds since 1970, which serve as the generation of a file that somebody put there by hand."""
    return path.stat().st_mtime_ns // 1000


def _time_of(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
