"""A simulated network before both clouds: latency per request, bandwidth per connection.

`python -m benchmarks.videos.network s3 URL LATENCY BYTES_PER_SECOND` prints the URL of a detour to that S3,
`python -m benchmarks.videos.network gcs BUCKET LATENCY BYTES_PER_SECOND` that of a Google Cloud Storage; both end when
their input does. Each is a process of its own: in one, they would wait for each other's turn to compute.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.frame import BenchmarkError
from tests.support.faulty_s3 import FaultyS3
from tests.support.strict_gcs import StrictGcs

LATENCY = 0.03
BYTES_PER_SECOND = 60e6
_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def cloud(kind: str, what: str, latency: float = 0, bytes_per_second: float = 0) -> Generator[str]:
    """The URL of a cloud at this distance: of a Google with the bucket `what`, or of a way to the S3 at `what`."""
    command = [sys.executable, "-m", "benchmarks.videos.network", kind, what, str(latency), str(bytes_per_second)]
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise BenchmarkError("the simulated network does not start; it says why above")
            yield url
        finally:
            process.stdin.close()
            process.wait(30)


if __name__ == "__main__":
    side, what, latency, rate = sys.argv[1:]
    late, per_second = float(latency), float(rate)
    with (
        FaultyS3(what, latency=late, bytes_per_second=per_second)
        if side == "s3"
        else StrictGcs(what, latency=late, bytes_per_second=per_second, tells_md5=False) as server
    ):
        print(server.url, flush=True)
        sys.stdin.read()
