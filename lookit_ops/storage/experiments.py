"""The port to the bucket of built studies: what `publish` and the reconciler need of any storage.

A bucket holds three kinds of things. Immutable objects, named by their content, which are put once. Public files whose
names stay while their contents change, which are replaced whole. And pages: each is the commit point of a deployment,
so its content, metadata and generation change together and on a condition, or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from lookit_ops.storage.errors import StorageError

HIDDEN = ".bucket"
"""The folder of a bucket that is its own: no key begins with it, and no listing tells of it."""
LONGEST_KEY_BYTES = 1024
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class StoredPage:
    """A page as it was at one moment."""

    content: bytes
    generation: int
    """Greater than that of every earlier version, and never used twice; never 0."""
    metadata: Mapping[str, str]
    updated_at: datetime
    """When this generation was written, by the storage's clock, in UTC."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What a listing tells of an object."""

    key: str
    size_bytes: int
    sha256: str | None
    """None where the storage does not know it."""
    updated_at: datetime
    """In UTC."""


@runtime_checkable
class ExperimentBucket(Protocol):
    """A place for built studies. A key is a relative path with forward slashes; all methods raise StorageError."""

    @property
    def name(self) -> str:
        """What people call this bucket."""
        ...

    def close(self) -> None:
        """Close the connections, if there are any. The bucket is not to be used afterwards."""
        ...

    def claim_environment(self, environment: str) -> None:
        """Mark an unmarked bucket as this environment's. Raises WrongEnvironment if it is marked as another's."""
        ...

    def put(
        self,
        key: str,
        source: Path | bytes,
        *,
        content_type: str,
        cache_control: str,
        replace: bool = False,
        listed: Mapping[str, StoredFile] | None = None,
    ) -> bool:
        """Store an object whole or not at all; False, and nothing stored, if it has these contents already.

        `listed` is what `files` told a moment ago, by key, of a prefix of this key: it may save a question, and decides
        nothing if it is out of date but that an object that it has, and that is gone since, may be missed.
        Raises NameTaken if it has other contents and is not to be replaced.
        """
        ...

    def read(self, key: str) -> bytes:
        """The contents of an object or page. Raises NoSuchObject."""
        ...

    def page(self, key: str) -> StoredPage | None:
        """The page with the metadata and generation that belong to its content; None if there is none."""
        ...

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
        """Replace the page in one step and return its new generation.

        `if_generation` is the generation that was seen; 0 means that there must be no page.
        Raises GenerationMismatch, and changes nothing, if the page has another one; NoAnswer if it cannot be found out
        whether the page was written.
        """
        ...

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        """All objects and pages whose key begins with these characters, by key."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object or page; nothing happens if there is none."""
        ...

    def copy(self, source_key: str, destination_key: str) -> None:
        """Copy an object with its content type and cache header over whatever is there. Raises NoSuchObject."""
        ...


def check_key(key: str) -> str:
    """Return the key if every storage can hold it. Raises StorageError."""
    parts = key.split("/")
    if _FORBIDDEN.search(key) or not {"", ".", ".."}.isdisjoint(parts):
        raise StorageError(f"{key!r} is no key for an object; expected a plain relative path such as 'folder/file.js'")
    try:
        too_long = len(key.encode()) > LONGEST_KEY_BYTES
    except UnicodeEncodeError:
        raise StorageError(f"{key!r} is no key for an object: it cannot be written in UTF-8") from None
    if too_long:
        raise StorageError(f"{key[:80]!r}… is no key for an object: it is longer than {LONGEST_KEY_BYTES} bytes")
    return key
