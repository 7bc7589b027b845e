"""All buckets of study videos as one: a listing goes through them in turn, and a video is read where it was listed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace

from lookit_ops.storage.videos import ListedVideo, VideoBucket


class VideoBuckets:
    """Several buckets. The first one's address is empty, as it is in the rows of its videos."""

    def __init__(self, first: VideoBucket, others: Mapping[str, VideoBucket] | None = None) -> None:
        self._buckets = {"": first, **(others or {})}

    @property
    def names(self) -> Mapping[str, str]:
        """What people call each bucket, by the address that rows have for it."""
        return {address: bucket.name for address, bucket in self._buckets.items()}

    @property
    def name(self) -> str:
        """What people call all of them."""
        return " and ".join(self.names.values())

    def videos(self, prefix: str = "") -> Iterator[ListedVideo]:
        """See `VideoBucket.videos`: by bucket, then by key."""
        for address, bucket in self._buckets.items():
            for video in bucket.videos(prefix):
                yield replace(video, bucket=address) if address else video

    def blocks(self, video: ListedVideo, offset: int) -> Generator[bytes]:
        """See `VideoBucket.blocks`."""
        return self._buckets[video.bucket].blocks(video, offset)
