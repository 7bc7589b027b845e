"""A bucket of built studies whose requests end when their worker is told to stop, even if the bucket hangs.

A request that is left alone may still arrive. That is harmless for all but the page: objects are named by their content
or by their claim, and copies are made again for the deployment that is live. So the caller must take NoAnswer from
`write_page` for what it says, and fence the page before it calls the deployment a failure. Once the caller knows that
the page is live, its deployment counts and a cancellation comes too late: the caller says so by `ask_to_the_end`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from ember_build.errors import BuildCancelled
from ember_build.waiting import Grace, answer_of
from lookit_ops.storage.errors import NoAnswer
from lookit_ops.storage.experiments import ExperimentBucket, StoredFile, StoredPage

T = TypeVar("T")


class CancellableExperimentBucket:
    """Asks the bucket that `open_bucket` returns; once `stop` is set, for a moment only, and then raises NoAnswer.

    An interruption of the thread that waits sets `stop`: the threads beside it end, too.
    """

    def __init__(self, open_bucket: Callable[[], ExperimentBucket], stop: threading.Event) -> None:
        self._open = open_bucket
        self._stop = stop
        self._grace = Grace(stop)
        self._to_the_end = False

    def ask_to_the_end(self) -> None:
        """From now on, wait for each answer although `stop` is set: the deployment is live and needs its files."""
        self._to_the_end = True

    def _ask(self, ask: Callable[[ExperimentBucket], T], what: str) -> T:
        if self._to_the_end:
            return ask(self._open())
        try:
            return answer_of(lambda: ask(self._open()), self._grace, what)
        except BuildCancelled:
            raise NoAnswer(f"the bucket had not answered when the work was told to stop, while {what}") from None
        except Exception:
            raise
        except BaseException:
            self._stop.set()
            raise

    @property
    def name(self) -> str:
        """See the port; likewise below."""
        return self._ask(lambda bucket: bucket.name, "it was opened")

    def close(self) -> None:
        """Do nothing: whoever opened the bucket closes it."""

    def claim_environment(self, environment: str) -> None:
        self._ask(lambda bucket: bucket.claim_environment(environment), "its environment was asked")

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
        return self._ask(
            lambda bucket: bucket.put(
                key, source, content_type=content_type, cache_control=cache_control, replace=replace, listed=listed
            ),
            f"{key} was sent",
        )

    def read(self, key: str) -> bytes:
        return self._ask(lambda bucket: bucket.read(key), f"{key} was read")

    def page(self, key: str) -> StoredPage | None:
        return self._ask(lambda bucket: bucket.page(key), f"{key} was read")

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
        return self._ask(
            lambda bucket: bucket.write_page(
                key,
                content,
                content_type=content_type,
                cache_control=cache_control,
                metadata=metadata,
                if_generation=if_generation,
            ),
            f"{key} was written",
        )

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        return iter(self._ask(lambda bucket: list(bucket.files(prefix)), f"{prefix or 'it'} was listed"))

    def delete(self, key: str) -> None:
        self._ask(lambda bucket: bucket.delete(key), f"{key} was deleted")

    def copy(self, source_key: str, destination_key: str) -> None:
        self._ask(lambda bucket: bucket.copy(source_key, destination_key), f"{destination_key} was copied")
