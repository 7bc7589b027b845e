"""The first program of a build's container: says what it finds itself in, waits for the order, becomes the command.

Until the order is there nothing of the player has run, so what is said here can be believed. Protocol: one line of
JSON to standard output (`seen`), then one line of JSON from standard input:

    command      what to become, and its arguments
    folder       where to run it
    values       values for the player; the image's own and `fixed` win over them
    fixed        variables of ours
    egress       optional: the socket of the way out, offered to the command at a port of 127.0.0.1

The values come this way, because whatever is in a container's configuration can be read by everyone who may look at it.
"""

import asyncio
import contextlib
import json
import os
import resource
import sys
from pathlib import Path

PROXY_PORT = 3128
READ = (
    "/proc/self/status",
    "/proc/self/mountinfo",
    "/proc/net/dev",
    "/proc/net/route",
    "/proc/net/ipv6_route",
    "/proc/swaps",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "/sys/fs/cgroup/cpu/cpu.cfs_period_us",
    "/sys/fs/cgroup/pids/pids.max",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory.swap.max",
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/pids.max",
)
LIMITS = {"nofile": resource.RLIMIT_NOFILE, "fsize": resource.RLIMIT_FSIZE, "core": resource.RLIMIT_CORE}


def main() -> None:
    sys.stdout.write(json.dumps({"seen": see()}) + "\n")
    sys.stdout.flush()
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 1 << 16)
        if not data:
            sys.exit("launch.py: no order came")
        line += data
    order = json.loads(line)
    silence = os.open("/dev/null", os.O_RDONLY)
    os.dup2(silence, 0)
    fixed = dict(order["fixed"])
    if order.get("egress"):
        offer(order["egress"])
        proxy = f"http://127.0.0.1:{PROXY_PORT}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            fixed[name] = fixed[name.lower()] = proxy
    if "HOME" in fixed:
        Path(fixed["HOME"]).mkdir(parents=True, exist_ok=True)
    os.chdir(order["folder"])
    environment = {**order["values"], **os.environ, **fixed}
    os.execve(order["command"][0], order["command"], environment)  # noqa: S606 - it becomes the command


def see() -> dict[str, object]:
    files = {}
    for path in READ:
        with contextlib.suppress(OSError):
            files[path] = Path(path).read_text()
    return {
        "files": files,
        "limits": {name: resource.getrlimit(number) for name, number in LIMITS.items()},
        "variables": sorted(os.environ),
        "root_is_writable": os.access("/", os.W_OK) or os.access("/opt/lookit/launch.py", os.W_OK),
    }


def offer(path: str) -> None:
    """Carry connections to a port of this container over to the socket, in a process that outlives this one."""
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        os.read(ready, 1)
        os.close(ready)
        os.wait()
        return
    if os.fork():
        os._exit(0)
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(0, descriptor)
    asyncio.run(carry(path, tell))


async def carry(path: str, tell: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to, out = await asyncio.open_unix_connection(path)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, out), pump(to, writer), return_exceptions=True)

    server = await asyncio.start_server(connected, "127.0.0.1", PROXY_PORT)
    os.write(tell, b"1")
    os.close(tell)
    await server.serve_forever()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()
        if reader.at_eof() and writer.transport.is_closing():
            writer.close()


if __name__ == "__main__":
    main()
