"""The port to the bucket of archives: parts that nobody sees, one step that makes an archive of them, links to it.

Archives are named by what is in them (ADR 5), so one that is there is never written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, runtime_checkable

from lookit_ops.storage.experiments import StoredFile

PARTS = ".parts"
"""The folder of the bucket for what archives are made of; no link leads there."""
ZIP = "application/zip"
LONGEST_LINK = timedelta(days=7)
"""Google signs no link for longer."""


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part as it was stored. The generation tells it from another one of the same name."""

    key: str
    size_bytes: int
    generation: int


@runtime_checkable
class ArchiveBucket(Protocol):
    """A place for archives. A key is a relative path with forward slashes; all methods raise StorageError."""

    @property
    def name(self) -> str:
        """What people call this bucket."""
        ...

    def claim_environment(self, environment: str) -> None:
        """Mark an unmarked bucket as this environment's. Raises WrongEnvironment if it is marked as another's."""
        ...

    def size_of(self, key: str) -> int | None:
        """How many bytes the archive has; None if there is none."""
        ...

    def put_part(self, key: str, blocks: Iterator[bytes], size_bytes: int) -> StoredPart:
        """Store a part of exactly this size whole or not at all; an error of `blocks` leaves nothing and is passed on.

        The blocks are taken one after the other, and only a few megabytes of them are in memory at once.
        Raises UploadForgotten, which nothing is left of, if it is to be sent again from the beginning.
        """
        ...

    def compose(self, key: str, parts: Sequence[StoredPart], scratch: str) -> None:
        """Make an archive of these parts in this order, in one step; nothing is done if one of this size is there.

        `scratch` is a folder for what comes between; it may be left full. Raises StorageError, and shows nothing, if a
        part is not there any more, or an archive of another size is in the way.
        """
        ...

    def link(self, key: str, file_name: str, valid_for: timedelta) -> str:
        """A URL with which anyone can download the archive until then, under this file name. Asks nobody."""
        ...

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        """All archives and parts whose key begins with these characters, by key."""
        ...

    def delete(self, key: str) -> None:
        """Delete an archive or a part; nothing happens if there is none."""
        ...
