"""Families that load a study while it is deployed and rolled back: each gets one version, and all of it.

Every reader does what a browser does: it loads `index.html`, and then all that it names. Some keep their page for a
while, as a family that leaves the tab open, and load what it names only then.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
import requests

from lookit_ops.deployments.manifest import live_deployment
from lookit_ops.deployments.prune import prune
from lookit_ops.deployments.rollback import rollback
from lookit_ops.maintenance.prune_deployments import SHORTEST
from lookit_ops.storage.experiments import ExperimentBucket, StoredFile
from lookit_ops.storage.local.experiments import LocalExperimentBucket
from tests.support.bundles import FOLDER, PREFIX, bundle_of, deploy
from tests.support.faulty_bucket import backdated

logger = logging.getLogger(__name__)

READERS = 4
VERSIONS = ("1", "2", "3", "4")
CHANGES = 30

Fetch = Callable[[str], bytes]
"""The bytes that a proxy would get for a path within the study's folder; raises if there are none."""


@dataclass
class Reading:
    """What all readers saw."""

    pages: int = 0
    files: int = 0
    kept_pages: int = 0
    versions: set[str] = field(default_factory=set)
    changes_seen: int = 0
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def read_all(fetch: Fetch, page: bytes, whole: dict[bytes, dict[str, bytes]]) -> int:
    expected = whole[page]
    names = re.findall(rf'src="{PREFIX}([^"]+)"', page.decode())
    for name in names:
        assert fetch(name) == expected[name], f"{name} is another version's"
    return len(names)


def read_until(done: threading.Event, fetch: Fetch, whole: dict[bytes, dict[str, bytes]], seen: Reading) -> None:
    kept: list[bytes] = []
    last = b""
    while not done.is_set():
        try:
            page = fetch("index.html")
            files = read_all(fetch, page, whole)
            kept.append(page)
            if len(kept) > 5:  # one that was loaded some time ago
                files += read_all(fetch, kept.pop(len(kept) // 2), whole)
            with seen.lock:
                seen.pages += 1
                seen.files += files
                seen.kept_pages += len(kept) > 4
                seen.versions.add(whole[page]["version"].decode())
                seen.changes_seen += page != last
            last = page
        except Exception as error:  # whatever a family would meet
            with seen.lock:
                seen.problems.append(f"{type(error).__name__}: {error}")
        time.sleep(0.001)


def removed_after(bucket: ExperimentBucket, wait: timedelta) -> tuple[StoredFile, ...]:
    """What a pruning takes then that keeps the live build alone, for the shortest time, of files that all are old."""
    old = backdated(bucket, timedelta(days=9))
    return prune(old, keep=1, older_than=SHORTEST, now=datetime.now(UTC) + wait, in_use=lambda _folder: False).removed


@pytest.fixture
def fetcher(request: pytest.FixtureRequest, bucket) -> Iterator[Callable[[], Fetch]]:
    """Makes a way of its own to the bucket for each reader, past our adapters."""
    if isinstance(bucket, LocalExperimentBucket):
        yield lambda: lambda name: (bucket.root / FOLDER / name).read_bytes()
        return
    server = request.getfixturevalue("gcs")
    sessions: list[requests.Session] = []

    def make() -> Fetch:
        session = requests.Session()
        sessions.append(session)

        def fetch(name: str) -> bytes:
            answer = session.get(f"{server.url}/storage/v1/b/studies/o/{quote(f'{FOLDER}/{name}', safe='')}?alt=media")
            answer.raise_for_status()
            return answer.content

        return fetch

    yield make
    for session in sessions:
        session.close()


def test_no_reader_ever_meets_a_missing_or_a_mixed_version(bucket, fetcher, tmp_path: Path):
    made = [bundle_of(tmp_path / version, version, assets=8) for version in VERSIONS]
    contents = [{str(file.path): (bundle.root / file.path).read_bytes() for file in bundle.files} for bundle in made]
    whole = {
        files["index.html"]: {**files, "version": version.encode()}
        for files, version in zip(contents, VERSIONS, strict=True)
    }
    deploy(bucket, made[0], 1)
    seen, done = Reading(), threading.Event()
    readers = [threading.Thread(target=read_until, args=(done, fetcher(), whole, seen)) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    rollbacks = 0
    try:
        for token in range(2, CHANGES + 2):
            if token % 3 == 0:
                generation = live_deployment(bucket, FOLDER).generation
                before = f"r{token - 2}"
                rollback(
                    bucket,
                    FOLDER,
                    request_id=before if token > 3 and (token - 2) % 3 else "r1",
                    fencing_token=token,
                    seen_generation=generation,
                    before_commit=lambda: None,
                    keep=100,
                )
                rollbacks += 1
            else:
                deploy(bucket, made[token % len(made)], token)
            # The strictest pruning that is allowed, nearly an hour later: nothing goes that was live within the hour.
            assert removed_after(bucket, timedelta(minutes=50)) == ()
    finally:
        done.set()
        for reader in readers:
            reader.join()
    logger.info("%s deployments, %s rollbacks; seen: %s", CHANGES - rollbacks, rollbacks, seen)
    assert seen.problems == []
    assert seen.versions == set(VERSIONS)
    assert seen.changes_seen > READERS * 3
    assert seen.kept_pages > READERS * 3
    assert rollbacks == CHANGES // 3
    assert removed_after(bucket, timedelta(hours=2)), "the same pruning an hour later has something to take"
    live = fetcher()("index.html")
    read_all(fetcher(), live, whole)
