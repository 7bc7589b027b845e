"""The port to the bucket of study videos: list them, and read one as it was listed.

StorageError
├── VideoChanged      the video is no longer the one of the listing: gone, replaced, or of another length
└── VideoUnreadable   the storage has it, and does not give it out: cold, or forbidden
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

from lookit_ops.storage.errors import StorageError, VideoChanged, VideoUnreadable

BLOCK_BYTES = 2**20
"""The most that `blocks` gives at once."""
MOST_FAILURES = 6
"""How often in a row a video may fail to give another byte before its reader gives up."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds before a video is read on; they double with each failure in a row."""


COLD = "it is in cold storage: restore it first"
FORBIDDEN = "it is not readable with these credentials"


@dataclass(frozen=True, slots=True)
class ListedVideo:
    """An object of the bucket. The ETag is without its quotation marks; it is another one when the bytes are others."""

    key: str
    size_bytes: int
    etag: str
    updated_at: datetime
    """In UTC."""
    is_cold: bool = False
    """Whether it is in cold storage, and has to be restored before it can be read."""
    bucket: str = ""
    """The address of the bucket that has it, where there are several; empty for the first."""


@runtime_checkable
class VideoBucket(Protocol):
    """Where the recorder puts videos. Nothing here writes to it; all methods raise StorageError."""

    @property
    def name(self) -> str:
        """What people call this bucket."""
        ...

    def videos(self, prefix: str = "") -> Iterator[ListedVideo]:
        """All objects whose key begins with these characters, by key."""
        ...

    def blocks(self, video: ListedVideo, offset: int) -> Generator[bytes]:
        """The bytes of the video from `offset` on, once: what breaks off raises StorageError, or just ends.

        Closing it lets go of the connection. Raises VideoChanged if the object is gone or no longer has the ETag of the
        listing, VideoUnreadable if the storage refuses it.
        """
        ...


def read_video(
    bucket: VideoBucket,
    video: ListedVideo,
    *,
    check: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[bytes]:
    """All bytes of the video, exactly as many as the listing said; read on where a read breaks off.

    `check` is asked before each block and after each pause, and may raise. Raises VideoChanged, or VideoUnreadable or
    another StorageError when the video gives no more bytes after MOST_FAILURES attempts.
    """
    at = failures = 0
    while True:
        trouble: StorageError | None = None
        try:
            with closing(bucket.blocks(video, at)) as blocks:
                for block in blocks:
                    check()
                    at += len(block)
                    if at > video.size_bytes:
                        raise VideoChanged(
                            f"{video.key} in {bucket.name} is longer than the {video.size_bytes} bytes of its listing"
                        )
                    failures = 0
                    yield block
        except VideoChanged:
            raise
        except StorageError as error:
            trouble = error
        if at == video.size_bytes and trouble is None:
            return
        failures += 1
        if failures >= MOST_FAILURES:
            if isinstance(trouble, VideoUnreadable):
                raise trouble
            raise StorageError(
                f"{video.key} in {video.bucket or bucket.name} cannot be read beyond byte {at} of {video.size_bytes}: "
                + (str(trouble) if trouble else "the connection ends there")
            ) from trouble
        sleep(min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE))
        check()
