"""Zipping a study's videos from S3 into Google Cloud Storage, beside the predecessor's two ways and a bare copy.

Real clients against servers in processes of their own: SeaweedFS, and the tests' strict Google Cloud Storage, which
joins parts as Google does, without moving a byte (the emulators copy every one, some of them several times). On the
simulated network, each of them takes 30 ms for a request and brings 60 MB/s on each connection.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

import requests

from benchmarks.frame import BenchmarkError, Result, benchmark, compare
from benchmarks.videos.network import BYTES_PER_SECOND, LATENCY, cloud
from benchmarks.videos.sides import Measured
from domain.videos.object_names import VideoKey
from tests.support.gcs_servers import BUCKET
from tests.support.s3_server import S3Server, seaweedfs

VIDEO_BYTES = 10_000_000
RUNS, QUICK_RUNS = 3, 1
COUNT, QUICK_COUNT = 50, 12
"""Videos of one measurement."""
MEMORY_COUNTS, QUICK_MEMORY_COUNTS = (20, 200), (10, 60)
"""Videos of the smaller and of the larger archive: 200 MB and 2 GB."""
VIDEOS = "videos"
DEFLATING, BARE_COPY = "sequential read into a deflating stream", "the same bytes without a zip, as many at once"
_ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Bench:
    """Two clouds, and what was measured between them."""

    s3: str
    gcs: str
    seen: dict[str, list[Measured]] = field(default_factory=dict)

    def measure(self, side: str, count: int) -> Measured:
        """One side in a process of its own, which leaves the bucket of archives empty."""
        command = [sys.executable, "-m", "benchmarks.videos.sides", side, self.s3, VIDEOS, self.gcs, BUCKET, str(count)]
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"the side {side} failed: {done.stderr[-2000:]}")
        measured = Measured(**json.loads(done.stdout))
        self._check_and_empty(side, measured)
        self.seen.setdefault(side, []).append(measured)
        return measured

    def rate(self, side: str, count: int) -> Callable[[], float]:
        """MB/s, each time anew."""
        return lambda: self.measure(side, count).mb_per_second

    def note(self, ours: str, peer: str) -> str:
        """What else the two sides took, in medians."""
        shown = []
        for name, side in (("ours", ours), ("peer", peer)):
            seen = self.seen[side]
            cpu = statistics.median(one.cpu_seconds_per_gb for one in seen)
            peak = statistics.median(one.peak_rss_bytes for one in seen) / 1e6
            disk = statistics.median(one.disk_bytes for one in seen) / 1e6
            shown.append(f"{name}: {cpu:.1f} CPU s/GB, peak {peak:,.0f} MB, {disk:,.0f} MB to disk")
        return "; ".join(shown)

    def _check_and_empty(self, side: str, measured: Measured) -> None:
        objects = f"{self.gcs}/storage/v1/b/{BUCKET}/o"
        found = requests.get(objects, timeout=60).json().get("items", [])
        size = sum(int(item["size"]) for item in found)
        if not measured.read_bytes * 0.99 < size < measured.read_bytes * 1.01:
            raise BenchmarkError(f"{side} left {size} bytes in the bucket instead of about {measured.read_bytes}")
        for item in found:
            requests.delete(f"{objects}/{item['name'].replace('/', '%2F')}", timeout=60).raise_for_status()


@benchmark("videos.zip")
def videos_zip(quick: bool) -> Iterator[Result]:
    """Throughput on loopback and on the simulated network; memory of a small and of a large archive."""
    runs, count = (QUICK_RUNS, QUICK_COUNT) if quick else (RUNS, COUNT)
    small, large = QUICK_MEMORY_COUNTS if quick else MEMORY_COUNTS
    with (
        tempfile.TemporaryDirectory() as name,
        seaweedfs(Path(name)) as s3,
        cloud("gcs", BUCKET) as gcs,
    ):
        _film(s3, max(count, large))
        loopback = Bench(s3.url, gcs)
        what = f"{count * VIDEO_BYTES / 1e6:,.0f} MB in {count} videos, loopback"
        for side, peer in (
            ("deflating_stream", DEFLATING),
            ("disk", "download to disk, zip, upload"),
            ("bare_copy", BARE_COPY),
        ):
            row = f"videos.zip.vs_{side}"
            mine, theirs = loopback.rate("ours", count), loopback.rate(side, count)
            result = compare(row, "MB/s", mine, theirs, runs=runs, peer_name=peer)
            yield replace(result, note=f"{what}; {loopback.note('ours', side)}")
        with (
            cloud("s3", s3.url, LATENCY, BYTES_PER_SECOND) as far_s3,
            cloud("gcs", BUCKET, LATENCY, BYTES_PER_SECOND) as far_gcs,
        ):
            network = Bench(far_s3, far_gcs)
            for side, peer, videos in (
                ("one_stream", "one part at a time", count),
                ("deflating_stream", DEFLATING, count),
                ("bare_copy", BARE_COPY, large),  # what an archive costs once, whatever its size, belongs to no byte
            ):
                row = f"videos.zip.network.vs_{side}"
                mine, theirs = network.rate("ours", videos), network.rate(side, videos)
                result = compare(row, "MB/s", mine, theirs, runs=runs, peer_name=peer)
                what = f"{videos * VIDEO_BYTES / 1e6:,.0f} MB, {LATENCY * 1000:.0f} ms a request"
                what += f", {BYTES_PER_SECOND / 1e6:.0f} MB/s a connection"
                yield replace(result, note=f"{what}; {network.note('ours', side)}")

        def growth() -> float:
            peaks = [loopback.measure("ours", videos).peak_rss_bytes for videos in (small, large)]
            return (peaks[1] - peaks[0]) / 1e6

        sizes = [f"{videos * VIDEO_BYTES / 1e6:,.0f} MB" for videos in (small, large)]
        yield compare(
            "videos.zip.memory_growth_mb",
            "MB",
            growth,
            None,
            runs=runs,
            note=f"peak of the process for {sizes[1]} less that for {sizes[0]}",
        )


def _film(s3: S3Server, count: int) -> None:
    """Videos that cannot be compressed, the same each time."""
    s3.bucket(VIDEOS)
    made = random.Random(4)  # noqa: S311 - reproducible, not secret
    contents = made.randbytes(VIDEO_BYTES)
    study, response = UUID(int=1), UUID(int=2)
    for number in range(count):
        key = VideoKey(study, "1-frame", response, 1_772_359_200_000 + number, "1").object_key
        s3.put(VIDEOS, key, number.to_bytes(4, "big") + contents[4:])
