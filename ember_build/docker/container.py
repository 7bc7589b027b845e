"""One hardened container: made, looked at before anything runs in it, run while its output is read, and removed."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import docker
import requests
from docker.errors import DockerException, NotFound

from ember_build.child_process import Cancelled, TimeLimitReached
from ember_build.docker.confinement import Confinement, host_config
from ember_build.docker.confinement_check import check, check_configuration, seen_from_host, seen_from_inside
from ember_build.docker.engine import engine_errors
from ember_build.errors import BuildPlatformError

_LAUNCH = ["/usr/bin/python3", "-I", "-S", "/opt/lookit/launch.py"]
_START_SECONDS = 60
_END_SECONDS = 30
_TICK = 0.2
_LONGEST_REPORT = 1_000_000
_KEPT_BYTES = 10_000
# What an engine puts into every environment, besides what the image says.
_ENGINES_VARIABLES = frozenset({"HOSTNAME", "HOME", "PATH"})


class OutputLimitReached(Exception):
    """The command printed more than any build has to say, and was ended."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a container runs: `values` are for the player, `fixed` wins over them; no inspection shows either."""

    arguments: Sequence[str]
    folder: str = "/"
    fixed: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    egress: str | None = None


class Container:
    """A container that waits for its command and has been found to be what was asked for."""

    def __init__(self, client: docker.DockerClient, container_id: str, connection: socket.socket, rest: bytes) -> None:
        self._client = client
        self.id = container_id
        self._connection = connection
        self._frames = _Frames(rest)

    def give(self, command: Command) -> None:
        """Let the container become the command."""
        order = {
            "command": list(command.arguments),
            "folder": command.folder,
            "fixed": dict(command.fixed),
            "values": dict(command.values),
            "egress": command.egress,
        }
        with _lost_connection():
            self._connection.settimeout(_START_SECONDS)
            self._connection.sendall(json.dumps(order).encode() + b"\n")

    def read(
        self, deadline: float, cancelled: threading.Event | None = None, most_bytes: int | None = None
    ) -> Iterator[bytes]:
        """Yield what the command prints until it and all that it started have ended.

        Raises:
            TimeLimitReached, Cancelled, OutputLimitReached: it has not ended, and removing the container ends it.
            BuildPlatformError: the connection broke.
        """
        read_bytes = 0
        while True:
            if cancelled is not None and cancelled.is_set():
                raise Cancelled
            if time.monotonic() > deadline:
                raise TimeLimitReached
            for data in self._frames.whole():
                read_bytes += len(data)
                yield data
            if most_bytes is not None and read_bytes > most_bytes:
                raise OutputLimitReached
            received = _receive(self._connection)
            if received == b"":
                return
            if received:
                self._frames.add(received)

    def status(self) -> tuple[int, bool]:
        """Return the exit status, and whether the kernel ended a process for want of memory.

        Raises:
            BuildPlatformError: it still runs, or the engine does not say.
        """
        with engine_errors("say how the build ended"):
            deadline = time.monotonic() + _END_SECONDS
            while True:
                state = self._client.api.inspect_container(self.id)["State"]
                if not state["Running"]:
                    break
                if time.monotonic() > deadline:
                    raise BuildPlatformError("The connection to the build's container was lost while it was running.")
                time.sleep(0.05)
        return int(state["ExitCode"]), bool(state["OOMKilled"])


def run_in(
    client: docker.DockerClient,
    container_id: str,
    command: Sequence[str],
    deadline: float,
    cancelled: threading.Event | None = None,
) -> tuple[int, str]:
    """Run a command in a container that runs, and return its exit status and the end of what it printed.

    Raises:
        TimeLimitReached, Cancelled: it has not ended, and removing the container ends it.
        BuildPlatformError: the engine failed.
    """
    with engine_errors("run a command in a container"):
        run = client.api.exec_create(container_id, list(command), workdir="/")["Id"]
        stream = client.api.exec_start(run, socket=True)
    connection = getattr(stream, "_sock", stream)
    said = b""
    try:
        for data in Container(client, container_id, connection, b"").read(deadline, cancelled):
            said = (said + data)[-_KEPT_BYTES:]
    finally:
        _close(stream, connection)
    with engine_errors("say how a command ended"):
        status = client.api.exec_inspect(run)["ExitCode"]
    if status is None:
        raise BuildPlatformError("The Docker engine does not say how a command ended.")
    return int(status), said.decode("utf-8", "replace")


def _receive(connection: socket.socket) -> bytes | None:
    """Return what has come, nothing (b"") at the end, None if nothing came for a moment."""
    with _lost_connection():
        connection.settimeout(_TICK)
        try:
            return connection.recv(1 << 16)
        except TimeoutError:
            return None


@contextlib.contextmanager
def _lost_connection() -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise BuildPlatformError(f"The connection to the Docker engine broke during the build: {error}") from error


