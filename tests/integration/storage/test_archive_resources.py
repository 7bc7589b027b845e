"""What an archive takes: memory that does not grow with it, nothing on the disk; and archives that are very large.

Each is made in a process of its own, by the side `ours` of the benchmarks.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import requests

from benchmarks.videos.network import cloud
from benchmarks.videos.sides import Measured
from domain.videos.object_names import VideoKey
from tests.support.gcs_servers import BUCKET
from tests.support.reels import contents_of
from tests.support.s3_server import S3Server

ROOT = Path(__file__).resolve().parents[3]
MB = 1_000_000
UNZIP = shutil.which("unzip") or "unzip"
FIRST_MS = 1_772_359_200_000


@pytest.fixture
def gcs() -> Iterator[str]:
    """A strict Google Cloud Storage in a process of its own."""
    with cloud("gcs", BUCKET) as url:
        yield url


def film(s3: S3Server, count: int, contents: Callable[[int], bytes]) -> str:
    """A bucket with so many videos."""
    bucket = s3.bucket(f"videos-{uuid4().hex}")
    for number in range(count):
        key = VideoKey(UUID(int=1), "1-frame", UUID(int=2), FIRST_MS + number, "1").object_key
        s3.put(bucket, key, contents(number))
    return bucket


def measure(s3: S3Server, bucket: str, gcs: str, count: int) -> Measured:
    command = [sys.executable, "-m", "benchmarks.videos.sides", "ours", s3.url, bucket, gcs, BUCKET, str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Measured(**json.loads(done.stdout))


def download(gcs: str, to: Path) -> Path:
    """The only object of the bucket."""
    objects = f"{gcs}/storage/v1/b/{BUCKET}/o"
    (name,) = [item["name"] for item in requests.get(objects, timeout=60).json()["items"]]
    position, size = 0, None
    with to.open("wb") as file:
        while size is None or position < size:
            wanted = {"Range": f"bytes={position}-{position + 64 * MB - 1}"}
            answer = requests.get(
                f"{gcs}/download/storage/v1/b/{BUCKET}/o/{name}?alt=media", headers=wanted, timeout=600
            )
            size = int(answer.headers["Content-Range"].split("/")[1])
            position += file.write(answer.content)
    return to


def check(file: Path, count: int, contents: Callable[[int], bytes]) -> None:
    """`unzip -t`, and each member byte for byte."""
    tested = subprocess.run([UNZIP, "-tqq", str(file)], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout[-2000:]
    with zipfile.ZipFile(file) as opened:
        names = opened.namelist()
        assert len(names) == count + 1
        rows = {
            row["name"]: row for row in csv.DictReader(io.StringIO(opened.read("MANIFEST.csv").decode(), newline=""))
        }
        for number, name in enumerate(names[:-1]):
            wanted = contents(number)
            assert opened.read(name) == wanted
            assert rows[name]["etag"] == hashlib.md5(wanted, usedforsecurity=False).hexdigest()  # as S3 has it


def test_memory_does_not_grow_with_the_archive_and_nothing_is_written_to_the_disk(s3: S3Server, gcs: str) -> None:
    video = contents_of(1, 5 * MB)
    bucket = film(s3, 120, lambda _number: video)
    small, large = (measure(s3, bucket, gcs, count) for count in (40, 120))
    assert large.read_bytes == 600 * MB
    assert large.peak_rss_bytes - small.peak_rss_bytes < 20 * MB
    assert large.disk_bytes < MB


@pytest.mark.soak
def test_memory_of_two_gigabytes_is_that_of_two_hundred_megabytes(s3: S3Server, gcs: str) -> None:
    video = contents_of(1, 10 * MB)
    bucket = film(s3, 200, lambda _number: video)
    small, large = (measure(s3, bucket, gcs, count) for count in (20, 200))
    assert large.read_bytes == 2000 * MB
    assert large.peak_rss_bytes - small.peak_rss_bytes < 20 * MB
    assert large.disk_bytes < MB


@pytest.mark.soak
def test_an_archive_above_four_gigabytes(s3: S3Server, gcs: str, tmp_path: Path) -> None:
    video = contents_of(2, 220 * MB)
    bucket = film(s3, 20, lambda number: number.to_bytes(4, "big") + video)
    measured = measure(s3, bucket, gcs, 20)
    assert measured.read_bytes > 4 * 2**30
    check(download(gcs, tmp_path / "a.zip"), 20, lambda number: number.to_bytes(4, "big") + video)


@pytest.mark.soak
def test_an_archive_of_more_members_than_sixteen_bits_can_count(s3: S3Server, gcs: str, tmp_path: Path) -> None:
    count = 65_600
    bucket = film(s3, count, lambda number: number.to_bytes(4, "big"))
    measure(s3, bucket, gcs, count)
    check(download(gcs, tmp_path / "a.zip"), count, lambda number: number.to_bytes(4, "big"))
