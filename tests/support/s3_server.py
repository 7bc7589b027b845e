"""A real S3 server for tests: SeaweedFS, in a process of its own, which verifies signatures and conditions."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from lookit_ops.storage.s3 import S3Access
from tests.support.gcs_servers import free_port

ACCESS_KEY, SECRET_KEY = "lookit-tests", "made-up-for-tests"
STARTS_WITHIN = 60.0


@dataclass(frozen=True)
class S3Server:
    """Where it is, and a client that may write."""

    url: str
    client: Any

    def access(self, **options: Any) -> S3Access:
        """How our adapter reaches it; `endpoint` may lead there by a detour."""
        said = {
            "endpoint": self.url,
            "access_key_id": SecretStr(ACCESS_KEY),
            "secret_access_key": SecretStr(SECRET_KEY),
            "read_timeout": 5,
        }
        return S3Access(**{**said, **options})

    def bucket(self, name: str) -> str:
        """Make a bucket."""
        self.client.create_bucket(Bucket=name)
        return name

    def put(self, bucket: str, key: str, contents: bytes) -> None:
        """Store an object."""
        self.client.put_object(Bucket=bucket, Key=key, Body=contents)


@contextmanager
def seaweedfs(folder: Path) -> Generator[S3Server]:
    """The server; its data are in the folder."""
    port = free_port()
    options = {"s3.port": port, "s3.port.iceberg": 0, "s3.port.lance": 0, "webdav": "false", "admin.ui": "false"}
    options["volume.max"] = 10_000  # each bucket takes volumes of its own, and each test a bucket
    options |= {f"{part}.port": free_port() for part in ("master", "volume", "filer", "admin")}
    options |= {f"{part}.port.grpc": free_port() for part in ("s3", "master", "volume", "filer", "admin")}
    command = [
        str(Path(sys.executable).with_name("weed")),
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
    ]
    output = folder / "output.txt"
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with output.open("wb") as said:
        process = subprocess.Popen(
            [*command, *(f"-{name}={value}" for name, value in options.items())],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    server = S3Server(f"http://127.0.0.1:{port}", None)
    client = server.access(read_timeout=30).connect()
    try:
        until = time.monotonic() + STARTS_WITHIN
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"weed does not start: {output.read_text(errors='replace')[-2000:]}")
            try:
                client.put_object(Bucket=_bucket(client, "probe"), Key="probe", Body=b"1")
                break
            except (ClientError, BotoCoreError):
                time.sleep(0.2)
        yield S3Server(server.url, client)
    finally:
        client.close()
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _bucket(client: Any, name: str) -> str:
    if name not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=name)
    return name
