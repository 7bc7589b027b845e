"""What a build's container really is, read from the kernel while a player runs in it; and if it is not so, the end."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from ember_build.docker import build_containers as site
from ember_build.docker import container as container_module
from ember_build.docker.confinement import MB, Confinement, host_config
from ember_build.docker.confinement_check import Seen, check, seen_from_host
from ember_build.errors import BuildPlatformError
from tests.support.docker_engine import GOOD_DIST, SMALL, Engine, Yard

pytestmark = pytest.mark.docker
USER = "10001"
KERNELS_OWN_TUNNELS = r"(tunl|sit|gre|gretap|erspan|ip6\w*|ip_vti)0"


@dataclass(frozen=True)
class Process:
    """One process of a live container, as /proc of this machine tells of it."""

    status: dict[str, str]
    mountinfo: str
    devices: list[str]
    routes: list[str]
    environment: bytes
    limits: str


@dataclass(frozen=True)
class Live:
    """What was read from outside while a player ran in the container of a phase."""

    phase: str
    processes: list[Process]
    first: Seen
    configuration: str


def look_at(container: Any, phase: str) -> Live:
    pids = [row[0] for row in container.top(ps_args="-eo pid")["Processes"]]
    first = seen_from_host(container.id, int(pids[0]))
    assert first is not None
    processes = []
    for folder in (Path("/proc") / pid for pid in pids):
        lines = (folder / "status").read_text().splitlines()
        devices = [line.split(":")[0].strip() for line in (folder / "net" / "dev").read_text().splitlines()[2:]]
        processes.append(
            Process(
                status=dict(line.split(":\t", 1) for line in lines if ":\t" in line),
                mountinfo=(folder / "mountinfo").read_text(),
                devices=[name for name in devices if not re.fullmatch(KERNELS_OWN_TUNNELS, name)],
                routes=(folder / "net" / "route").read_text().splitlines()[1:],
                environment=(folder / "environ").read_bytes(),
                limits=(folder / "limits").read_text(),
            )
        )
    return Live(phase, processes, first, str(container.attrs))


@pytest.fixture(scope="module")
def local_engine(docker_engine: Engine) -> Engine:
    if not docker_engine.url.startswith("unix://") or not Path("/proc/self/status").exists():
        pytest.skip("the engine's processes are not on this machine")
    return docker_engine


@pytest.fixture(autouse=True)
def _local(local_engine: Engine) -> None:
    """All of this reads /proc."""


@pytest.fixture(scope="module", params=["dependencies", "build"])
def live(
    request: pytest.FixtureRequest, local_engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Live:
    """One real build for each phase, looked at while it runs."""
    phase: str = request.param
    yard = Yard(local_engine, "tests", tmp_path_factory.mktemp("live"))
    looked: list[Live] = []

    def listen(line: str) -> None:
        if line == "ready":
            with contextlib.closing(docker.DockerClient(base_url=local_engine.url)) as client:
                wanted = {"label": f"lookit-ops.deployment={yard.deployment}", "name": f"-{phase}"}
                (container,) = client.containers.list(filters=wanted)
                looked.append(look_at(container, phase))

    script = "echo ready; sleep 2"
    if phase == "build":
        yard.player.write(ember=f"{script}\n{GOOD_DIST}")
    else:
        yard.player.write(install=script)
    yard.build(on_line=listen, S3_SECRET_ACCESS_KEY="geheim")
    (found,) = looked
    assert len(found.processes) >= 4  # init, timeout, bash, yarn or ember, the script, sleep
    return found


def test_every_process_of_a_live_build_is_confined_by_the_kernel(live: Live) -> None:
    for status in (process.status for process in live.processes):
        assert status["Uid"].split() == [USER] * 4
        assert status["Gid"].split() == [USER] * 4
        assert set(status["Groups"].split()) <= {USER}
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"


def test_a_live_build_sees_its_own_folders_and_nothing_else_of_the_host(live: Live) -> None:
    mounts = {}
    for line in live.processes[-1].mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        mounts[before.split()[4]] = (before.split()[5].split(","), after)
    ours = {path for path in mounts if not re.match(r"/(proc|sys|dev|etc)(/|$)|/usr/sbin/docker-init|/sbin/", path)}
    assert ours == {"/", "/checkouts", "/work", "/tmp", "/egress" if live.phase == "dependencies" else "/deployments"}
    assert "ro" in mounts["/"][0]
    assert "ro" in mounts["/checkouts"][0]
    writable = {path for path in ours if "rw" in mounts[path][0]}
    assert writable == {"/work", "/tmp"} | ({"/deployments"} if live.phase == "build" else set())
    sizes = {"/work": SMALL.work_mb, "/tmp": SMALL.temporary_mb, "/deployments": SMALL.output_mb}
    for path in writable:
        options, after = mounts[path]
        assert {"nosuid", "nodev"} <= set(options)
        size = re.search(r"size=(\d+)k", after)
        assert after.startswith("tmpfs")
        assert size
        assert int(size[1]) * 1024 <= sizes[path] * MB


def test_a_live_build_has_its_limits_in_the_kernels_books(live: Live) -> None:
    groups = {path.rpartition("/")[2]: text.strip() for path, text in live.first.files.items() if "/cgroup/" in path}
    assert str(SMALL.memory_mb * MB // 4096 * 4096) in (groups.get("memory.max"), groups.get("memory.limit_in_bytes"))
    assert groups["pids.max"] == str(SMALL.processes)
    for process in live.processes:
        assert re.search(r"Max core file size\s+0\s+0", process.limits)
        assert re.search(r"Max open files\s+16384\s+16384", process.limits)


def test_a_live_build_has_no_network_and_only_ember_has_the_values(live: Live) -> None:
    for process in live.processes:
        assert process.devices == ["lo"]
        assert process.routes == []
    values = [b"geheim" in process.environment for process in live.processes]
    assert any(values) == (live.phase == "build")
    assert "geheim" not in live.configuration


def test_the_check_is_made_before_anything_of_the_player_runs(yard: Yard, client: docker.DockerClient) -> None:
    at: list[tuple[str, int, int]] = []

    def checked(phase: str, container_id: str) -> None:
        at.append((phase, len(yard.said), len(client.containers.get(container_id).top()["Processes"])))

    yard.build(builder=yard.builder(on_checked=checked))
    assert [phase for phase, _, _ in at] == ["dependencies", "build"]
    assert at[0][1] == 0
    assert all(count <= 2 for _, _, count in at), "init, and the program that waits"


# --- an engine that does not do what it was asked


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.pop(name)


def _with(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(changes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without("CapDrop"), "CapDrop"),
        (_without("SecurityOpt"), "SecurityOpt"),
        (_with(SecurityOpt=["no-new-privileges:true", "seccomp=unconfined"]), "SecurityOpt"),
        (_without("ReadonlyRootfs"), "ReadonlyRootfs"),
        (_with(Memory=0, MemorySwap=0), "Memory"),
        (_without("PidsLimit"), "PidsLimit"),
        (_without("CpuQuota"), "CpuQuota"),
        (_without("Ulimits"), "ulimit"),
        (_with(Binds=["/etc:/host-etc:ro"]), "Binds"),
        (_with(NetworkMode="bridge"), "NetworkMode"),
        (_with(PidMode="host"), "PidMode"),
        (_with(Privileged=True), "Privileged"),
        (_with(CapAdd=["NET_ADMIN"]), "CapAdd"),
        (_with(Tmpfs={"/tmp": "exec,size=100m"}), "tmp"),
    ],
)
def test_a_setting_that_was_not_applied_stops_the_build_and_is_named(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    def spoilt(api: Any, confinement: Confinement) -> dict[str, Any]:
        config = host_config(api, confinement)
        if confinement.temporary:  # the build's, not the proxy's
            change(config)
        return config

    monkeypatch.setattr(container_module, "host_config", spoilt)
    yard.player.write(install="echo ran", ember="echo ran")
    with pytest.raises(BuildPlatformError, match=rf"stopped before anything of the player ran.*{told}"):
        yard.build()
    assert yard.said == []
    assert yard.nothing_is_left()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without("CapDrop"), "capabilities"),
        (_without("SecurityOpt"), "no new privileges"),
        (_with(SecurityOpt=["no-new-privileges:true", "seccomp=unconfined"]), "seccomp"),
        (_without("ReadonlyRootfs"), "read-only root"),
        (_with(Memory=0, MemorySwap=0), "limit of memory"),
        (_without("PidsLimit"), "limit of processes"),
        (_without("CpuQuota"), "limit of CPU"),
        (_with(Binds=["/etc:/host-etc:ro"]), "/host-etc, which nobody asked for"),
        (_with(NetworkMode="bridge"), "no network"),
    ],
)
def test_the_kernel_alone_gives_it_away_where_the_engine_echoes_what_was_asked(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    """As an engine does that takes an option and drops it: an inspection would show nothing."""

    def spoilt(api: Any, confinement: Confinement) -> dict[str, Any]:
        config = host_config(api, confinement)
        if confinement.temporary:
            change(config)
        return config

    monkeypatch.setattr(container_module, "host_config", spoilt)
    monkeypatch.setattr(container_module, "check_configuration", lambda confinement, inspected: None)
    with pytest.raises(BuildPlatformError, match=rf"seen from inside: .*{told}"):
        yard.build()
    # And the same seen from the engine's host, with the first look blind.
    monkeypatch.setattr(
        container_module,
        "check",
        lambda confinement, seen, allowed, where: (
            None if where == "inside" else check(confinement, seen, allowed, where)
        ),
    )
    with pytest.raises(BuildPlatformError, match=rf"seen from the engine's host: .*{told}"):
        yard.build()
    assert yard.nothing_is_left()


def test_a_container_of_another_user_is_stopped(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for root by a mistake of ours: the kernel says so, whatever was noted."""
    real = site.confined_container

    def as_root(client: Any, image: str, name: str, confinement: Confinement, *rest: Any) -> Any:
        monkeypatch.setattr(container_module, "check_configuration", lambda confinement, inspected: None)
        wrong = dataclasses.replace(confinement, user=0)
        monkeypatch.setattr(
            container_module, "check", lambda _, seen, allowed, where: check(confinement, seen, allowed, where)
        )
        return real(client, image, name, wrong, *rest)

    monkeypatch.setattr(site, "confined_container", as_root)
    with pytest.raises(BuildPlatformError, match="user \\(Uid is '0"):
        yard.build()
    assert yard.nothing_is_left()
