"""Players that mean harm, each with a real container: one clear end in bounded time, and nothing reached or left."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from ember_build.bundle import Bundle
from ember_build.docker.confinement import MB
from ember_build.errors import BuildPlatformError, PlayerBuildFailed
from tests.support.docker_engine import GOOD_DIST, SMALL, Yard

pytestmark = pytest.mark.docker


@pytest.fixture(autouse=True)
def _in_bounded_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 60


def fails(yard: Yard, told: str, *, seconds: float = 30, **scripts: str) -> str:
    yard.player.write(**scripts)
    with pytest.raises(PlayerBuildFailed, match=told) as caught:
        yard.build(builder=yard.builder(seconds=seconds))
    assert yard.nothing_is_left()
    return str(caught.value)


def test_one_that_forks_without_end(yard: Yard) -> None:
    """The classic: it hits its limit of processes, and the machine does not notice."""
    fails(yard, "time limit|ended with status", seconds=12, ember="bomb() { bomb | bomb & }; bomb; sleep 300")
    assert sum(1 for folder in Path("/proc").iterdir() if folder.name.isdigit()) < 5000


def test_one_that_eats_memory_is_told_its_limit(yard: Yard) -> None:
    eat = 'python3 -c "a = []\nwhile True: a.append(bytearray(50_000_000))"'
    fails(yard, f"more memory than the {SMALL.memory_mb} MB", ember=eat)


def test_one_that_eats_memory_while_installing_is_told_so_too(yard: Yard) -> None:
    eat = 'python3 -c "a = []\nwhile True: a.append(bytearray(50_000_000))"'
    fails(yard, f"more memory than the {SMALL.memory_mb} MB", install=eat)


@pytest.mark.parametrize("place", ["/work/big", "/tmp/big", "/deployments/big", "/dev/shm/big"])
def test_one_that_fills_the_disk_is_told_how_much_it_has(yard: Yard, place: str) -> None:
    fails(yard, f"more room than the {SMALL.work_mb} MB", ember=f"cat /dev/zero > {place}")


def test_one_that_makes_files_without_end(yard: Yard) -> None:
    fails(yard, "more room than", ember="cd /work; mkdir many; cd many; seq 1 100000 | xargs touch")


def test_one_that_writes_one_file_that_is_larger_than_may_be(yard: Yard) -> None:
    """A sparse one takes no room, and would as output."""
    fails(yard, "ended with status", ember=f"truncate -s 20G big || exit 9\n{GOOD_DIST}")


@pytest.mark.parametrize("part", ["install", "ember"])
def test_one_that_writes_gigabytes_of_output(yard: Yard, part: str) -> None:
    fails(yard, r"printed more than 20,000,000 bytes", **{part: "yes a line of output that says nothing"})
    assert sum(len(line) + 1 for line in yard.said) < 1_200_000


def test_one_that_writes_one_endless_line(yard: Yard) -> None:
    fails(yard, r"printed more than 20,000,000 bytes", ember="cat /dev/zero | tr '\\0' x")
    assert all(len(line) < 5000 for line in yard.said)


def test_one_that_sleeps_for_ever(yard: Yard) -> None:
    fails(yard, "time limit of 0:00:08", seconds=8, ember="trap '' TERM INT; while :; do sleep 1; done")


def test_one_that_closes_its_output_and_sleeps(yard: Yard) -> None:
    """The end of the output is not the end of the build."""
    yard.player.write(ember="exec >&- 2>&-; sleep 300")
    with pytest.raises(PlayerBuildFailed, match="time limit"):
        yard.build(builder=yard.builder(seconds=10))
    assert yard.nothing_is_left()


def looks_around(yard: Yard, script: str, **environment: str) -> str:
    """Build a player that writes what it finds into its bundle."""
    yard.player.write(ember=f"{GOOD_DIST}\n({script}\n) > dist/found.txt 2>&1 || true")
    bundle: Bundle = yard.build(**environment)
    return (bundle.root / "found.txt").read_text()


def test_one_that_reads_the_environment_and_other_folders_finds_its_own(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKIT_SMTP_PASSWORD", "must-not-be-seen")
    neighbour = yard.root / "neighbour"
    neighbour.mkdir()
    (neighbour / "other-study.txt").write_text("must-not-be-seen")
    found = looks_around(
        yard,
        "cat /proc/*/environ | tr '\\0' '\\n'; ls -la / /checkouts /deployments /home /root /work/.. ;"
        f" cat {neighbour}/other-study.txt; ls -R {yard.root}; cat /var/run/docker.sock; cat /proc/1/root/etc/shadow;"
        " find / -xdev -name '*.sock'; mount",
        S3_SECRET_ACCESS_KEY="its-own",
    )
    assert "its-own" in found
    assert "must-not-be-seen" not in found
    assert str(yard.root) not in found.replace(f"'{yard.root}'", "").replace(f"{neighbour}/other-study.txt", "")
    assert "docker.sock" not in "\n".join(line for line in found.splitlines() if "No such file" not in line)


def test_one_that_writes_where_it_may_not(yard: Yard) -> None:
    places = (
        "/build.sh /environment /opt/lookit/launch.py /checkouts/package.json /usr/bin/yarn /etc/passwd /sys/kernel/x"
    )
    found = looks_around(yard, f"for place in {places}; do echo x >> $place && echo WRITTEN $place; done")
    assert "WRITTEN" not in found
    assert yard.player.folder.joinpath("package.json").read_text().startswith("{")


def test_one_that_wants_more_rights(yard: Yard) -> None:
    found = looks_around(
        yard,
        "su -c id; mount -t tmpfs x /work/node_modules && echo GOT; unshare -r id && echo GOT; chroot /work && echo GOT"
        "; mknod /work/sda b 8 0 && echo GOT; python3 -c 'import os; os.setuid(0); print(\"GOT\")';"
        " cp /bin/bash /work/b; chmod 6755 /work/b; /work/b -p -c id; kill -9 1; dmesg && echo GOT",
    )
    assert "GOT" not in found
    assert "uid=0" not in found


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        ("ln -s /etc/passwd dist/assets/secret.txt", "link"),
        ("ln dist/index.html dist/again.html", "link"),
        ("rm -r dist/assets; ln -s /etc dist/assets", "cannot overwrite|link"),
        ("mkfifo dist/pipe", "neither a file nor a folder"),
        ("echo x > $'dist/two\\nlines'", "name cannot be served"),
        ("for n in {1..900}; do d=$d/dddddddd; done; mkdir -p dist/${d:0:3000}", "name cannot be served|too long"),
    ],
)
def test_one_that_plants_what_is_no_file(yard: Yard, plant: str, told: str) -> None:
    # build.sh copies dist with cp: what cp leaves out, or refuses, has reached nothing either.
    yard.player.write(ember=f"{GOOD_DIST}\n{plant}\ncp -a dist/. /deployments/ 2>/dev/null; rm -rf dist; {GOOD_DIST}")
    with pytest.raises(PlayerBuildFailed, match=told):
        yard.build()
    assert yard.nothing_is_left()


@pytest.mark.parametrize("place", ["/etc", "/checkouts", "/nowhere"])
def test_one_that_makes_its_output_folder_a_link_gets_no_further_than_its_container(yard: Yard, place: str) -> None:
    fails(yard, r"ended with status 1|no index\.html|no dist folder", ember=f"ln -s {place} dist")


def test_a_socket_among_the_output_is_left_out(yard: Yard) -> None:
    bind = "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"dist/s\")'"
    yard.player.write(ember=f"{GOOD_DIST}\n{bind}\ncp -a dist/. /deployments/; rm dist/s")
    assert [str(file.path) for file in yard.build().files] == ["assets/player.js", "index.html"]


def test_one_that_stops_the_first_process_of_its_container(yard: Yard) -> None:
    """It may, being the same user; then its build never ends by itself."""
    attach = "python3 -c 'import ctypes; ctypes.CDLL(None).ptrace(16, 1, 0, 0)'; kill -STOP 1"
    yard.player.write(ember=f"{attach}\n{GOOD_DIST}")
    with contextlib.suppress(PlayerBuildFailed):  # of the time limit, if it succeeded
        yard.build(builder=yard.builder(seconds=10))
    assert yard.left_on_the_engine() == []


def test_one_that_leaves_a_bundle_of_too_many_files(yard: Yard) -> None:
    fails(yard, "room|larger than may be", ember=f"{GOOD_DIST}\ncd dist; seq 1 22000 | xargs touch")


def test_one_that_ends_well_without_output(yard: Yard) -> None:
    fails(yard, "made no dist folder", ember="exit 0")


def test_one_that_kills_the_script_around_it(yard: Yard) -> None:
    yard.player.write(ember="kill -9 -1; sleep 60")
    with pytest.raises((PlayerBuildFailed, BuildPlatformError)):
        yard.build()
    assert yard.nothing_is_left()


def test_one_that_leaves_background_processes_is_built_and_they_end_with_it(
    yard: Yard, client: docker.DockerClient
) -> None:
    leave = "for n in 1 2 3; do setsid bash -c 'trap \"\" TERM HUP; while :; do sleep 1; done' & done"
    yard.player.write(
        install=leave, ember=f"{leave}\npgrep -c bash > before || true\n{GOOD_DIST}cp before dist/before.txt"
    )
    began = time.monotonic()
    bundle = yard.build()
    assert time.monotonic() - began < 30
    assert bundle.file_count == 3
    assert yard.left_on_the_engine() == []


def test_what_was_started_while_installing_does_not_see_the_values(yard: Yard) -> None:
    """The two phases share files, but no process."""
    spy = "setsid bash -c 'while :; do cat /proc/*/environ > /work/seen.tmp; mv /work/seen.tmp /work/seen; done' 2>&- &"
    yard.player.write(install=f"{spy}\nsleep 1", ember=f"sleep 2\n{GOOD_DIST}cp /work/seen dist/seen.txt")
    bundle = yard.build(S3_SECRET_ACCESS_KEY="geheim")
    seen = (bundle.root / "seen.txt").read_bytes()
    assert b"CHECKOUT_DIR" in seen
    assert b"geheim" not in seen


# --- the network


def test_one_that_tries_the_network_in_the_build_phase(yard: Yard) -> None:
    script = """
