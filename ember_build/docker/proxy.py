"""The way out for the phase that fetches dependencies: a proxy in a container of its own, behind a Unix socket.

The build's container has no network in either phase. In the first it finds a socket in a volume, with a proxy at its
other end that refuses everything but public addresses; so there is no interface that could lead to the host, to a
metadata service, to a private network or to another build, and no firewall rule that somebody has to set up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import docker
import requests
from docker.errors import DockerException, NotFound

from ember_build.docker.confinement import PROXY_USER, Confinement, Limits, Mount, tmpfs_options
from ember_build.docker.container import Command, Container, confined_container, removed_volume
from ember_build.docker.engine import engine_errors
from ember_build.errors import BuildPlatformError

SOCKET_FOLDER = "/egress"
SOCKET = f"{SOCKET_FOLDER}/proxy.sock"

_SOCKET_MB = 1
_PROXY_MEMORY_MB = 256
_PROXY_PROCESSES = 128
_READY_SECONDS = 60
_LISTED_REFUSALS = 20


@dataclass(frozen=True, slots=True)
class Egress:
    """A proxy that is ready: `volume` holds its socket, for the container that may use it."""

    volume: str
    container: Container
    client: docker.DockerClient

    def refusals(self) -> tuple[list[str], list[str]]:
        """Return what the proxy has closed to the build, and what it could not reach: the first few, each once."""
        try:
            log = self.client.api.logs(self.container.id, stdout=True, stderr=False, tail=1000)
        except (DockerException, requests.RequestException):
            return [], []
        lines = log.decode("utf-8", "replace").splitlines()
        told = dict.fromkeys(line.removeprefix("refused: ") for line in lines if line.startswith("refused: "))
        closed = [line for line in told if "not open to builds" in line]
        unreachable = [line for line in told if line.startswith(("getaddrinfo ", "connect "))]
        return closed[:_LISTED_REFUSALS], unreachable[:_LISTED_REFUSALS]


@contextlib.contextmanager
def egress(
    client: docker.DockerClient,
    image: str,
    name: str,
    limits: Limits,
    labels: Mapping[str, str],
    closed: Sequence[str],
    opened: Sequence[str] = (),
) -> Generator[Egress]:
    """Start the proxy and yield it when it listens; it, its network and its volume are gone afterwards.

    `closed` are addresses that are not to be reached though they are public, `opened` what is, though it is not.

    Raises:
        BuildPlatformError: the engine failed.
    """
    with (
        removed_volume(client, f"{name}-egress", labels, tmpfs_options(_SOCKET_MB, 16, PROXY_USER)) as volume,
        _network(client, f"{name}-egress", labels) as network,
    ):
        confinement = Confinement(
            limits=limits,
            user=PROXY_USER,
            network=network,
            mounts=(Mount(volume, SOCKET_FOLDER, writable=True, size_mb=_SOCKET_MB),),
            memory_mb=_PROXY_MEMORY_MB,
            processes=_PROXY_PROCESSES,
        )
        with confined_container(client, image, f"{name}-egress", confinement, labels) as container:
            container.give(
                Command(
                    [
                        "/usr/bin/python3",
                        "-I",
                        "/opt/lookit/egress_proxy.py",
                        SOCKET,
                        ",".join(closed),
                        ",".join(opened),
                    ]
                )
            )
            said = b""
            for data in container.read(time.monotonic() + _READY_SECONDS):
                said += data
                if b"ready\n" in said:
                    break
            else:
                raise BuildPlatformError(f"The build's way to the network ended at once: {said[-500:].decode()}")
            yield Egress(volume, container, client)


@contextlib.contextmanager
def _network(client: docker.DockerClient, name: str, labels: Mapping[str, str]) -> Generator[str]:
    with engine_errors("make a network"):
        network = client.api.create_network(
            name,
            driver="bridge",
            options={"com.docker.network.bridge.enable_icc": "false"},
            check_duplicate=True,
            labels=dict(labels),
        )["Id"]
    try:
        yield name
    finally:
        for pause in (0.2, 1.0, 0.0):
            try:
                client.api.remove_network(network)
            except NotFound:
                break
            except (DockerException, requests.RequestException, OSError):
                time.sleep(pause)
            else:
                break
