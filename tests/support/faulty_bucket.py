"""A bucket that refuses: any bucket, with a plan for which calls fail, before or after they were carried out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from lookit_ops.storage.errors import StorageError
from lookit_ops.storage.experiments import ExperimentBucket, StoredFile


@dataclass
class FaultyBucket:
    """Passes every call on, unless a plan for the method says otherwise."""

    real: ExperimentBucket
    calls: list[tuple[str, str]] = field(default_factory=list)
    _plans: dict[str, Callable[[str], None]] = field(default_factory=dict)
    _after: dict[str, Callable[[str], None]] = field(default_factory=dict)

    def refuse(self, method: str, key_holds: str = "") -> None:
        """Let the method fail from now on, for keys that hold this text."""

        def plan(key: str) -> None:
            if key_holds in key:
                raise StorageError(f"the bucket refuses to {method} {key}")

        self._plans[method] = plan

    def allow(self, method: str) -> None:
        """Let the method work again."""
        del self._plans[method]

    def before(self, method: str, do: Callable[[str], None]) -> None:
        """Do something before the method is carried out."""
        self._plans[method] = do

    def hang(self, method: str, key_holds: str = "") -> threading.Event:
        """Let the method not answer, for keys that hold this text, until the returned event is set; then it goes on."""
        released = threading.Event()

        def plan(key: str) -> None:
            if key_holds in key:
                released.wait(60)

        self._plans[method] = plan
        return released

    def after(self, method: str, do: Callable[[str], None]) -> None:
        """Do something once the method has been carried out."""
        self._after[method] = do

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.real, name)
        if not callable(real):
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            key = str(args[0]) if args else ""
            self.calls.append((name, key))
            if name in self._plans:
                self._plans[name](key)
            answer = real(*args, **kwargs)
            if name in self._after:
                self._after[name](key)
            return answer

        return call


class _Backdated(FaultyBucket):
    by: timedelta = timedelta()

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        for file in self.real.files(prefix):
            yield replace(file, updated_at=file.updated_at - self.by)


def backdated(bucket: ExperimentBucket, by: timedelta) -> FaultyBucket:
    """The bucket, whose listing tells of files that are older than they are; its pages are as they are."""
    old = _Backdated(bucket)
    old.by = by
    return old