import os, socket
print("interfaces", sorted(os.listdir("/sys/class/net")))
for address in [("1.1.1.1", 80), ("172.17.0.1", 80), ("169.254.169.254", 80), ("127.0.0.1", 3128), ("8.8.8.8", 53)]:
    try:
        socket.create_connection(address, 2); print("REACHED", address)
    except OSError as error:
        print(address, error)
for name in ["example.org", "host.docker.internal"]:
    try:
        print("REACHED", socket.getaddrinfo(name, 80))
    except OSError as error:
        print(name, error)
print("socket", os.path.exists("/egress/proxy.sock"))
"""
    found = looks_around(yard, f"python3 - <<'X'\n{script}\nX")
    assert "REACHED" not in found
    assert "interfaces ['lo']" in re.sub(r"'(tunl|sit|gre|gretap|erspan|ip6\w*|ip_vti)0', |, '(tunl|sit)0'", "", found)
    assert "socket False" in found


def test_what_installing_left_in_memory_does_not_count_twice_against_the_host(yard: Yard) -> None:
    """All that one build can hold: its memory, and the files of its first phase."""
    fill = f"head -c {SMALL.work_mb * MB * 8 // 10} /dev/zero > /work/kept"
    yard.player.write(install=fill, ember=f"test -s /work/kept && {GOOD_DIST}")
    assert yard.build().file_count == 2
