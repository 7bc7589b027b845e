"""The bucket of study videos in Amazon S3, or on a server that speaks its protocol.

Every read names the ETag of the listing, so that a video that was replaced is refused and not mixed with the old one.
Import this module only where the bucket is used: Amazon's library takes a second to load.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from pydantic import SecretStr
from urllib3.exceptions import HTTPError

from domain.videos.object_names import bare_etag
from lookit_ops.storage.errors import StorageError, VideoChanged, VideoUnreadable
from lookit_ops.storage.videos import BLOCK_BYTES, COLD, FORBIDDEN, ListedVideo

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""
ATTEMPTS = 4
"""How often Amazon's client makes a request whose answer has not begun."""
MOST_CONNECTIONS = 32
_GONE = frozenset({"NoSuchKey", "404", "NotFound"})
_CHANGED = frozenset({"PreconditionFailed", "412", "InvalidRange", "416"})
_FORBIDDEN = frozenset({"AccessDenied", "403", "Forbidden", "KMS.DisabledException", "KMS.NotFoundException"})
"""Perhaps of this object alone: it may be encrypted with a key that these credentials must not use."""
_REFUSED = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}) | _FORBIDDEN
_COLD = "InvalidObjectState"
_COLD_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


@dataclass(frozen=True, slots=True)
class S3Access:
    """Whose credentials are used, and against which server."""

    region: str = ""
    endpoint: str = ""
    """Base URL of a server that speaks S3; empty: Amazon's own."""
    access_key_id: SecretStr | None = None
    """None: what Amazon's library finds, in the environment, in `~/.aws` or on its own machines."""
    secret_access_key: SecretStr | None = None
    read_timeout: float = READ_TIMEOUT
    attempts: int = ATTEMPTS

    def connect(self) -> Any:
        """A client for many threads; close it after use. Raises StorageError."""
        config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=self.read_timeout,
            retries={"mode": "standard", "total_max_attempts": self.attempts},
            max_pool_connections=MOST_CONNECTIONS,
            # Checksums would be of whole objects, and we read on from the middle: ETag and length are what we check.
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if self.endpoint else "auto"},
            signature_version="s3v4",
        )
        try:
            return boto3.session.Session().client(
                "s3",
                region_name=self.region or ("us-east-1" if self.endpoint else None),
                endpoint_url=self.endpoint or None,
                aws_access_key_id=_shown(self.access_key_id),
                aws_secret_access_key=_shown(self.secret_access_key),
                config=config,
            )
        except (BotoCoreError, ValueError) as error:
            raise StorageError(f"S3 cannot be used: {error}; check the settings of the videos' bucket") from error


def _is_cold(item: dict[str, Any]) -> bool:
    """Whether an object of a listing has to be restored before it can be read."""
    restored = item.get("RestoreStatus", {}).get("RestoreExpiryDate") is not None
    return item.get("StorageClass") in _COLD_CLASSES and not restored


def _shown(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


class S3VideoBucket:
    """A bucket of S3. Safe for many threads."""

    def __init__(self, bucket: str, access: S3Access | None = None) -> None:
        """Raises StorageError if the settings cannot be used at all; whether the bucket is there shows later."""
        self._bucket = bucket
        self._client = (access or S3Access()).connect()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def name(self) -> str:
        """The bucket's address."""
        return f"s3://{self._bucket}"

    def videos(self, prefix: str = "") -> Iterator[ListedVideo]:
        """See `VideoBucket.videos`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=prefix, OptionalObjectAttributes=["RestoreStatus"]
        )
        try:
            for page in pages:
                for item in page.get("Contents", ()):
                    yield ListedVideo(
                        key=item["Key"],
                        size_bytes=item["Size"],
                        etag=bare_etag(item["ETag"]),
                        updated_at=item["LastModified"],
                        is_cold=_is_cold(item),
                    )
        except (ClientError, BotoCoreError, HTTPError, OSError) as error:
            raise self._translated(f"the listing of {prefix!r}", error) from error

    def blocks(self, video: ListedVideo, offset: int) -> Generator[bytes]:
        """See `VideoBucket.blocks`."""
        asked: dict[str, Any] = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=video.key, IfMatch=f'"{video.etag}"', **asked)
            body = answer["Body"]
            try:
                self._check(video, offset, answer)
                # Not through iter_chunks, which would raise at the end of a read that stopped short, and lose the rest.
                while block := body.read(BLOCK_BYTES):
                    yield block
            finally:
                body.close()
        except (ClientError, BotoCoreError, HTTPError, OSError) as error:
            raise self._unreadable(video.key, error) or self._translated(video.key, error) from error

    def _unreadable(self, key: str, error: Exception) -> VideoUnreadable | None:
        """What the error says of this one object; None if it says more."""
        code = str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""
        if code == _COLD:
            return VideoUnreadable(f"{key} in {self.name} is in cold storage; restore it first", COLD)
        if code in _FORBIDDEN:
            return VideoUnreadable(
                f"{self.name} does not let these credentials read {key}; check the account, and its rights on the"
                " bucket and on the key that encrypts the object",
                FORBIDDEN,
            )
        return None

    def _check(self, video: ListedVideo, offset: int, answer: dict[str, Any]) -> None:
        """Whether the answer is the part of the object that was asked for. Raises VideoChanged or StorageError."""
        length, total = answer["ContentLength"], offset + answer["ContentLength"]
        begins = int(answer["ContentRange"].split()[1].split("-")[0]) if "ContentRange" in answer else 0
        if begins != offset:
            raise StorageError(f"{self.name} was asked for {video.key} from byte {offset} on, and began at {begins}")
        if bare_etag(answer["ETag"]) != video.etag or total != video.size_bytes:
            raise VideoChanged(
                f"{video.key} in {self.name} has {total} bytes and the ETag {bare_etag(answer['ETag'])!r}, and had"
                f" {video.size_bytes} and {video.etag!r} when it was listed ({length} bytes from {offset} on)"
            )

    def _translated(self, what: str, error: Exception) -> StorageError:
        """Our error for Amazon's."""
        if isinstance(error, NoCredentialsError):
            return StorageError(
                f"there are no credentials for {self.name}: set LOOKIT_VIDEOS_ACCESS_KEY_ID and"
                " LOOKIT_VIDEOS_SECRET_ACCESS_KEY, or give this machine some as Amazon's tools do"
            )
        if isinstance(error, ClientError):
            said = error.response.get("Error", {})
            code, text = str(said.get("Code", "")), " ".join(str(said.get("Message", "")).split())[:300]
            if code in _GONE:
                return VideoChanged(f"{what} is no longer in {self.name}")
            if code in _CHANGED:
                return VideoChanged(f"{what} in {self.name} was changed since it was listed")
            if code == "NoSuchBucket":
                return StorageError(
                    f"there is no bucket {self.name}; check LOOKIT_VIDEOS_BUCKET and LOOKIT_VIDEOS_OTHER_BUCKETS"
                )
            if code in _REFUSED:
                return StorageError(
                    f"{self.name} does not let these credentials read {what}: {code} {text}; check the account and its"
                    " rights on the bucket"
                )
            return StorageError(f"{self.name} failed at {what}: {code} {text}")
        return StorageError(
            f"{self.name} failed at {what}: {' '.join(str(error).split())[:300] or type(error).__name__}"
        )
