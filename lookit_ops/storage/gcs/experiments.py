"""The bucket of built studies in Google Cloud Storage.

What makes it safe is the *generation* that Google gives each write: every write of ours names the one it expects to
replace (0 for none), so that a request that is made twice, or arrives late, changes nothing the second time. Contents
are compared and verified by the checksums that Google computes itself.

A page's write carries an id of its own in the object's metadata. When the answer to a write is lost, the page is asked
whether that id is there.

Import this module only where the bucket is used: Google's library takes more than a second to load.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import uuid4

from google.api_core import exceptions as google_errors
from google.cloud.storage.exceptions import DataCorruption

from lookit_ops.storage.errors import GenerationMismatch, NoAnswer, StorageError
from lookit_ops.storage.experiments import StoredPage
from lookit_ops.storage.gcs.client import is_passing, said_by, translated
from lookit_ops.storage.gcs.objects import ATTEMPTS, Checksums, GcsObjects

WRITE_ID = "lookit-write"
"""Metadata of a page: which call wrote it."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0


class GcsExperimentBucket(GcsObjects):
    """A bucket in Google Cloud Storage, or on a server that speaks its JSON API. Safe for many threads and machines."""

    def page(self, key: str) -> StoredPage | None:
        """See `ExperimentBucket.page`."""
        found = self._page(key)
        return found[0] if found else None

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
        """See `ExperimentBucket.write_page`."""
        self._check(key)
        sums = Checksums.of(content)
        write_id = uuid4().hex
        expected = if_generation
        doubt: BaseException | None = None
        until = time.monotonic() + self._access.patience
        pause = _SHORTEST_PAUSE
        while True:
            blob = self._bucket.blob(key)
            blob.metadata = {**metadata, WRITE_ID: write_id}
            blob.cache_control = cache_control
            try:
                with translated(self.name, key):
                    try:
                        blob.upload_from_string(
                            content,
                            content_type,
                            if_generation_match=expected,
                            timeout=self._access.timeout,
                            retry=None,  # this loop does it, and remembers that it did
                            checksum="crc32c",
                        )
                    except google_errors.PreconditionFailed as error:
                        generation = self._written(key, write_id) if doubt else None
                        if generation:
                            return generation
                        raise self._mismatch(key, if_generation) from error
                if blob.crc32c == sums.crc32c:
                    return blob.generation
                # It is live, and it is damaged: put the right one over it.
                expected, doubt = blob.generation, StorageError(f"{key} arrived damaged")
            except StorageError as error:
                if isinstance(error, GenerationMismatch):
                    raise
                if doubt is None and not is_passing(error.__cause__ or error):
                    raise
                doubt = error
                if time.monotonic() < until:
                    generation = self._outcome(key, write_id, expected)
                    if generation:
                        return generation
            if time.monotonic() + pause > until:
                raise NoAnswer(
                    f"whether {key} in {self.name} was written is not known: {said_by(doubt.__cause__ or doubt)}"
                ) from doubt
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    # -- within -------------------------------------------------------------------------------------------------------

    def _page(self, key: str) -> tuple[StoredPage, str | None] | None:
        """The page, and the id of the call that wrote it."""
        self._check(key)
        with translated(self.name, key):
            for _ in range(ATTEMPTS * 4):
                blob = self._bucket.get_blob(key, **self._patiently)
                if blob is None:
                    return None
                generation, metadata = int(blob.generation), dict(blob.metadata or {})
                written_at = blob.time_created or blob.updated or datetime.now(UTC)
                try:
                    content = blob.download_as_bytes(
                        if_generation_match=generation, checksum="crc32c", **self._patiently
                    )
                except (google_errors.PreconditionFailed, google_errors.NotFound, DataCorruption):
                    continue  # replaced or deleted between the two questions, or damaged on its way
                write_id = metadata.pop(WRITE_ID, None)
                return StoredPage(content, generation, metadata, written_at), write_id
        raise StorageError(f"{key} in {self.name} changes faster than it can be read; try again")

    def _written(self, key: str, write_id: str) -> int | None:
        """The page's generation if this call wrote it."""
        found = self._page(key)
        return found[0].generation if found and found[1] == write_id else None

    def _outcome(self, key: str, write_id: str, expected: int) -> int | None:
        """What became of a write without an answer: its generation, or None as long as it may still arrive.

        Raises GenerationMismatch if somebody else's write has made it impossible.
        """
        try:
            found = self._page(key)
        except StorageError:
            return None
        if found and found[1] == write_id:
            return found[0].generation
        if (found[0].generation if found else 0) != expected:
            raise self._mismatch(key, expected)
        return None

    def _mismatch(self, key: str, seen: int) -> GenerationMismatch:
        return GenerationMismatch(
            f"somebody else wrote {key} in {self.name} meanwhile: generation {seen} was seen, and now it is another;"
            " the build that came first stays"
        )
