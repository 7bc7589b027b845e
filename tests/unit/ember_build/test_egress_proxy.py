"""The rules of the proxy: which addresses a build may reach, however they are written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[3] / "ember_build" / "docker" / "image" / "egress_proxy.py"


@pytest.fixture(scope="module")
def proxy() -> ModuleType:
    """The program, which lies in the image and is no module of the package."""
    spec = importlib.util.spec_from_file_location("egress_proxy", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "93.184.216.34",
        "168.63.129.17",
        "192.0.1.1",
        "223.255.255.254",
        "2606:4700::1111",
        "2a00:1450::1",
        "::ffff:1.1.1.1",
    ],
)
@pytest.mark.parametrize("port", [80, 443])
def test_public_addresses_are_open_at_the_webs_ports(proxy: ModuleType, address: str, port: int) -> None:
    assert proxy.Rules("", "").allow("example.org", port, address)


@pytest.mark.parametrize("port", [22, 25, 53, 5432, 8080])
def test_other_ports_are_not(proxy: ModuleType, port: int) -> None:
    assert not proxy.Rules("", "").allow("example.org", port, "1.1.1.1")


CLOSED = {
    "unspecified": ["0.0.0.0", "0.1.2.3", "::"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.17.0.1", "172.31.255.255", "192.168.0.1", "fc00::1", "fdff::1"],
    "shared by a provider": ["100.64.0.1", "100.127.255.255"],
    "link-local": ["169.254.0.1", "169.254.255.255", "fe80::1", "febf::1"],
    "site-local": ["fec0::1", "feff::1"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "192.0.0.1", "192.0.0.9", "192.0.0.10", "192.0.0.170", "192.0.0.171"],
    "for documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.80", "2001:db8::1", "3fff::1"],
    "for measurements": ["198.18.0.1", "198.19.255.255", "2001:2::1", "192.31.196.1", "192.52.193.1", "192.175.48.1"],
    "metadata of clouds": ["169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "fd00:ec2::254"],
    "metadata of clouds over IPv6": ["fd20:ce::254", "fe80::a9fe:a9fe"],
    "mapped": ["::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:168.63.129.16", "::ffff:10.0.0.1"],
    "compatible": ["::7f00:1", "::a9fe:a9fe"],
    "NAT64": ["64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::1"],
    "6to4": ["2002:7f00:1::", "2002:a9fe:a9fe::1", "192.88.99.1"],
    "Teredo": ["2001:0:53aa:64c:0:fbe6:8000:fffe"],
    "ORCHID": ["2001:10::1", "2001:20::1"],
    "discard only": ["100::1"],
    "segment routing": ["5f00::1"],
    "not given out": ["1::1", "4000::1", "8000::1", "e000::1", "fe00::1"],
}


@pytest.mark.parametrize(
    "address", [pytest.param(address, id=f"{kind} {address}") for kind in CLOSED for address in CLOSED[kind]]
)
@pytest.mark.parametrize("port", [80, 443])
def test_no_other_address_is(proxy: ModuleType, address: str, port: int) -> None:
    assert not proxy.Rules("", "").allow("example.org", port, address)


def test_the_hosts_own_public_addresses_are_closed(proxy: ModuleType) -> None:
    rules = proxy.Rules("93.184.216.34,2606:4700::1111", "")
    assert not rules.allow("example.org", 443, "93.184.216.34")
    assert not rules.allow("example.org", 443, "::ffff:93.184.216.34")
    assert not rules.allow("example.org", 443, "2606:4700::1111")
    assert rules.allow("example.org", 443, "93.184.216.35")


@pytest.mark.parametrize(
    ("opened", "name", "port", "address", "allowed"),
    [
        ("10.1.2.0/24", "npm.lab", 80, "10.1.2.3", True),
        ("10.1.2.0/24", "npm.lab", 4873, "10.1.2.3", False),
        ("10.1.2.0/24:4873", "npm.lab", 4873, "10.1.2.3", True),
        ("10.1.2.0/24:4873", "npm.lab", 80, "10.1.2.3", False),
        ("10.1.2.0/24", "npm.lab", 80, "10.1.3.3", False),
        ("npm.lab", "NPM.lab.", 443, "10.1.2.3", True),
        ("npm.lab:4873", "npm.lab", 4873, "10.1.2.3", True),
        ("npm.lab", "evil.npm.lab", 443, "10.1.2.3", False),
        ("npm.lab", "npm.lab.evil", 443, "10.1.2.3", False),
        ("[fd00::1]:4873", "npm.lab", 4873, "fd00::1", True),
        ("fd00::/64", "npm.lab", 443, "fd00::9", True),
        ("fd00::/64", "npm.lab", 443, "fd01::9", False),
    ],
)
def test_what_the_settings_open(
    proxy: ModuleType, opened: str, name: str, port: int, address: str, allowed: bool
) -> None:
    assert proxy.Rules("", f"192.168.77.0/24, {opened}").allow(name, port, address) is allowed


@pytest.mark.parametrize(
    ("line", "target"),
    [
        (b"CONNECT example.org:443 HTTP/1.1", ("example.org", 443)),
        (b"CONNECT [2606:4700::1111]:443 HTTP/1.1", ("2606:4700::1111", 443)),
        (b"GET http://example.org/a?b HTTP/1.1", ("example.org", 80)),
        (b"GET http://example.org:8080 HTTP/1.0", ("example.org", 8080)),
    ],
)
def test_what_a_request_asks_for(proxy: ModuleType, line: bytes, target: tuple[str, int]) -> None:
    assert proxy.target_of(line)[1:3] == target


@pytest.mark.parametrize(
    "line",
    [
        *(b"GET / HTTP/1.1", b"CONNECT example.org HTTP/1.1", b"CONNECT a b:80 HTTP/1.1", b"GET https://a/ HTTP/1.1"),
        *(b"GET http://user@evil/ HTTP/1.1", b"GET http://a/\rHost: b HTTP/1.1", b"get http://a/ HTTP/1.1", b""),
    ],
)
def test_anything_else_is_refused(proxy: ModuleType, line: bytes) -> None:
    with pytest.raises(proxy.Refused):
        proxy.target_of(line)
