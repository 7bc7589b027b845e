"""What a build's container may do: its limits, and how the engine is asked for them.

Whether they really hold is asked of the kernel: `confinement_check.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BUILDER_USER = 10001
PROXY_USER = 10002
"""The users of the image; neither exists outside of it."""

MB = 1_000_000
CPU_PERIOD = 100_000
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """What one build may use. Its files are kept in memory, so `memory_mb` covers them: it is what the host needs.

    work_mb: the copy of the checkout with node_modules; temporary_mb: caches and temporary files; output_mb: the
    distribution. A tmpfs of that size is a limit that holds on every engine, where a volume on a disk has none.
    """

    memory_mb: int = 7000
    work_mb: int = 3000
    temporary_mb: int = 2500
    output_mb: int = 300
    cpus: float = 2.0
    processes: int = 1024
    files: int = 500_000
    output_files: int = 20_000
    open_files: int = 16_384

    def __post_init__(self) -> None:
        needed = self.work_mb + self.temporary_mb + self.output_mb + 500
        if self.memory_mb < needed:
            raise ValueError(
                f"a build's memory of {self.memory_mb} MB must hold its files too ({self.work_mb} MB of work, "
                f"{self.temporary_mb} MB of temporary files, {self.output_mb} MB of output) and leave 500 MB: "
                f"give it {needed} MB or more"
            )


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume in a container; `size_mb` where it is a tmpfs."""

    volume: str
    target: str
    writable: bool
    size_mb: int | None = None


@dataclass(frozen=True, slots=True)
class Confinement:
    """All that decides what a container may do. `network` is None for none at all."""

    limits: Limits
    user: int = BUILDER_USER
    network: str | None = None
    mounts: tuple[Mount, ...] = ()
    temporary: Mapping[str, int] = field(default_factory=dict)  # sized tmpfs, MB by folder
    memory_mb: int | None = None
    processes: int | None = None

    @property
    def memory_bytes(self) -> int:
        # Whole pages, as the kernel counts.
        return (self.memory_mb or self.limits.memory_mb) * MB // _PAGE * _PAGE

    @property
    def most_processes(self) -> int:
        return self.processes or self.limits.processes

    @property
    def largest_file_bytes(self) -> int:
        return max(self.limits.work_mb, self.limits.temporary_mb) * MB


def tmpfs_options(size_mb: int, files: int, user: int = BUILDER_USER) -> str:
    """Return the mount options of a sized tmpfs that belongs to a user."""
    return f"size={size_mb * MB // _PAGE * _PAGE},nr_inodes={files},nosuid,nodev,uid={user},gid={user},mode=0755"


def host_config(client_api: Any, confinement: Confinement) -> dict[str, Any]:
    """Return what the engine is asked for; `check` finds out what became of it."""
    limits = confinement.limits
    return client_api.create_host_config(
        network_mode=confinement.network or "none",
        read_only=True,
        init=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        ipc_mode="private",
        mem_limit=confinement.memory_bytes,
        memswap_limit=confinement.memory_bytes,
        cpu_period=CPU_PERIOD,
        cpu_quota=int(limits.cpus * CPU_PERIOD),
        pids_limit=confinement.most_processes,
        shm_size=64 * MB,
        oom_kill_disable=False,
        ulimits=[
            {"Name": "nofile", "Soft": limits.open_files, "Hard": limits.open_files},
            {"Name": "fsize", "Soft": confinement.largest_file_bytes, "Hard": confinement.largest_file_bytes},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        tmpfs={
            folder: f"exec,{tmpfs_options(size_mb, limits.files, confinement.user)}"
            for folder, size_mb in confinement.temporary.items()
        },
        mounts=[
            {
                "Type": "volume",
                "Source": mount.volume,
                "Target": mount.target,
                "ReadOnly": not mount.writable,
                "VolumeOptions": {"NoCopy": True},
            }
            for mount in confinement.mounts
        ],
        restart_policy={"Name": "no"},
        # Read live through an attached stream; what the engine keeps of it besides is small.
        log_config={"Type": "json-file", "Config": {"max-size": "5m", "max-file": "1"}},
    )
