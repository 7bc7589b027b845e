"""A simulated network before both clouds, in a process of its own: latency per request, bandwidth per connection.

`python -m benchmarks.videos.network S3 BUCKET LATENCY BYTES_PER_SECOND` prints the URLs of a detour to that S3 and of
a Google Cloud Storage, and ends when its input does.
"""

from __future__ import annotations

import sys

from tests.support.faulty_s3 import FaultyS3
from tests.support.strict_gcs import StrictGcs

LATENCY = 0.03
BYTES_PER_SECOND = 60e6

if __name__ == "__main__":
    upstream, archives, latency, rate = sys.argv[1:]
    late, per_second = float(latency), float(rate)
    with (
        FaultyS3(upstream, latency=late, bytes_per_second=per_second) as s3,
        StrictGcs(archives, latency=late, bytes_per_second=per_second) as gcs,
    ):
        print(s3.url, gcs.url, flush=True)
        sys.stdin.read()
