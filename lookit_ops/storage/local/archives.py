"""The bucket of archives as a folder, with links that expire: the default where no Google Cloud Storage is at hand.

Links lead to `lookit-ops serve` (`lookit_ops/server/archive_server.py`), which asks `opened` whether a link is good:
they are signed with a key that only this bucket has.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlencode
from uuid import uuid4

from lookit_ops.storage.archives import StoredPart
from lookit_ops.storage.errors import StorageError
from lookit_ops.storage.experiments import HIDDEN, StoredFile, check_key
from lookit_ops.storage.local.experiments import LocalExperimentBucket

_CHUNK_BYTES = 2**20
_KEY_BYTES = 32


class LocalArchiveBucket:
    """A folder as a bucket. Safe for many threads and processes on one machine."""

    def __init__(self, root: Path, base_url: str, *, now: Callable[[], float] = time.time) -> None:
        """`base_url` is where `lookit-ops serve` serves the folder, with a slash at its end."""
        self.root = root.absolute()
        self._objects = LocalExperimentBucket(root)
        self._base_url = base_url
        self._now = now

    @property
    def name(self) -> str:
        """The folder's path."""
        return str(self.root)

    def claim_environment(self, environment: str) -> None:
        """See `ArchiveBucket.claim_environment`."""
        self._objects.claim_environment(environment)

    def size_of(self, key: str) -> int | None:
        """See `ArchiveBucket.size_of`."""
        try:
            return self.path(key).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed(key, error) from error

    def put_part(self, key: str, blocks: Iterator[bytes], size_bytes: int) -> StoredPart:
        """See `ArchiveBucket.put_part`."""
        target = self.path(key)
        generation = time.time_ns() // 1000
        incoming = self._incoming(target.parent, key)
        try:
            length = 0
            with incoming.open("xb") as file:
                for block in blocks:
                    length += self._write(file, block, key)
            if length != size_bytes:
                raise StorageError(f"{key} should have {size_bytes} bytes, and {length} came")
            self._place(incoming, target, key)
        finally:
            incoming.unlink(missing_ok=True)
        return StoredPart(key, size_bytes, generation)

    def compose(self, key: str, parts: Sequence[StoredPart], scratch: str) -> None:
        """See `ArchiveBucket.compose`. The bytes are copied: a file system joins no files."""
        size = sum(part.size_bytes for part in parts)
        if self._is_there(key, size):
            return
        incoming = self._incoming(self.path(scratch), key)
        try:
            with incoming.open("xb") as file:
                for part in parts:
                    with self.path(part.key).open("rb") as source:
                        shutil.copyfileobj(source, file, _CHUNK_BYTES)
                file.flush()
                os.fsync(file.fileno())
                if file.tell() != size:
                    raise StorageError(f"the parts of {key} have {file.tell()} bytes instead of {size}")
            self._place(incoming, self.path(key), key)
        except FileNotFoundError as error:
            raise StorageError(f"a part of {key} is no longer in {self.name}: {error.filename}") from error
        except OSError as error:
            raise self._failed(key, error) from error
        finally:
            incoming.unlink(missing_ok=True)

    def link(self, key: str, file_name: str, valid_for: timedelta) -> str:
        """See `ArchiveBucket.link`."""
        expires = int(self._now() + valid_for.total_seconds())
        asked = {"expires": str(expires), "name": file_name}
        asked["signature"] = self._signature(check_key(key), str(expires), file_name)
        return f"{self._base_url}{quote(key)}?{urlencode(asked)}"

    def opened(self, key: str, expires: str, file_name: str, signature: str) -> Path | None:
        """The file that a link leads to; None if it was not made here, is too old, or its archive is gone."""
        try:
            right = self._signature(check_key(key), expires, file_name)
        except StorageError:
            return None
        if not hmac.compare_digest(right.encode(), signature.encode()) or int(expires) < self._now():
            return None
        path = self.path(key)
        return path if path.is_file() else None

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        """See `ArchiveBucket.files`."""
        return self._objects.files(prefix)

    def delete(self, key: str) -> None:
        """See `ArchiveBucket.delete`."""
        self._objects.delete(key)

    def path(self, key: str) -> Path:
        """The file of an archive or part. Raises StorageError if the key is none."""
        return self.root / check_key(key)

    # -- within -------------------------------------------------------------------------------------------------------

    def _signature(self, key: str, expires: str, file_name: str) -> str:
        said = "\n".join((key, expires, file_name))
        return hmac.new(self._key(), said.encode(), hashlib.sha256).hexdigest()

    def _key(self) -> bytes:
        """The secret of this bucket's links, made at its first use, by whichever process comes first."""
        file = self.root / HIDDEN / "link-key"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            fresh = file.with_name(f"link-key-{uuid4().hex}")
            if not file.exists():
                try:
                    fresh.touch(mode=0o600, exist_ok=False)
                    fresh.write_bytes(secrets.token_bytes(_KEY_BYTES))
                    with contextlib.suppress(FileExistsError):
                        os.link(fresh, file)
                finally:
                    fresh.unlink(missing_ok=True)
            return file.read_bytes()
        except OSError as error:
            raise self._failed("the key of the links", error) from error

    def _is_there(self, key: str, size: int) -> bool:
        there = self.size_of(key)
        if there not in {None, size}:
            raise StorageError(
                f"{key} in {self.name} has {there} bytes, and an archive of that name must have {size}; was it changed"
                " by hand? Delete it, and ask again"
            )
        return there is not None

    def _incoming(self, folder: Path, key: str) -> Path:
        """A name for what is being written: among the parts, with which it is removed if its writer is killed."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failed(key, error) from error
        return folder / uuid4().hex

    def _write(self, file: BinaryIO, block: bytes, key: str) -> int:
        try:
            return file.write(block)
        except OSError as error:
            raise self._failed(key, error) from error

    def _place(self, incoming: Path, target: Path, key: str) -> None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            incoming.replace(target)
        except OSError as error:
            raise self._failed(key, error) from error

    def _failed(self, key: str, error: OSError) -> StorageError:
        return StorageError(
            f"the archives in {self.name} cannot be used for {key}: {error.strerror or error}; check the folder, its"
            " rights and the room on its disk"
        )
