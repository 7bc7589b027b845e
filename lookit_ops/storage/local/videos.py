"""The bucket of study videos as a folder: the default where no S3 is at hand."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path

from lookit_ops.storage.errors import StorageError, VideoChanged, VideoUnreadable
from lookit_ops.storage.experiments import check_key
from lookit_ops.storage.videos import BLOCK_BYTES, FORBIDDEN, ListedVideo


class LocalVideoBucket:
    """A folder as a bucket. A file's ETag is made of its size and its time of change."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def name(self) -> str:
        """The folder's path."""
        return str(self.root)

    def videos(self, prefix: str = "") -> Iterator[ListedVideo]:
        """See `VideoBucket.videos`. Without the folder there are no videos."""
        found: list[ListedVideo] = []
        try:
            for parent, _folders, names in os.walk(self.root, onerror=_unless_there_is_none):
                for name in names:
                    path = Path(parent) / name
                    key = path.relative_to(self.root).as_posix()
                    if key.startswith(prefix):
                        found.append(_listed(key, path.stat()))
        except FileNotFoundError as error:
            raise StorageError(f"{error.filename} was deleted while it was listed; list again") from error
        except OSError as error:
            raise self._unreadable(prefix, error) from error
        yield from sorted(found, key=lambda video: video.key)

    def blocks(self, video: ListedVideo, offset: int) -> Generator[bytes]:
        """See `VideoBucket.blocks`."""
        try:
            with (self.root / check_key(video.key)).open("rb", buffering=0) as file:
                if _listed(video.key, os.fstat(file.fileno())).etag != video.etag:
                    raise VideoChanged(f"{video.key} in {self.name} was changed since it was listed")
                file.seek(offset)
                while block := file.read(BLOCK_BYTES):
                    yield block
        except FileNotFoundError as error:
            raise VideoChanged(f"{video.key} is no longer in {self.name}") from error
        except PermissionError as error:
            raise VideoUnreadable(f"{video.key} in {self.name} cannot be read: {error.strerror}", FORBIDDEN) from error
        except OSError as error:
            raise self._unreadable(video.key, error) from error

    def _unreadable(self, key: str, error: OSError) -> StorageError:
        return StorageError(
            f"the videos in {self.name} cannot be read for {key!r}: {error.strerror or error}; check the"
            " folder's rights"
        )


def _unless_there_is_none(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _listed(key: str, status: os.stat_result) -> ListedVideo:
    return ListedVideo(
        key=key,
        size_bytes=status.st_size,
        etag=f"{status.st_mtime_ns:x}-{status.st_size:x}",
        updated_at=datetime.fromtimestamp(status.st_mtime, UTC),
    )
