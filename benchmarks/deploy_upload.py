"""The seconds that a deployment of 500 files takes on Google Cloud Storage, with 30 ms of network before each request.

The server is a strict one in a process of its own, which answers each request 30 ms late. Ours is the whole of
`publish`: listing, files, manifest, a second listing, the commit. The peer is the plain way with the same client and
the same connection: one upload after the other, `index.html` last, without comparing, checking or a condition.
A rollback stands beside the same peer: without kept deployments the earlier version has to be uploaded again.

`python -m benchmarks.deploy_upload` is the server: it prints its address, and ends when its input does.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from uuid import uuid4

from benchmarks.frame import BenchmarkError, Result, benchmark, compare
from benchmarks.server import serving
from ember_build.bundle import Bundle
from lookit_ops.deployments.manifest import folder_of, live_deployment
from lookit_ops.deployments.publish import publish
from lookit_ops.deployments.rollback import restorable, rollback
from lookit_ops.storage.experiments import ExperimentBucket
from tests.support.bundles import bundle_of

LATENCY = 0.03
FILES, QUICK_FILES = 500, 100
RUNS, QUICK_RUNS = 5, 2
BUCKET = "studies"
_OWN_FILES = 6
"""What every bundle has beside those that are asked for."""
_ROOT = Path(__file__).resolve().parents[1]
Measure = Callable[[], float]
PEER = "google-cloud-storage, one file after the other"


@benchmark("deploy.upload")
def deploy_upload(quick: bool) -> Iterator[Result]:
    """A first deployment, one of which the storage has all files already, and a rollback."""
    files = QUICK_FILES if quick else FILES
    runs = QUICK_RUNS if quick else RUNS
    with tempfile.TemporaryDirectory() as folder, serving("benchmarks.deploy_upload") as url:
        first, second = (
            bundle_of(Path(folder, name), name, {"assets/large.bin": b"x" * 50_000}, assets=files - _OWN_FILES - 1)
            for name in ("1", "2")
        )
        if len(first.files) != files:
            raise BenchmarkError(f"the bundle has {len(first.files)} files instead of {files}")
        with _sides(url, first, second) as (ours, again, back, peer):
            for warm_up in (ours, peer):  # connections, imports
                warm_up()
            note = f"{files} files, {LATENCY * 1000:.0f} ms a request"
            yield compare("deploy.upload.vs_serial", "s", ours, peer, runs=runs, peer_name=PEER, note=note)
            again()
            yield compare(
                "deploy.upload.unchanged",
                "s",
                again,
                peer,
                runs=runs,
                peer_name=PEER,
                note=f"{note}; all there already",
            )
            yield compare(
                "deploy.rollback.vs_serial", "s", back, peer, runs=runs, peer_name=PEER, note=f"{note}; to and fro"
            )


@contextmanager
def _sides(url: str, bundle: Bundle, other: Bundle) -> Generator[tuple[Measure, Measure, Measure, Measure]]:
    """Ours into a new folder, ours into the same folder again, ours back to the other bundle, the peer."""
    from lookit_ops.storage.gcs.client import GcsAccess
    from lookit_ops.storage.gcs.experiments import GcsExperimentBucket  # loads Google's library

    access = GcsAccess(endpoint=url)
    bucket, client = GcsExperimentBucket(BUCKET, access), access.connect()
    tokens = count(1)

    def deploy(folder: str, bundle: Bundle = bundle) -> float:
        live = live_deployment(bucket, folder)
        token = next(tokens)
        began = time.monotonic()
        publish(
            bucket,
            bundle,
            folder=folder,
            request_id=str(token),
            fencing_token=token,
            seen_generation=live.generation if live else 0,
            facts={},
            before_commit=lambda: None,
        )
        seconds = time.monotonic() - began
        _check(bucket, bundle, folder)
        return seconds

    def one_by_one() -> float:
        folder = folder_of("deployment", uuid4())
        there = client.bucket(BUCKET)
        last = [file for file in bundle.files if str(file.path) == "index.html"]
        began = time.monotonic()
        for file in [file for file in bundle.files if file not in last] + last:
            there.blob(f"{folder}/{file.path}").upload_from_filename(str(bundle.root / file.path))
        seconds = time.monotonic() - began
        _check(bucket, bundle, folder)
        return seconds

    same, both = folder_of("deployment", uuid4()), folder_of("deployment", uuid4())

    def back() -> float:
        if live_deployment(bucket, both) is None:
            deploy(both)
            deploy(both, other)
        live = live_deployment(bucket, both)
        (earlier,) = restorable(bucket, both)
        began = time.monotonic()
        rollback(
            bucket,
            both,
            request_id=earlier.manifest.request_id,
            fencing_token=next(tokens),
            seen_generation=live.generation if live else 0,
            before_commit=lambda: None,
        )
        seconds = time.monotonic() - began
        now = live_deployment(bucket, both)
        if now is None or now.request_id != earlier.manifest.request_id:
            raise BenchmarkError("the earlier deployment is not live")
        return seconds

    try:
        yield lambda: deploy(folder_of("deployment", uuid4())), lambda: deploy(same), back, one_by_one
    finally:
        bucket.close()
        client.close()


def _check(bucket: ExperimentBucket, bundle: Bundle, folder: str) -> None:
    there = {file.key: file.size_bytes for file in bucket.files(f"{folder}/")}
    for file in bundle.files:
        if there.get(f"{folder}/{file.path}") != file.size_bytes:
            raise BenchmarkError(f"{file.path} was not deployed")


if __name__ == "__main__":
    from tests.support.strict_gcs import StrictGcs

    with StrictGcs(BUCKET, latency=LATENCY) as server:
        print(server.url, flush=True)
        sys.stdin.read()
