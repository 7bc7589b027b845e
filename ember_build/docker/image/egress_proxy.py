"""The only way out of a build that fetches its dependencies: an HTTP proxy behind a Unix socket.

It resolves each name itself, refuses it if any of its addresses is not an ordinary public one (or opened by the
settings), and connects to the very address that it has looked at, so that a name which answers differently the second
time gains nothing. Its container alone has a network; the build's has none.

usage: egress_proxy.py SOCKET CLOSED OPENED    two lists, separated by commas: addresses and networks never to be
reached, and what the settings open: networks or names, each with `:port` or for the ports 80 and 443
"""

import asyncio
import contextlib
import ipaddress
import re
import signal
import socket
import sys
import time
from pathlib import Path

PORTS = {80, 443}
MOST_CONNECTIONS = 256
HEAD_LIMIT = 16384
HEAD_SECONDS = 30
CONNECT_SECONDS = 20
NAME_SECONDS = 60
MOST_NAMES = 1000
IDLE_SECONDS = 300
# Never an ordinary public address, even where this version of Python says so: IANA's special-purpose registries, and
# addresses inside a cloud. https://www.iana.org/assignments/iana-ipv4-special-registry (and -ipv6-)
SPECIAL = [
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # Azure: the host's agent, name server and health probe
        "::/96",  # unspecified, loopback, and IPv4 addresses in an outdated spelling
        *("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"),  # translators and tunnels to IPv4
        *("100::/64", "2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20", "5f00::/16"),
        *("fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),  # private, link-local, site-local, multicast
    )
]
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All that IANA has given out of IPv6: nothing else is public today."""


class Refused(Exception):
    """What is not done: the status line for whoever asked, and the reason."""


class Rules:
    def __init__(self, closed: str, opened: str) -> None:
        self.closed = [ipaddress.ip_network(entry) for entry in entries(closed)]
        self.networks: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, set[int]]] = []
        self.names: list[tuple[str, set[int]]] = []
        for entry in entries(opened):
            target, ports = with_ports(entry)
            try:
                self.networks.append((ipaddress.ip_network(target, strict=False), ports))
            except ValueError:
                self.names.append((target.lower().rstrip("."), ports))

    def allow(self, name: str, port: int, found: str) -> bool:
        """Say whether the address that was found for the name may be reached at this port."""
        address = ipaddress.ip_address(found)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if any(
            port in ports and address.version == network.version and address in network
            for network, ports in self.networks
        ):
            return True
        if any(port in ports and name.lower().rstrip(".") == opened for opened, ports in self.names):
            return True
        if port not in PORTS or not address.is_global:
            return False
        if address.version == 6 and address not in GLOBAL_UNICAST:
            return False
        return not any(address.version == network.version and address in network for network in self.closed + SPECIAL)


def entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def with_ports(entry: str) -> tuple[str, set[int]]:
    match = re.fullmatch(r"\[([^]]+)\](/\d+)?(?::(\d+))?|([^:]+)(?::(\d+))?", entry)
    if not match:
        return entry, PORTS  # an IPv6 network without a port
    port = match[3] or match[5]
    target = match[1] + (match[2] or "") if match[1] else match[4]
    return target, {int(port)} if port else PORTS


class Names:
    """Looks names up, each once a minute however many ask: a thousand packages come from one registry."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, asyncio.Task[list[str]]]] = {}

    async def addresses(self, name: str) -> list[str]:
        now = time.monotonic()
        until, task = self.found.get(name, (0.0, None))
        if task is None or now > until:
            if len(self.found) >= MOST_NAMES:
                self.found.clear()
            task = asyncio.create_task(self.look_up(name))
            self.found[name] = (now + NAME_SECONDS, task)
        try:
            return await asyncio.shield(task)
        except (OSError, UnicodeError):
            self.found.pop(name, None)
            raise Refused("502 Bad Gateway", f"getaddrinfo ENOTFOUND {name}") from None

    async def look_up(self, name: str) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await asyncio.wait_for(loop.getaddrinfo(name, None, type=socket.SOCK_STREAM), CONNECT_SECONDS)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def reach(rules: Rules, names: Names, name: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    addresses = await names.addresses(name)
    # One forbidden address is enough: a name that mixes them is trying something.
    for address in addresses:
        if "%" in address or not rules.allow(name, port, address):
            raise Refused("403 Forbidden", f"{name} port {port} ({address}) is not open to builds")
    for address in addresses:
        with contextlib.suppress(OSError):
            return await asyncio.wait_for(asyncio.open_connection(address, port), CONNECT_SECONDS)
    raise Refused("502 Bad Gateway", f"connect ETIMEDOUT {name}:{port}")


def target_of(line: bytes) -> tuple[bytes, str, int, bytes, bytes]:
    """Return what the first line of a request asks for: method, host, port, path, version."""
    match = re.fullmatch(rb"CONNECT (\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5}) HTTP/1\.[01]", line)
    if match:
        return b"CONNECT", match[1].decode().strip("[]"), int(match[2]), b"", b""
    match = re.fullmatch(
        rb"([A-Z]{1,16}) http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?(/[!-~]*)? (HTTP/1\.[01])", line
    )
    if match:
        return match[1], match[2].decode().strip("[]"), int(match[3] or 80), match[4] or b"/", match[5]
    raise Refused("400 Bad Request", "not a request that this proxy knows")


class Proxy:
    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.names = Names()
        self.free = asyncio.Semaphore(MOST_CONNECTIONS)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        out = None
        try:
            async with self.free:
                try:
                    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS)
                    first, _, rest = head.partition(b"\r\n")
                    method, name, port, path, version = target_of(first)
                    back, out = await reach(self.rules, self.names, name, port)
                except Refused as refused:
                    status, reason = refused.args
                    tell(f"refused: {reason}")
                    text = (reason + "\n").encode()
                    writer.write(
                        b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
                        % (status.encode(), len(text), text)
                    )
                    await writer.drain()
                    return
                if method == b"CONNECT":
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    # One request per connection: the next one may be for another host, and has to be looked at again.
                    kept = [
                        line
                        for line in rest.split(b"\r\n")
                        if line and not re.match(rb"(?i)(proxy-[a-z-]+|connection|keep-alive):", line)
                    ]
                    out.write(
                        b"\r\n".join([b" ".join([method, path, version]), *kept, b"Connection: close"]) + b"\r\n\r\n"
                    )
                await asyncio.gather(pump(reader, out), pump(back, writer))
        except (OSError, EOFError, ValueError):
            pass
        finally:
            for end in (out, writer):
                if end is not None:
                    end.close()


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await asyncio.wait_for(reader.read(1 << 16), IDLE_SECONDS):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def main(path: str, closed: str, opened: str) -> None:
    proxy = Proxy(Rules(closed, opened))
    server = await asyncio.start_unix_server(proxy.serve, path, limit=HEAD_LIMIT)
    Path(path).chmod(0o666)  # the build is another user, and nobody else sees this volume
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, server.close)
    tell("ready")
    with contextlib.suppress(asyncio.CancelledError):
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
