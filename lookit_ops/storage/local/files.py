"""Files in a folder that appear whole: written aside, brought to disk, and put in place by a rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from lookit_ops.storage.errors import NoSuchObject, StorageError
from lookit_ops.storage.experiments import HIDDEN

_KEEP_UNFINISHED_SECONDS = 24 * 3600
_CHUNK_BYTES = 2**20


class LocalFiles:
    """A folder as a bucket: how its files are written, and the lock for each key."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._hidden = self.root / HIDDEN

    @property
    def name(self) -> str:
        """The folder's path."""
        return str(self.root)

    def _write(self, target: Path, source: Path | bytes) -> None:
        """Put a whole file in place by a rename, once its bytes are on disk."""
        with self._arriving(source) as arrived:
            self._place(arrived, target)

    def _link(self, target: Path, leads_to: Path) -> None:
        """Put a relative symbolic link in place by a rename."""
        with self._incoming() as temporary:
            temporary.symlink_to(os.path.relpath(leads_to, target.parent))
            self._place(temporary, target)

    @contextlib.contextmanager
    def _arriving(self, source: Path | bytes) -> Generator[Path]:
        """A file of these bytes, on disk, to be put in place; removed if it was not.

        No lock is needed for it, and none should be held: whoever is suspended over many bytes must hold up nobody.
        """
        with self._incoming() as temporary:
            with temporary.open("xb") as file:
                _pour(source, file)
                file.flush()
                os.fsync(file.fileno())
            yield temporary

    @contextlib.contextmanager
    def _incoming(self) -> Generator[Path]:
        """A name for a file that is to be renamed; removed if it was not."""
        incoming = self._hidden / "incoming"
        incoming.mkdir(parents=True, exist_ok=True)
        temporary = incoming / uuid4().hex
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _remove_unfinished(self) -> None:
        """Remove what killed processes were writing, a day ago: by then no living one is at it."""
        before = time.time() - _KEEP_UNFINISHED_SECONDS
        for temporary in (self._hidden / "incoming").glob("*"):
            with contextlib.suppress(OSError):  # in place by now, removed by another process, or not ours to remove
                if temporary.lstat().st_mtime < before:
                    temporary.unlink()

    def _file_above(self, path: Path) -> Path | None:
        """The file that stands where a folder above `path` should be: an object storage may have both."""
        above = [parent for parent in path.parents if parent != self.root and self.root in parent.parents]
        return next((parent for parent in above if parent.is_file()), None)

    def _place(self, arrived: Path, target: Path) -> None:
        """Put a file or link in place by a rename.

        A file of an earlier deployment gives way to a folder of its name, and a folder to a file.
        """
        if taken := self._file_above(target):
            taken.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and not target.is_symlink():
            with self._incoming() as aside:
                target.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
        arrived.replace(target)
        self._sync(target.parent)

    def _sync(self, folder: Path) -> None:
        """Bring a folder's names to disk: a rename that a power cut undoes would be no commit."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _alone(self, key: str) -> Generator[None, None, None]:
        """Hold the lock of this key (and of some others)."""
        locks = self._hidden / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / hashlib.sha256(key.encode()).hexdigest()[:2]).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _translated(self, key: str) -> Generator[None, None, None]:
        """Our errors for the operating system's."""
        try:
            yield
        except FileNotFoundError as error:
            raise NoSuchObject(f"the bucket {self.name} has no {key}") from error
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                message = f"the disk that holds the bucket {self.name} is full; free some space and try again"
            else:
                message = (
                    f"the bucket {self.name} cannot be used for {key}: {error.strerror or error}; "
                    "check the folder and its rights"
                )
            raise StorageError(message) from error
        except (ValueError, KeyError) as error:
            raise StorageError(
                f"what the bucket {self.name} notes of {key} in {HIDDEN} cannot be read; was it changed by hand?"
            ) from error


def _pour(source: Path | bytes, file: BinaryIO) -> None:
    if isinstance(source, bytes):
        file.write(source)
        return
    with source.open("rb") as stream:
        shutil.copyfileobj(stream, file, _CHUNK_BYTES)


def as_json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode()
