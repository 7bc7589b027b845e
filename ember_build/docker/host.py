"""What the Docker engine's host says of itself, wherever it is: its addresses, its memory, its free disk."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

import docker

from ember_build.docker.engine import engine_errors
from ember_build.errors import BuildPlatformError

_SECONDS = 60
_COMMAND = "cat /proc/net/fib_trie /proc/net/if_inet6 /proc/meminfo 2>/dev/null; df -Pk / | tail -n 1 | sed s/^/Disk:/"


@dataclass(frozen=True, slots=True)
class EngineHost:
    """`addresses` are all that it has, public ones among them. Sizes in MB of 1,000,000 bytes."""

    addresses: tuple[str, ...]
    available_memory_mb: int
    free_disk_mb: int


def look_at_engine_host(client: docker.DockerClient, image: str, labels: Mapping[str, str]) -> EngineHost:
    """Let a container of ours, in the host's network for that moment, read what the host says.

    Raises:
        BuildPlatformError: the engine failed, or the host said something else.
    """
    with engine_errors("say what its host has"):
        container_id = client.api.create_container(
            image=image,
            command=["/bin/sh", "-c", _COMMAND],
            labels=dict(labels),
            use_config_proxy=False,
            host_config=client.api.create_host_config(
                network_mode="host",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges:true"],
                mem_limit="64m",
                pids_limit=16,
            ),
        )["Id"]
        try:
            client.api.start(container_id)
            client.api.wait(container_id, timeout=_SECONDS)
            text = client.api.logs(container_id, stdout=True, stderr=False).decode("ascii", "replace")
        finally:
            client.api.remove_container(container_id, force=True)
    return _read(text)


def _read(text: str) -> EngineHost:
    addresses = set(re.findall(r"\|-- ([\d.]+)\n\s+/32 host LOCAL", text))
    addresses |= {str(ipaddress.IPv6Address(int(digits, 16))) for digits in re.findall(r"(?m)^([0-9a-f]{32}) ", text)}
    memory = re.search(r"(?m)^MemAvailable:\s+(\d+) kB", text)
    disk = re.search(r"(?m)^Disk:\S+\s+\d+\s+\d+\s+(\d+)\s", text)
    if not (addresses and memory and disk):
        raise BuildPlatformError(
            f"The Docker engine's host did not say which addresses and how much room it has, so no build may start: "
            f"{text[-200:]!r}"
        )
    return EngineHost(
        addresses=tuple(sorted(addresses)),
        available_memory_mb=int(memory[1]) * 1024 // 1_000_000,
        free_disk_mb=int(disk[1]) * 1024 // 1_000_000,
    )
