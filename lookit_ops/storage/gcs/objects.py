"""Objects in Google Cloud Storage: stored once, verified by checksums, never replaced by accident."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
from google.api_core import exceptions as google_errors
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption

from lookit_ops.storage.errors import NameTaken, NoSuchObject, StorageError, WrongEnvironment
from lookit_ops.storage.experiments import HIDDEN, StoredFile, check_key
from lookit_ops.storage.gcs.client import UPLOAD_FORGOTTEN, GcsAccess, said_by, translated

_FIELDS = "items(name,size,updated,generation,contentType,cacheControl,crc32c,md5Hash,metadata),nextPageToken"
SHA256 = "sha256"
"""Metadata of an object: what the listing tells."""
CHUNK_BYTES = 8 * 2**20
"""Files above this go up in chunks of it, and are never in memory as a whole."""
ATTEMPTS = 5
"""How often what others disturb (a page that changes while it is read, a damaged upload) is tried again."""
ENVIRONMENT_KEY = f"{HIDDEN}/environment"


@dataclass(frozen=True, slots=True)
class Checksums:
    """What Google computes of an object, computed here, and the SHA-256 that it does not."""

    size_bytes: int
    crc32c: str
    md5: str
    sha256: str

    @classmethod
    def of(cls, source: Path | bytes) -> Checksums:
        crc32c = google_crc32c.Checksum()
        md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
        for chunk in _chunks(source):
            size += len(chunk)
            for digest in (crc32c, md5, sha256):
                digest.update(chunk)
        return cls(size, _base64(crc32c.digest()), _base64(md5.digest()), sha256.hexdigest())


@dataclass(frozen=True, slots=True)
class _Listed(StoredFile):
    """An object with all that a later `put` wants to know of it."""

    generation: int
    crc32c: str | None
    md5: str | None
    """None for an object that was composed of others."""
    content_type: str | None
    cache_control: str | None

    @classmethod
    def of(cls, blob: storage.Blob) -> _Listed:
        return cls(
            key=str(blob.name),
            size_bytes=blob.size,
            sha256=(blob.metadata or {}).get(SHA256),
            updated_at=blob.updated,
            generation=blob.generation,
            crc32c=blob.crc32c,
            md5=blob.md5_hash,
            content_type=blob.content_type,
            cache_control=blob.cache_control,
        )

    def has(self, sums: Checksums) -> bool:
        """Whether these are its contents."""
        same = (self.size_bytes, self.crc32c) == (sums.size_bytes, sums.crc32c)
        return same and self.md5 in {None, sums.md5}


class GcsObjects:
    """A bucket's objects, on Google or on a server that speaks its JSON API. Safe for many threads and machines."""

    def __init__(self, bucket: str, access: GcsAccess | None = None) -> None:
        """Raises StorageError if there are no credentials."""
        self._access = access or GcsAccess()
        self._client = self._access.connect()
        self._bucket = self._client.bucket(bucket)
        self._patiently: dict[str, Any] = {"timeout": self._access.timeout, "retry": self._access.retry}

    def close(self) -> None:
        """See `ExperimentBucket.close`."""
        self._client.close()

    @property
    def name(self) -> str:
        """The bucket's address."""
        return f"gs://{self._bucket.name}"

    def claim_environment(self, environment: str) -> None:
        """See `ExperimentBucket.claim_environment`."""
        mark = self._bucket.blob(ENVIRONMENT_KEY)
        for _ in range(ATTEMPTS):
            with translated(self.name, ENVIRONMENT_KEY):
                try:
                    owner = mark.download_as_bytes(**self._patiently).decode().strip()
                except google_errors.NotFound:
                    owner = None
                if owner == environment:
                    return
                if owner is not None:
                    raise WrongEnvironment(
                        f"the bucket {self.name} belongs to the environment {owner!r}, and this is {environment!r}; "
                        "set another LOOKIT_BUCKET, or the right LOOKIT_ENVIRONMENT"
                    )
                try:
                    mark.upload_from_string(
                        f"{environment}\n", "text/plain", if_generation_match=0, checksum="crc32c", **self._patiently
                    )
                except google_errors.PreconditionFailed:
                    continue  # somebody else came first, or the answer to our own write was lost: look whose it is
                except google_errors.NotFound as error:
                    raise StorageError(
                        f"there is no bucket {self.name}; make it, or set LOOKIT_BUCKET to one that there is"
                    ) from error
                return
        raise StorageError(f"{ENVIRONMENT_KEY} in {self.name} comes and goes; try again")

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
        """See `ExperimentBucket.put`."""
        self._check(key)
        try:
            sums = Checksums.of(source)
        except OSError as error:
            raise StorageError(f"cannot read {source}, which should go to {key}: {error.strerror or error}") from error
        seen = self._look(key) if listed is None else listed.get(key)
        if seen is not None and not isinstance(seen, _Listed):
            seen = self._look(key)
        if seen and not seen.has(sums) and listed is not None:
            seen = self._look(key)
        if seen is None or not seen.has(sums):
            if seen and not replace:
                raise self._taken(key)
            return self._upload(key, source, sums, content_type, cache_control, seen, replace=replace)
        if (seen.content_type, seen.cache_control) != (content_type, cache_control):
            self._correct_headers(key, seen, sums, content_type, cache_control)
        return False

    def read(self, key: str) -> bytes:
        """See `ExperimentBucket.read`."""
        self._check(key)
        with translated(self.name, key):
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return self._bucket.blob(key).download_as_bytes(checksum="crc32c", **self._patiently)
                except google_errors.NotFound as error:
                    raise self._missing(key) from error
                except DataCorruption:  # on its way, or replaced between two pieces
                    if attempt == ATTEMPTS:
                        raise
        raise AssertionError("the last attempt returns or raises")

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        """See `ExperimentBucket.files`."""
        if prefix:
            check_key(prefix.removesuffix("/"))
        blobs = self._client.list_blobs(
            self._bucket, prefix=prefix or None, fields=_FIELDS, page_size=1000, **self._patiently
        )
        with translated(self.name, prefix):
            for blob in blobs:
                if not blob.name.startswith(f"{HIDDEN}/"):
                    yield _Listed.of(blob)

    def delete(self, key: str) -> None:
        """See `ExperimentBucket.delete`."""
        self._check(key)
        with translated(self.name, key):
            try:
                self._bucket.blob(key).delete(**self._patiently)
            except google_errors.NotFound:
                return

    def copy(self, source_key: str, destination_key: str) -> None:
        """See `ExperimentBucket.copy`. Google does it, without the bytes coming here."""
        self._check(source_key)
        self._check(destination_key)
        with translated(self.name, source_key):
            try:
                self._bucket.copy_blob(self._bucket.blob(source_key), self._bucket, destination_key, **self._patiently)
            except google_errors.NotFound as error:
                raise self._missing(source_key) from error

    def _check(self, key: str) -> None:
        if check_key(key).split("/")[0] == HIDDEN:
            raise StorageError(f"{key!r} is no key for an object: {HIDDEN} is the bucket's own")

    def _look(self, key: str) -> _Listed | None:
        with translated(self.name, key):
            blob = self._bucket.get_blob(key, **self._patiently)
        return _Listed.of(blob) if blob else None

    def _upload(
        self,
        key: str,
        source: Path | bytes,
        sums: Checksums,
        content_type: str,
        cache_control: str,
        seen: _Listed | None,
        *,
        replace: bool,
    ) -> bool:
        """Store the object over the one that was seen. True if it is there then, by whomever; raises NameTaken."""
        trouble: BaseException | None = None
        for _ in range(ATTEMPTS):
            with translated(self.name, key):
                try:
                    blob = self._send(key, source, sums, content_type, cache_control, seen.generation if seen else 0)
                except google_errors.PreconditionFailed as error:
                    # Somebody else's, or an earlier attempt of ours whose answer was lost.
                    trouble = error
                    seen = self._look(key)
                    if seen and seen.has(sums):
                        return True
                    if seen and not replace:
                        raise self._taken(key) from error
                    continue
                except DataCorruption as error:
                    trouble, generation = error, _generation_in(error)
                except google_errors.BadRequest as error:  # what arrived had not the checksum that we sent along
                    trouble = error
                    continue
                except google_errors.GoogleAPICallError as error:  # Google's library has no class for 410
                    if error.code not in UPLOAD_FORGOTTEN or sums.size_bytes <= CHUNK_BYTES:
                        raise
                    trouble = error  # of an upload in chunks: begin a new one
                    continue
                else:
                    if _Listed.of(blob).has(sums):
                        return True
                    trouble, generation = None, blob.generation
                self._remove_damaged(key, generation)
            seen = self._look(key)
            if seen and not replace and not seen.has(sums):
                raise self._taken(key)
        raise StorageError(
            f"{key} did not arrive in {self.name} as it was sent, {ATTEMPTS} times: "
            + (said_by(trouble) if trouble else "its checksum there is another one than here")
        ) from trouble

    def _send(
        self, key: str, source: Path | bytes, sums: Checksums, content_type: str, cache_control: str, expected: int
    ) -> storage.Blob:
        blob = self._bucket.blob(key)
        blob.cache_control = cache_control
        blob.metadata = {SHA256: sums.sha256}
        options: dict[str, Any] = {"if_generation_match": expected, "checksum": "crc32c", **self._patiently}
        if isinstance(source, bytes):
            blob.upload_from_string(source, content_type, **options)
        elif sums.size_bytes <= CHUNK_BYTES:
            blob.upload_from_string(source.read_bytes(), content_type, **options)
        else:
            blob.chunk_size = CHUNK_BYTES
            with source.open("rb") as stream:
                blob.upload_from_file(stream, size=sums.size_bytes, content_type=content_type, **options)
        return blob

    def _remove_damaged(self, key: str, generation: int) -> None:
        """Delete what arrived damaged, and nothing that somebody has put in its place since."""
        try:
            self._bucket.blob(key).delete(if_generation_match=generation, **self._patiently)
        except (google_errors.NotFound, google_errors.PreconditionFailed):
            return

    def _correct_headers(self, key: str, seen: _Listed, sums: Checksums, content_type: str, cache_control: str) -> None:
        blob = self._bucket.blob(key)
        blob.content_type, blob.cache_control = content_type, cache_control
        blob.metadata = {SHA256: sums.sha256}
        with translated(self.name, key):
            blob.patch(if_generation_match=seen.generation, **self._patiently)

    def _taken(self, key: str) -> NameTaken:
        return NameTaken(
            f"{key} in {self.name} already has other contents and is never replaced, since a page in use may "
            "name it; was the bucket changed by hand, or does the build not name files by their contents?"
        )

    def _missing(self, key: str) -> NoSuchObject:
        return NoSuchObject(f"the bucket {self.name} has no {key}")


def _chunks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _generation_in(error: DataCorruption) -> int:
    """The generation of the damaged object, which the server's last answer tells."""
    return int(error.response.json()["generation"])
