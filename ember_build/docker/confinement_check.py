"""Whether a container is confined as was asked: read from the kernel.

The engine's own account of a container mostly repeats what was asked, and an option that it does not know or cannot
apply is dropped without a word. So the truth is read from the kernel: by the container's first program, before
anything of the player runs, and where the engine is on this machine from outside as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ember_build.docker.confinement import CPU_PERIOD, MB, Confinement
from ember_build.errors import BuildPlatformError

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# Mounts that every container has; whatever else is there was asked for, or should not be there.
_ALWAYS = re.compile(r"/(proc|sys|dev)(/.*)?|/etc/(resolv\.conf|hostname|hosts)|/(usr/)?s?bin/docker-init")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the kernel says of one process of a container; `files` by path as the process itself would read them."""

    files: Mapping[str, str]
    limits: Mapping[str, Sequence[int]]
    variables: frozenset[str]
    root_is_writable: bool


def seen_from_inside(line: str) -> Seen:
    """Read what the container's first program has printed.

    Raises:
        BuildPlatformError: it is something else.
    """
    try:
        told = json.loads(line)["seen"]
        return Seen(
            files=dict(told["files"]),
            limits=dict(told["limits"]),
            variables=frozenset(told["variables"]),
            root_is_writable=bool(told["root_is_writable"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BuildPlatformError(
            f"The build's container did not say what it runs in, so the build was stopped: {line[:300]!r}"
        ) from error


def seen_from_host(container_id: str, pid: int) -> Seen | None:
    """Read the same from outside; None where the container's processes are not on this machine, or not ours to see."""
    own = _PROC / str(pid)
    try:
        groups = (own / "cgroup").read_text()
        if container_id not in groups:
            return None
        # The engine's init process is the parent of the one that will become the build.
        children = (own / "task" / str(pid) / "children").read_text().split()
        target = _PROC / (children[0] if children else str(pid))
        files = {
            f"/proc/{name}": (target / name.replace("self/", "")).read_text()
            for name in ("self/status", "self/mountinfo", "net/dev", "net/route", "net/ipv6_route")
            if (target / name.replace("self/", "")).exists()
        }
        files["/proc/swaps"] = (_PROC / "swaps").read_text()
        files |= _cgroup_files(groups)
        environment = (target / "environ").read_bytes().split(b"\0")
        limits = _limits_of((target / "limits").read_text())
    except (OSError, IndexError):
        return None
    return Seen(
        files=files,
        limits=limits,
        variables=frozenset(entry.partition(b"=")[0].decode("utf-8", "replace") for entry in environment if entry),
        root_is_writable=False,  # said by mountinfo
    )


def _cgroup_files(groups: str) -> dict[str, str]:
    """Read the limits of a cgroup (v1 or v2) under the names that they have inside the container."""
    names = {
        "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
        "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
        "pids": ("pids.max",),
        "": ("memory.max", "memory.swap.max", "cpu.max", "pids.max"),
    }
    files: dict[str, str] = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            for name in names.get(controller, ()):
                file = _CGROUPS / controller / path.lstrip("/") / name
                if file.is_file():
                    files[f"/sys/fs/cgroup/{controller}/{name}".replace("//", "/")] = file.read_text()
    return files


def _limits_of(text: str) -> dict[str, list[int]]:
    wanted = {"Max open files": "nofile", "Max file size": "fsize", "Max core file size": "core"}
    found: dict[str, list[int]] = {}
    for line in text.splitlines():
        for title, name in wanted.items():
            if line.startswith(title):
                soft, hard = line.removeprefix(title).split()[:2]
                found[name] = [-1 if value == "unlimited" else int(value) for value in (soft, hard)]
    return found


def check(confinement: Confinement, seen: Seen, allowed_variables: frozenset[str], where: str) -> None:
    """Stop the build if anything that was asked for does not hold; `where` says who looked.

    Raises:
        BuildPlatformError: naming each setting that was not applied.
    """
    wrong = list(_faults(confinement, seen, allowed_variables))
    if wrong:
        raise BuildPlatformError(
            "The build was stopped before anything of the player ran: the Docker engine did not apply what was asked "
            f"for, seen from {where}: {'; '.join(wrong)}."
        )


def check_configuration(confinement: Confinement, inspected: Mapping[str, Any]) -> None:
    """Compare what the engine has noted with what was asked: catches options that were put in the wrong place.

    Raises:
        BuildPlatformError: naming each setting that differs.
    """
    host, config = inspected["HostConfig"], inspected["Config"]
    wrong = [
        f"{name} is {host.get(name)!r}"
        for name, wanted in {
            "Privileged": False,
            "ReadonlyRootfs": True,
            "Init": True,
            "CapDrop": ["ALL"],
            "IpcMode": "private",
            "NetworkMode": confinement.network or "none",
            "Memory": confinement.memory_bytes,
            "MemorySwap": confinement.memory_bytes,
            "PidsLimit": confinement.most_processes,
            "CpuQuota": int(confinement.limits.cpus * CPU_PERIOD),
        }.items()
        if host.get(name) != wanted
    ]
    wrong += [f"{name} is {host[name]!r}" for name in ("CapAdd", "Binds", "Devices", "GroupAdd") if host.get(name)]
    wrong += [f"{name} is {host[name]!r}" for name in ("PidMode", "UTSMode", "UsernsMode") if host.get(name)]
    options = host.get("SecurityOpt") or []
    if "no-new-privileges:true" not in options or any("unconfined" in option for option in options):
        wrong.append(f"SecurityOpt is {options!r}")
    if config.get("User") != f"{confinement.user}:{confinement.user}":
        wrong.append(f"User is {config.get('User')!r}")
    if wrong:
        raise BuildPlatformError(
            "The build was stopped before anything of the player ran: the Docker engine has noted other settings than "
            f"were asked for: {'; '.join(wrong)}."
        )


def _faults(confinement: Confinement, seen: Seen, allowed_variables: frozenset[str]) -> list[str]:
    wrong: list[str] = []

    def expect(holds: object, text: str) -> None:
        if not holds:
            wrong.append(text)

    status = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in seen.files.get("/proc/self/status", "").splitlines())
    }
    user = [str(confinement.user)] * 4
    expect(status.get("Uid", "").split() == user, f"user (Uid is {status.get('Uid')!r})")
    expect(status.get("Gid", "").split() == user, f"group (Gid is {status.get('Gid')!r})")
    groups = set(status.get("Groups", "").split()) - {str(confinement.user)}
    expect(not groups, f"supplementary groups ({sorted(groups)})")
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        expect(status.get(name, "").strip("0") == "" and name in status, f"capabilities ({name} is {status.get(name)})")
    expect(status.get("NoNewPrivs") == "1", f"no new privileges (NoNewPrivs is {status.get('NoNewPrivs')})")
    expect(status.get("Seccomp") == "2", f"seccomp filter (Seccomp is {status.get('Seccomp')})")
    expect(not seen.root_is_writable, "read-only root (it can be written)")
    wrong += _mount_faults(confinement, seen.files.get("/proc/self/mountinfo", ""))
    wrong += _cgroup_faults(confinement, seen.files)
    wanted = {
        "nofile": confinement.limits.open_files,
        "fsize": confinement.largest_file_bytes,
        "core": 0,
    }
    for name, number in wanted.items():
        expect(list(seen.limits.get(name, ())) == [number, number], f"ulimit {name} (is {seen.limits.get(name)})")
    if confinement.network is None:
        wrong += network_faults(seen.files)
    strange = seen.variables - allowed_variables
    expect(not strange, f"environment (has {', '.join(sorted(strange))})")
    return wrong


def network_faults(files: Mapping[str, str]) -> list[str]:
    """Say what of a network there is, where there should be none: an interface but `lo`, or a route that leads out."""
    wrong = []
    devices = [line.split(":")[0].strip() for line in files.get("/proc/net/dev", "").splitlines()[2:]]
    # Tunnels that the kernel puts, closed and without an address, into every network namespace when their module is
    # loaded; only an administrator of the namespace could open one, and nobody in it is.
    others = [
        name
        for name in devices
        if name != "lo"
        and not re.fullmatch(
            r"(tunl|sit|gre|gretap|erspan|ip6tnl|"
            r"ip6gre|ip_vti|ip6_vti)0",
            name,
        )
    ]
    if "/proc/net/dev" not in files or others:
        wrong.append(f"no network (there is {', '.join(others) or 'no list of interfaces'})")
    routes = files.get("/proc/net/route", "").splitlines()[1:]
    routes += [line for line in files.get("/proc/net/ipv6_route", "").splitlines() if line.split()[-1] != "lo"]
    if "/proc/net/route" not in files or routes:
        wrong.append(f"no network (there are {len(routes)} routes)")
    return wrong


def _mount_faults(confinement: Confinement, text: str) -> list[str]:
    wrong: list[str] = []
    found: dict[str, tuple[set[str], str, str]] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) < 6 or len(rest) < 3:
            return [f"mounts (cannot be read: {line!r})"]
        found[fields[4]] = (set(fields[5].split(",")), rest[0], rest[2])
    asked = {mount.target: mount for mount in confinement.mounts}
    root = found.get("/")
    if root is None or "ro" not in root[0]:
        wrong.append("read-only root (it is mounted for writing)")
    known = {"/", *asked, *confinement.temporary}
    strange = [target for target in found if target not in known and not _ALWAYS.fullmatch(target)]
    wrong += [f"mounts (there is {target}, which nobody asked for)" for target in strange]
    for mount in confinement.mounts:
        if mount.target not in found:
            wrong.append(f"mounts ({mount.target} is missing)")
            continue
        options, kind, inner = found[mount.target]
        if ("rw" in options) != mount.writable:
            wrong.append(f"mounts ({mount.target} is {'writable' if 'rw' in options else 'read-only'})")
        if mount.size_mb is not None:
            wrong += _tmpfs_faults(mount.target, mount.size_mb, options if mount.writable else None, kind, inner)
    for target, size_mb in confinement.temporary.items():
        if target not in found:
            wrong.append(f"mounts ({target} is missing)")
            continue
        wrong += _tmpfs_faults(target, size_mb, *found[target])
    return wrong


