"""The bucket of archives in Google Cloud Storage.

Parts go up side by side, each by a resumable upload whose chunks Google's client sends again where they break off.
Composing them is one request for up to 32, which moves no bytes; more are composed in stages. Every write names the
generation that it expects to replace (0 for none), so that one that is made twice, or arrives late, changes nothing.

Import this module only where the bucket is used: Google's library takes more than a second to load.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import google_crc32c
from google.api_core import exceptions as google_errors
from google.auth import exceptions as auth_errors
from google.auth.credentials import Signing
from google.cloud import storage

from lookit_ops.storage.archives import LONGEST_LINK, ZIP, StoredPart
from lookit_ops.storage.errors import StorageError, UploadForgotten
from lookit_ops.storage.experiments import StoredFile, check_key
from lookit_ops.storage.gcs.client import UPLOAD_FORGOTTEN, GcsAccess, said_by, translated
from lookit_ops.storage.gcs.experiments import GcsExperimentBucket

CHUNK_BYTES = 2 * 2**20
"""What one part has in memory, twice. Each chunk is one request; a dozen parts at once make up for the waiting."""
MOST_SOURCES = 32
"""How many objects Google composes in one request."""
_NO_STORE = "private, no-store"


class GcsArchiveBucket:
    """A bucket in Google Cloud Storage, or on a server that speaks its JSON API. Safe for many threads and machines."""

    def __init__(self, bucket: str, access: GcsAccess | None = None) -> None:
        """Raises StorageError if there are no credentials."""
        self._access = access or GcsAccess()
        self._objects = GcsExperimentBucket(bucket, self._access)
        self._client = self._access.connect()
        self._bucket = self._client.bucket(bucket)
        self._patiently: dict[str, Any] = {"timeout": self._access.timeout, "retry": self._access.retry}

    def close(self) -> None:
        """Close the connections."""
        self._objects.close()
        self._client.close()

    @property
    def name(self) -> str:
        """The bucket's address."""
        return f"gs://{self._bucket.name}"

    def claim_environment(self, environment: str) -> None:
        """See `ArchiveBucket.claim_environment`."""
        self._objects.claim_environment(environment)

    def size_of(self, key: str) -> int | None:
        """See `ArchiveBucket.size_of`."""
        blob = self._look(key)
        return blob.size if blob else None

    def put_part(self, key: str, blocks: Iterator[bytes], size_bytes: int) -> StoredPart:
        """See `ArchiveBucket.put_part`."""
        blob = self._bucket.blob(check_key(key), chunk_size=CHUNK_BYTES)
        blob.cache_control = _NO_STORE
        stream = _Stream(blocks)
        with translated(self.name, key):
            try:
                blob.upload_from_file(
                    stream,
                    size=size_bytes,
                    content_type=ZIP,
                    if_generation_match=0,
                    checksum=None,  # compared below, also when the answer that tells it was lost
                    **self._patiently,
                )
            except google_errors.PreconditionFailed:  # our own, whose answer was lost
                blob.reload(**self._patiently)
            except google_errors.GoogleAPICallError as error:  # Google's library has no class for 410
                if error.code not in UPLOAD_FORGOTTEN or stream.tell() == 0:  # then there is no such bucket
                    raise
                raise UploadForgotten(
                    f"Google Cloud Storage has forgotten the upload of {key} to {self.name}: {said_by(error)}"
                ) from error
            except ValueError as error:  # what the client says of a stream that ends early
                raise StorageError(f"{key} should have {size_bytes} bytes: {error}") from error
        if stream.has_more() or (blob.size, blob.crc32c) != (size_bytes, stream.crc32c):
            raise StorageError(
                f"{key} did not arrive in {self.name} as it was sent: {blob.size} bytes with the checksum"
                f" {blob.crc32c}, instead of {size_bytes} with {stream.crc32c}"
            )
        return StoredPart(key, size_bytes, int(blob.generation))

    def compose(self, key: str, parts: Sequence[StoredPart], scratch: str) -> None:
        """See `ArchiveBucket.compose`."""
        check_key(key)
        stage = 0
        while len(parts) > MOST_SOURCES:
            stage += 1
            groups = [parts[begin : begin + MOST_SOURCES] for begin in range(0, len(parts), MOST_SOURCES)]
            parts = [
                self._joined(f"{scratch}/stage-{stage}-{place:05}", group) if len(group) > 1 else group[0]
                for place, group in enumerate(groups)
            ]
        self._joined(key, parts)

    def link(self, key: str, file_name: str, valid_for: timedelta) -> str:
        """See `ArchiveBucket.link`. A V4 signed URL."""
        if valid_for > LONGEST_LINK:
            raise StorageError(f"Google signs no link for longer than {LONGEST_LINK}, and {valid_for} was asked for")
        credentials = self._access.signer()
        if not isinstance(credentials, Signing):
            raise StorageError(
                "these credentials of Google Cloud cannot sign links: set LOOKIT_GCS_CREDENTIALS_FILE to the key of a"
                " service account that may read the bucket"
            )
        try:
            return self._bucket.blob(check_key(key)).generate_signed_url(
                version="v4",
                expiration=valid_for,
                method="GET",
                response_disposition=f"attachment; filename=\"{file_name}\"; filename*=UTF-8''{quote(file_name)}",
                response_type=ZIP,
                credentials=credentials,
                **({"api_access_endpoint": self._access.endpoint} if self._access.endpoint else {}),
            )
        except (auth_errors.GoogleAuthError, ValueError, AttributeError) as error:
            raise StorageError(f"no link to {key} in {self.name} can be signed: {error}") from error

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        """See `ArchiveBucket.files`."""
        return self._objects.files(prefix)

    def delete(self, key: str) -> None:
        """See `ArchiveBucket.delete`."""
        self._objects.delete(key)

    # -- within -------------------------------------------------------------------------------------------------------

    def _look(self, key: str) -> storage.Blob | None:
        with translated(self.name, key):
            return self._bucket.get_blob(check_key(key), **self._patiently)

    def _joined(self, key: str, parts: Sequence[StoredPart]) -> StoredPart:
        """One object of up to 32, or the one that is there already."""
        size = sum(part.size_bytes for part in parts)
        blob = self._bucket.blob(key)
        blob.content_type, blob.cache_control = ZIP, _NO_STORE
        with translated(self.name, key):
            try:
                blob.compose(
                    [self._bucket.blob(part.key) for part in parts],
                    if_generation_match=0,
                    if_source_generation_match=[part.generation for part in parts],
                    **self._patiently,
                )
            except google_errors.PreconditionFailed as error:
                # Somebody else's, or our own whose answer was lost; or a part is not the one that we sent.
                there = self._bucket.get_blob(key, **self._patiently)
                if there is None:
                    raise StorageError(f"a part of {key} in {self.name} was changed by somebody else") from error
                blob = there
            except google_errors.NotFound as error:
                raise StorageError(f"a part of {key} is no longer in {self.name}") from error
        if blob.size != size:
            raise StorageError(
                f"{key} in {self.name} has {blob.size} bytes, and an archive of that name must have {size}; was it"
                " changed by hand? Delete it, and ask again"
            )
        return StoredPart(key, size, int(blob.generation))


class _Stream:
    """Blocks as a file that can only be read onwards, in pieces of the size that is asked for."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")
        self._position = 0
        self._sum = google_crc32c.Checksum()

    @property
    def crc32c(self) -> str:
        """The checksum of what was read, as Google writes it."""
        return base64.b64encode(self._sum.digest()).decode()

    def has_more(self) -> bool:
        """Whether anything is left: the client asks for as many bytes as were announced, and never for the end."""
        return bool(self._rest) or next(self._blocks, None) is not None

    def read(self, size: int = -1) -> bytes:
        pieces: list[memoryview] = []
        wanted = size if size >= 0 else None
        while wanted is None or wanted > 0:
            if not self._rest:
                block = next(self._blocks, None)
                if block is None:
                    break
                self._rest = memoryview(block)
            piece = self._rest if wanted is None else self._rest[:wanted]
            self._rest = self._rest[len(piece) :]
            wanted = None if wanted is None else wanted - len(piece)
            pieces.append(piece)
        content = b"".join(pieces)
        self._position += len(content)
        self._sum.update(content)
        return content

    def tell(self) -> int:
        return self._position
