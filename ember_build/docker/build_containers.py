"""Where one build happens on the engine: volumes, a container that holds them, and commands in confined containers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import docker

from ember_build.builder import BuildCancelled
from ember_build.child_process import TimeLimitReached
from ember_build.docker.confinement import Confinement, Limits, Mount, tmpfs_options
from ember_build.docker.container import (
    Command,
    OutputLimitReached,
    confined_container,
    removed_container,
    removed_volume,
)
from ember_build.docker.engine import engine_errors
from ember_build.docker.proxy import SOCKET, SOCKET_FOLDER, Egress
from ember_build.errors import BuildPlatformError, PlayerBuildFailed
from ember_build.output import Lines
from ember_build.script_log import Course

CHECKOUTS, WORK, DEPLOYMENTS, DEPENDENCIES, YARN_CACHE, FIRST_SEEN_FOLDER, TEMPORARY = (
    *("/checkouts", "/work", "/deployments", "/dependencies", "/yarn-cache", "/first-seen"),
    "/tmp",  # noqa: S108 - the container's own
)
"""The folders of a container."""

KEEPER_MEMORY_MB = 512
# After this a container ends by itself, should nobody be left who could end it.
_ORPHAN_SECONDS = 120
_ALL_END_SECONDS = 0.5
"""In which an engine that is stopped has told all its containers."""


@dataclass(frozen=True, slots=True)
class Site:
    """What all containers of one build have in common. `name` begins the names of all that it has on the engine."""

    client: docker.DockerClient
    image: str
    name: str
    labels: Mapping[str, str]
    limits: Limits
    time_limit: timedelta
    most_output_bytes: int
    course: Course
    deadline: float
    """By the clock of time.monotonic()."""
    cancelled: threading.Event | None = None
    on_checked: Callable[[str, str], None] | None = field(default=None, repr=False)

    @contextlib.contextmanager
    def disk(self, part: str) -> Generator[str]:
        """Make a volume on the engine's disk, which has no limit of its own: nothing of a player may write to it."""
        with removed_volume(self.client, f"{self.name}-{part}", self.labels) as volume:
            yield volume

    @contextlib.contextmanager
    def memory(self, part: str, size_mb: int, files: int) -> Generator[str]:
        """Make a volume in memory, with a size that holds; it keeps its files while a container has it mounted."""
        options = tmpfs_options(size_mb, files)
        with removed_volume(self.client, f"{self.name}-{part}", self.labels, options) as volume:
            yield volume

    @contextlib.contextmanager
    def keeper(self, part: str, mounts: Sequence[Mount]) -> Generator[str]:
        """Hold volumes, with a container in which nothing of a player runs; yields its id."""
        confinement = Confinement(limits=self.limits, mounts=tuple(mounts), memory_mb=KEEPER_MEMORY_MB, processes=64)
        seconds = int(self.time_limit.total_seconds()) + 2 * _ORPHAN_SECONDS
        command = ["/bin/sleep", str(seconds)]
        name = f"{self.name}-{part}"
        with removed_container(self.client, self.image, name, confinement, self.labels, command) as keeper:
            with engine_errors("start a container"):
                self.client.api.start(keeper)
            yield keeper

    def send(self, keeper: str, folder: str, parts: Iterable[bytes]) -> None:
        """Send a tar to a folder of a container, as root of the engine.

        Raises:
            BuildPlatformError: the engine failed, or this machine cannot read what is to be sent.
            BuildCancelled: somebody asked for the end.
        """

        def sent() -> Generator[bytes]:
            for part in parts:
                if self.cancelled is not None and self.cancelled.is_set():
                    raise BuildCancelled("The build was cancelled while its files were sent to the engine.")
                yield part

        try:
            with engine_errors("take the checkout"):
                self.client.api.put_archive(keeper, folder, sent())
        except OSError as error:
            raise BuildPlatformError(f"This machine could not read the checkout: {error}.") from error

    def run(
        self,
        keeper: str,
        part: str,
        phase: str,
        command: Sequence[str],
        mounts: Sequence[Mount],
        fixed: Mapping[str, str],
        values: Mapping[str, str] | None = None,
        way_out: Egress | None = None,
    ) -> None:
        """Run a command in a confined container to its end, with the course listening, while `keeper` lives.

        Raises:
            PlayerBuildFailed, BuildPlatformError: it failed, and whose fault that is.
            Cancelled: somebody asked for the end.
        """
        limits = self.limits
        if way_out:
            mounts = [*mounts, Mount(way_out.volume, SOCKET_FOLDER, writable=False)]
        confinement = Confinement(limits=limits, mounts=tuple(mounts), temporary={TEMPORARY: limits.temporary_mb})

        def checked(container_id: str) -> None:
            if self.on_checked:
                self.on_checked(part, container_id)

        with confined_container(
            self.client, self.image, f"{self.name}-{part}", confinement, self.labels, checked
        ) as container:
            left = int(max(0.0, self.deadline - time.monotonic())) + _ORPHAN_SECONDS
            container.give(
                Command(
                    ["/usr/bin/timeout", "--signal=KILL", str(left), *command],
                    fixed={"HOME": f"{TEMPORARY}/home", "TMPDIR": TEMPORARY, **fixed},
                    values=values or {},
                    egress=SOCKET if way_out else None,
                )
            )
            lines = Lines(self.course.add)
            try:
                for data in container.read(self.deadline, self.cancelled, self.most_output_bytes):
                    lines.add(data)
            except TimeLimitReached:
                raise self.course.out_of_time(phase, self.time_limit) from None
            except OutputLimitReached:
                raise PlayerBuildFailed(
                    f"The build was ended during `{self.course.step}`: it printed more than "
                    f"{self.most_output_bytes:,} bytes, far more than anybody can read. {self.course.last_lines()}"
                ) from None
            lines.close()
            status, out_of_memory = container.status()
        if status != 0:
            self.require_life(keeper)
            raise self._failure(phase, status, way_out, out_of_memory=out_of_memory)

    def _failure(
        self, phase: str, status: int, way_out: Egress | None, *, out_of_memory: bool
    ) -> PlayerBuildFailed | BuildPlatformError:
        """Return the error of a command that failed: whose fault that is, and why."""
        if out_of_memory:
            return PlayerBuildFailed(
                f"The build needs more memory than the {self.limits.memory_mb:,} MB that it has, of which its files"
                " take a part. Make it smaller (fewer packages, fewer files at a time), or ask the operator for a"
                f" higher limit. It ended during `{self.course.step}` with status {status}. {self.course.last_lines()}"
            )
        error = self.course.error(phase, status)
        closed, unreachable = way_out.refusals() if way_out else ([], [])
        if closed:
            return PlayerBuildFailed(
                f"The build asked for what it may not reach ({'; '.join(closed)}): dependencies must come from public "
                f"addresses, unless the operator opens others. {error}"
            )
        if unreachable and isinstance(error, BuildPlatformError):
            return BuildPlatformError(f"{error}\nOn its way out it did not reach: {'; '.join(unreachable)}.")
        return error

    def require_life(self, keeper: str) -> None:
        """Make sure that a failure is the build's own: an engine that is stopped ends all containers, and says nothing.

        Nobody in a build can reach the keeper.

        Raises:
            BuildPlatformError: the keeper has ended too, or the engine does not answer.
        """
        time.sleep(_ALL_END_SECONDS)
        with engine_errors("say how the build ended"):
            lives = self.client.api.inspect_container(keeper)["State"]["Running"]
        if not lives:
            raise BuildPlatformError(
                "The Docker engine ended the build's containers, as it does when it is stopped or restarted, during "
                f"`{self.course.step}`."
            )