def _tmpfs_faults(target: str, size_mb: int, options: set[str] | None, kind: str, inner: str) -> list[str]:
    wrong = []
    size = re.search(r"(?:^|,)size=(\d+)k(?:,|$)", inner)
    if kind != "tmpfs" or not size or int(size[1]) * 1024 > size_mb * MB:
        wrong.append(f"size of {target} (it is {kind} with {inner!r})")
    if "nr_inodes=" not in inner:
        wrong.append(f"number of files in {target} (has no limit)")
    # A read-only one holds nothing that this container could have made.
    if options is not None and not {"nosuid", "nodev"} <= options:
        wrong.append(f"nosuid and nodev of {target} (it has {','.join(sorted(options))})")
    return wrong


def _cgroup_faults(confinement: Confinement, files: Mapping[str, str]) -> list[str]:
    wrong: list[str] = []

    def value(name: str) -> str | None:
        text = files.get(f"/sys/fs/cgroup/{name}")
        return text.strip() if text is not None else None

    def expect(title: str, wanted: object, found: object) -> None:
        if wanted != found:
            wrong.append(f"limit of {title} (is {found}, not {wanted})")

    swap_exists = len(files.get("/proc/swaps", "").strip().splitlines()) > 1
    memory, quota = str(confinement.memory_bytes), int(confinement.limits.cpus * CPU_PERIOD)
    if value("memory.max") is not None:
        expect("memory", memory, value("memory.max"))
        if swap_exists:
            expect("swap", "0", value("memory.swap.max"))
        expect("CPU", f"{quota} {CPU_PERIOD}", value("cpu.max"))
        expect("processes", str(confinement.most_processes), value("pids.max"))
    else:
        expect("memory", memory, value("memory/memory.limit_in_bytes"))
        if swap_exists:
            expect("memory with swap", memory, value("memory/memory.memsw.limit_in_bytes"))
        expect("CPU", f"{quota} {CPU_PERIOD}", f"{value('cpu/cpu.cfs_quota_us')} {value('cpu/cpu.cfs_period_us')}")
        expect("processes", str(confinement.most_processes), value("pids/pids.max"))
    return wrong
