"""A simulated network before both clouds: latency per request, bandwidth per connection.

`python -m benchmarks.videos.network s3 URL LATENCY BYTES_PER_SECOND` prints the URL of a detour to that S3,
`python -m benchmarks.videos.network gcs BUCKET LATENCY BYTES_PER_SECOND` that of a Google Cloud Storage; both end when
their input does. Each is a process of its own: in one, they would wait for each other's turn to compute.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager

from benchmarks.server import serving
from tests.support.faulty_s3 import FaultyS3
from tests.support.strict_gcs import StrictGcs

LATENCY = 0.03
BYTES_PER_SECOND = 60e6


def cloud(kind: str, what: str, latency: float = 0, bytes_per_second: float = 0) -> AbstractContextManager[str]:
    """The URL of a cloud at this distance: of a Google with the bucket `what`, or of a way to the S3 at `what`."""
    return serving("benchmarks.videos.network", kind, what, str(latency), str(bytes_per_second))


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