class _Frames:
    """Takes apart the engine's stream, in which each piece of output has a head with its length."""

    def __init__(self, begin: bytes = b"") -> None:
        self._held = bytearray(begin)
        self._left = 0

    def add(self, data: bytes) -> None:
        self._held += data

    def whole(self) -> Iterator[bytes]:
        while self._held:
            if self._left == 0:
                if len(self._held) < 8:
                    return
                self._left = struct.unpack(">I", self._held[4:8])[0]
                del self._held[:8]
                continue
            piece = bytes(self._held[: self._left])
            del self._held[: len(piece)]
            self._left -= len(piece)
            yield piece


@contextlib.contextmanager
def confined_container(
    client: docker.DockerClient,
    image: str,
    name: str,
    confinement: Confinement,
    labels: Mapping[str, str],
    on_checked: Callable[[str], None] | None = None,
) -> Generator[Container]:
    """Make a container, start it, and yield it when it has been seen to be confined; it is gone afterwards.

    Raises:
        BuildPlatformError: the engine failed, or did not apply a setting.
    """
    with removed_container(client, image, name, confinement, labels, _LAUNCH, interactive=True) as container_id:
        with engine_errors("attach to the build's container"):
            stream = client.api.attach_socket(
                container_id, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1, "logs": 0}
            )
        connection = getattr(stream, "_sock", stream)
        try:
            with engine_errors("start the build's container"):
                client.api.start(container_id)
            report, rest = _report(connection)
            _look(client, container_id, image, confinement, report)
            if on_checked:
                on_checked(container_id)
            yield Container(client, container_id, connection, rest)
        finally:
            _close(stream, connection)


def _look(client: docker.DockerClient, container_id: str, image: str, confinement: Confinement, report: str) -> None:
    with engine_errors("describe the build's container"):
        inspected = client.api.inspect_container(container_id)
        variables = client.api.inspect_image(image)["Config"].get("Env") or []
    allowed = _ENGINES_VARIABLES | {entry.partition("=")[0] for entry in variables}
    check_configuration(confinement, inspected)
    check(confinement, seen_from_inside(report), allowed, "inside")
    from_host = seen_from_host(container_id, int(inspected["State"]["Pid"]))
    if from_host is not None:
        check(confinement, from_host, allowed, "the engine's host")


def _report(connection: socket.socket) -> tuple[str, bytes]:
    """Read the first line that the container prints, and what came after it."""
    frames, said = _Frames(), b""
    deadline = time.monotonic() + _START_SECONDS
    while b"\n" not in said:
        received = _receive(connection)
        if received == b"" or time.monotonic() > deadline or len(said) > _LONGEST_REPORT:
            raise BuildPlatformError(
                "The build's container did not start as it should: "
                + (said.decode("utf-8", "replace").strip()[-500:] or "it said nothing.")
            )
        frames.add(received or b"")
        said += b"".join(frames.whole())
    line, _, _ = said.partition(b"\n")
    # It waits now, so nothing can have come after the line.
    return line.decode("utf-8", "replace"), b""


def _close(stream: Any, connection: socket.socket) -> None:
    # The response first: it holds the connection of the pool, and would warn when it is collected.
    for thing in (getattr(stream, "_response", None), stream, connection):
        if thing is not None:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                thing.close()


@contextlib.contextmanager
def removed_container(
    client: docker.DockerClient,
    image: str,
    name: str,
    confinement: Confinement,
    labels: Mapping[str, str],
    command: Sequence[str],
    *,
    interactive: bool = False,
) -> Generator[str]:
    """Make a container without starting it, yield its id, and remove it with everything that runs in it."""
    with engine_errors("make a container"):
        container_id = client.api.create_container(
            image=image,
            command=list(command),
            name=name,
            hostname="build",
            user=f"{confinement.user}:{confinement.user}",
            working_dir="/",
            stdin_open=interactive,
            tty=False,
            labels=dict(labels),
            use_config_proxy=False,
            host_config=host_config(client.api, confinement),
        )["Id"]
    try:
        yield container_id
    finally:
        remove_container(client, container_id)


def remove_container(client: docker.DockerClient, container_id: str) -> None:
    """End and remove a container. What cannot be removed now, because the engine is gone, the next cleanup removes."""
    _remove(lambda: client.api.remove_container(container_id, v=True, force=True))


@contextlib.contextmanager
def removed_volume(
    client: docker.DockerClient, name: str, labels: Mapping[str, str], tmpfs: str | None = None
) -> Generator[str]:
    """Make a volume, a tmpfs with these options or a folder on the engine's disk, and remove it at the end."""
    with engine_errors("make a volume"):
        options = {"type": "tmpfs", "device": "tmpfs", "o": tmpfs} if tmpfs else None
        client.api.create_volume(name, driver="local", driver_opts=options, labels=dict(labels))
    try:
        yield name
    finally:
        remove_volume(client, name)


def remove_volume(client: docker.DockerClient, name: str) -> None:
    """Remove a volume. What cannot be removed now, because the engine is gone, the next cleanup removes."""
    _remove(lambda: client.api.remove_volume(name, force=True))


def _remove(act: Callable[[], object]) -> None:
    for pause in (0.2, 1.0, 0.0):
        try:
            act()
        except NotFound:
            return
        except (DockerException, requests.RequestException, OSError):
            time.sleep(pause)
        else:
            return
