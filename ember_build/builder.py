"""The port that every way of building a player fills: with a container, or with a child process on this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ember_build.bundle import Bundle
from ember_build.errors import BuildCancelled as BuildCancelled

BUILD_SCRIPT = Path(__file__).with_name("build.sh")
"""What every builder runs."""
ENVIRONMENT_FILE = Path(__file__).with_name("environment")
"""The template of a player's `.env`."""

OutputLine = Callable[[str], None]
"""Receives the output of a step while it runs, one line at a time, without its line break."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a build runs in: a name that changes with its contents, what is in it, and the seconds it took to get it."""

    name: str
    description: str
    seconds: float


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """What is to be built: `checkout` is only read, `output` appears when, and only when, the build is complete.

    `environment` holds values that the caller has chosen for this player from the allow-list. They end up in the
    bundle that the public loads, and are kept out of this object's repr. `trusted` says that the commit is one that the
    operator trusts, so that it may share what others of its repository have installed; `labels` (study, request,
    claim, repository) name the build where something of it can be seen; `image` is the name that `prepare` returned.
    """

    checkout: Path
    prefix: str
    environment: Mapping[str, str] = field(repr=False)
    output: Path
    trusted: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed, by name, and what could not be, with the reason."""

    removed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


class Builder(Protocol):
    """Builds players, any number of them, one per call."""

    @property
    def is_isolated(self) -> bool:
        """Whether a build reaches nothing but its own files: only then may a stranger's code be built."""
        ...

    def remove_orphans(self, is_running: Callable[[Mapping[str, str]], bool]) -> Removed:
        """Remove what builds have left whose worker died; `is_running` tells by the labels of a build.

        Raises:
            BuildPlatformError: what is there cannot even be listed.
        """
        ...

    def prepare(
        self,
        on_output: OutputLine,
        checkout: Path | None = None,
        labels: Mapping[str, str] | None = None,
        cancelled: threading.Event | None = None,
    ) -> Image:
        """Make ready what builds run in; quick when it is there already.

        `checkout` is looked at for the versions that it asks for; `labels` name the build that it is for.

        Raises:
            PlayerBuildFailed: the checkout asks for what no builder has.
            BuildPlatformError: it cannot be had on this machine or at this time.
            BuildCancelled: `cancelled` was set.
        """
        ...

    def build(self, order: BuildOrder, on_output: OutputLine, cancelled: threading.Event | None = None) -> Bundle:
        """Build a player into `order.output` and return what was checked there.

        Whatever happens, no process of the build outlives this call. `cancelled` ends it from another thread.

        Raises:
            PlayerBuildFailed: the player's own code does not build.
            BuildPlatformError: the machine or the network failed.
            BuildCancelled: `cancelled` was set.
        """
        ...
