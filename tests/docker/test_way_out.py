"""What a build reaches while it installs: public addresses, through its proxy; nothing of host, cloud or neighbour."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import docker
import pytest

from ember_build.docker.host import look_at_engine_host
from ember_build.errors import PlayerBuildFailed
from tests.support.docker_engine import Engine, Yard

pytestmark = pytest.mark.docker

TRIES = r"""
import json, os, socket, sys
targets = json.loads(sys.argv[1])
for host, port in targets:
    try:
        socket.create_connection((host, port), 2); print("REACHED directly", host)
    except OSError:
        pass
    for line in (f"CONNECT {host}:{port} HTTP/1.1", f"GET http://{host}:{port}/ HTTP/1.1"):
        with socket.create_connection(("127.0.0.1", 3128), 5) as proxy:
            proxy.settimeout(30)
            proxy.sendall(f"{line}\r\nHost: {host}\r\n\r\n".encode())
            answer = proxy.recv(100).decode("latin-1").splitlines()[:1]
        print("REACHED" if answer and " 200 " in answer[0] else "refused", host, port, answer)
"""


@pytest.fixture
def server() -> Iterator[tuple[int, list[str]]]:
    """A service of the host on all its addresses, as a database may be; what has called is in the list."""
    calls: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            calls.append(self.client_address[0])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
            pass

    with ThreadingHTTPServer(("0.0.0.0", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        yield listening.server_address[1], calls
        listening.shutdown()
        thread.join()


def tried(yard: Yard, targets: list[tuple[str, int]], *opened: str) -> str:
    """Install with a script that tries all targets, directly and through the proxy; returns what it printed."""
    (yard.player.folder / "tries.py").write_text(TRIES)
    asked = json.dumps(targets).replace("'", "")
    yard.player.write(install=f"python3 tries.py '{asked}'")
    yard.build(builder=yard.builder(open_networks=opened))
    return "\n".join(yard.said)


def test_nothing_of_the_host_the_cloud_or_a_neighbour_is_reached(
    yard: Yard, image: str, client: docker.DockerClient, server: tuple[int, list[str]]
) -> None:
    port, calls = server
    host = look_at_engine_host(client, image, {})
    neighbour = client.containers.run(
        image, ["/usr/bin/python3", "-m", "http.server", "80"], user="0", detach=True, network="bridge"
    )
    try:
        neighbour.reload()
        address = neighbour.attrs["NetworkSettings"]["IPAddress"]
        gateway = neighbour.attrs["NetworkSettings"]["Gateway"]
        assert address
        addresses = [address for address in host.addresses if ":" not in address]
        targets = [(found, port) for found in {*addresses, gateway}] + [(found, 80) for found in addresses]
        targets += [(address, 80), ("localhost", port), ("127.0.0.1", port), ("0.0.0.0", port), ("2130706433", port)]
        targets += [("0x7f000001", port), ("127.1", port), ("[::1]", port), (f"[::ffff:{gateway}]", port)]
        targets += [("169.254.169.254", 80), ("metadata.google.internal", 80), ("[fd00:ec2::254]", 80)]
        targets += [("10.0.0.1", 443), ("192.168.1.1", 80), ("172.16.0.1", 80), ("100.64.0.1", 80), ("1.1.1.1", 5432)]
        found = tried(yard, targets)
    finally:
        neighbour.remove(force=True)
    assert found.count("refused") == 2 * len(targets)
    assert "REACHED" not in found
    assert calls == []


def test_what_the_settings_open_is_reached_and_only_at_its_port(
    yard: Yard, image: str, client: docker.DockerClient, server: tuple[int, list[str]]
) -> None:
    """The control: the same attempts do get through where they may."""
    port, calls = server
    gateway = str(client.networks.get("bridge").attrs["IPAM"]["Config"][0].get("Gateway") or "172.17.0.1")
    found = tried(yard, [(gateway, port), (gateway, 80)], f"{gateway}:{port}")
    assert found.count("REACHED") == 2
    assert "REACHED directly" not in found
    assert found.count("refused") == 2
    assert len(calls) == 1


def test_a_refusal_is_named_in_the_error_of_a_build_that_needs_it(yard: Yard) -> None:
    yard.engine = Engine(yard.engine.url, None)
    (yard.player.folder / ".npmrc").write_text("registry=http://10.11.12.13/\n")
    (yard.player.folder / ".yarnrc").write_text('registry "http://10.11.12.13/"\nnetwork-timeout 3000\n')
    yard.player.write()
    package = yard.player.folder / "package.json"
    package.write_text(package.read_text().replace('"devDep', '"dependencies": {"a": "1.0.0"}, "devDep'))
    with pytest.raises(PlayerBuildFailed, match=r"may not reach \(10\.11\.12\.13 port 80 .*is not open to builds\)"):
        yard.build()
    assert yard.nothing_is_left()
