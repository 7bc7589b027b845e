"""What every bucket of built studies promises. A new adapter adds a fixture and its name to ADAPTERS, nothing else.

The adapter for Google Cloud Storage is tried on three servers. Where an emulator is not faithful, DEVIATIONS says so,
and the test is expected to fail there: a deviation that an emulator's next version no longer has is found out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from threading import Barrier, Event
from urllib.parse import quote

import pytest
import requests

from lookit_ops.storage.cancellable import CancellableExperimentBucket
from lookit_ops.storage.errors import GenerationMismatch, NameTaken, NoSuchObject, StorageError, WrongEnvironment
from lookit_ops.storage.experiments import ExperimentBucket
from lookit_ops.storage.gcs.client import GcsAccess
from lookit_ops.storage.gcs.experiments import GcsExperimentBucket
from lookit_ops.storage.local.experiments import LocalExperimentBucket
from tests.support.gcs_servers import BUCKET, fake_gcs_server, gcp_storage_emulator
from tests.support.strict_gcs import StrictGcs

ADAPTERS = ["local", "cancellable", "gcs_strict", "gcs_emulator", "gcs_fake_server"]
NO_PRECONDITIONS = "ignores preconditions"
SHORT_TYPES = "drops the charset of a content type"
READS_WITHOUT_PRECONDITION = "ignores the precondition of a download"
DEVIATIONS = {
    ("gcs_emulator", "test_of_many_that_claim_at_once_one_wins"): NO_PRECONDITIONS,
    ("gcs_emulator", "test_of_many_that_put_other_contents_at_once_one_wins"): NO_PRECONDITIONS,
    ("gcs_emulator", "test_a_page_has_content_metadata_and_generation"): SHORT_TYPES,
    ("gcs_emulator", "test_it_changes_only_for_who_saw_the_newest"): NO_PRECONDITIONS,
    ("gcs_emulator", "test_there_must_be_a_page_if_one_was_seen"): NO_PRECONDITIONS,
    ("gcs_emulator", "test_of_many_that_saw_the_same_one_wins"): NO_PRECONDITIONS,
    ("gcs_emulator", "test_content_metadata_and_generation_always_belong_together"): NO_PRECONDITIONS,
    ("gcs_fake_server", "test_content_metadata_and_generation_always_belong_together"): READS_WITHOUT_PRECONDITION,
}
RACES = {
    "test_of_many_that_claim_at_once_one_wins",
    "test_of_many_that_put_other_contents_at_once_one_wins",
    "test_content_metadata_and_generation_always_belong_together",
}
"""What an emulator may also do right by chance."""

JS = {"content_type": "text/javascript", "cache_control": "public, max-age=31536000, immutable"}
HTML = {"content_type": "text/html; charset=utf-8", "cache_control": "no-cache"}
PAGE = "experiments/uuid/index.html"


@dataclass(frozen=True)
class Adapter:
    open: Callable[[], ExperimentBucket]
    """The same bucket again, as another process would open it."""
    headers: Callable[[str], Mapping[str, str]]
    """Content type and cache header that a browser would get."""


@pytest.fixture
def local(tmp_path: Path) -> Adapter:
    root = tmp_path / "bucket"
    return Adapter(lambda: LocalExperimentBucket(root), LocalExperimentBucket(root).headers)


@pytest.fixture
def cancellable(local: Adapter) -> Adapter:
    return Adapter(lambda: CancellableExperimentBucket(local.open, Event()), local.headers)


def on_gcs(url: str) -> Iterator[Adapter]:
    access = GcsAccess(endpoint=url, patience=20)
    opened: list[GcsExperimentBucket] = []

    def open_bucket() -> GcsExperimentBucket:
        opened.append(GcsExperimentBucket(BUCKET, access))
        return opened[-1]

    def headers(key: str) -> Mapping[str, str]:
        resource = requests.get(f"{url}/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}", timeout=10).json()
        return {"content_type": resource["contentType"], "cache_control": resource["cacheControl"]}

    yield Adapter(open_bucket, headers)
    for bucket in opened:
        bucket.close()


@pytest.fixture
def gcs_strict() -> Iterator[Adapter]:
    with StrictGcs(BUCKET) as server:
        yield from on_gcs(server.url)


@pytest.fixture(scope="module")
def emulator_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gcp_storage_emulator(tmp_path_factory.mktemp("emulator")) as url:
        yield url


@pytest.fixture(scope="module")
def fake_server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fake_gcs_server(tmp_path_factory.mktemp("fake-gcs")) as url:
        yield url


def emptied(url: str) -> None:
    items = requests.get(f"{url}/storage/v1/b/{BUCKET}/o", timeout=10).json().get("items", [])
    for item in items:
        path = f"{url}/storage/v1/b/{BUCKET}/o/{quote(item['name'], safe='')}"
        requests.delete(path, timeout=10).raise_for_status()


@pytest.fixture
def gcs_emulator(emulator_url: str) -> Iterator[Adapter]:
    emptied(emulator_url)
    yield from on_gcs(emulator_url)


@pytest.fixture
def gcs_fake_server(fake_server_url: str) -> Iterator[Adapter]:
    emptied(fake_server_url)
    yield from on_gcs(fake_server_url)


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    deviation = DEVIATIONS.get((request.param, request.node.originalname))
    if deviation:
        by_chance = request.node.originalname in RACES
        request.applymarker(pytest.mark.xfail(reason=f"{request.param} {deviation}", strict=not by_chance))
    return request.getfixturevalue(request.param)


@pytest.fixture
def bucket(adapter: Adapter) -> ExperimentBucket:
    return adapter.open()


def write(bucket: ExperimentBucket, content: bytes, if_generation: int, **metadata: str) -> int:
    return bucket.write_page(PAGE, content, metadata=metadata, if_generation=if_generation, **HTML)


def test_it_is_a_bucket_with_a_name(bucket):
    assert isinstance(bucket, ExperimentBucket)
    assert bucket.name


class TestEnvironment:
    def test_the_first_to_claim_marks_it_and_others_are_refused(self, adapter):
        adapter.open().claim_environment("staging")
        adapter.open().claim_environment("staging")
        with pytest.raises(WrongEnvironment, match=r"staging.*production"):
            adapter.open().claim_environment("production")
        adapter.open().claim_environment("staging")

    def test_of_many_that_claim_at_once_one_wins(self, adapter):
        barrier = Barrier(8)

        def claim(number: int) -> bool:
            barrier.wait()
            try:
                adapter.open().claim_environment(f"environment-{number}")
            except WrongEnvironment:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(claim, range(8))) == 1

    def test_the_mark_is_no_file_of_a_study(self, bucket):
        bucket.claim_environment("staging")
        assert list(bucket.files()) == []


class TestObjects:
    def test_what_was_put_is_read_with_its_headers(self, bucket, adapter, tmp_path):
        source = tmp_path / "source"
        source.write_bytes(b"from a file")
        assert bucket.put("a/b/file.js", source, **JS)
        assert bucket.put("a/b/bytes.js", b"bytes", **JS)
        assert bucket.read("a/b/file.js") == b"from a file"
        assert adapter.open().read("a/b/bytes.js") == b"bytes"
        assert {**JS}.items() <= adapter.headers("a/b/file.js").items()

    def test_the_same_contents_again_are_not_stored(self, bucket, tmp_path):
        source = tmp_path / "source"
        source.write_bytes(b"x")
        assert bucket.put("a.js", b"x", **JS)
        assert not bucket.put("a.js", b"x", **JS)
        assert not bucket.put("a.js", source, **JS)
        assert not bucket.put("a.js", b"x", replace=True, **JS)

    def test_other_contents_are_refused_unless_they_may_replace(self, bucket):
        bucket.put("a.js", b"x", **JS)
        with pytest.raises(NameTaken, match=r"a\.js"):
            bucket.put("a.js", b"y", **JS)
        assert bucket.read("a.js") == b"x"
        assert bucket.put("a.js", b"y", replace=True, **JS)
        assert bucket.read("a.js") == b"y"

    def test_of_many_that_put_other_contents_at_once_one_wins(self, adapter):
        barrier = Barrier(8)

        def put(number: int) -> bool:
            barrier.wait()
            try:
                return adapter.open().put("a.js", str(number).encode() * 1000, **JS)
            except NameTaken:
                return False

        with ThreadPoolExecutor(8) as pool:
            won = [number for number, put_it in enumerate(pool.map(put, range(8))) if put_it]
        assert len(won) == 1
        assert adapter.open().read("a.js") == str(won[0]).encode() * 1000

    def test_a_replaced_file_is_never_seen_half(self, bucket):
        contents = [bytes([65 + number]) * 300_000 for number in range(4)]
        bucket.put("robots.txt", contents[0], replace=True, **HTML)
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(
                lambda: [bucket.put("robots.txt", contents[n % 4], replace=True, **HTML) for n in range(40)]
            )
            while not writing.done():
                assert bucket.read("robots.txt") in contents
            writing.result()

    def test_what_is_not_there(self, bucket):
        with pytest.raises(NoSuchObject, match="missing"):
            bucket.read("missing")
        with pytest.raises(NoSuchObject, match="missing"):
            bucket.copy("missing", "b")
        bucket.delete("missing")
        assert bucket.page("missing") is None

    def test_a_source_that_is_not_there_stores_nothing(self, bucket, tmp_path):
        with pytest.raises(StorageError):
            bucket.put("a.js", tmp_path / "missing", **JS)
        assert list(bucket.files()) == []

    def test_a_copy_has_the_headers_too_and_replaces(self, bucket, adapter):
        bucket.put("a.js", b"x", **JS)
        bucket.put("b/c.js", b"y", **HTML)
        bucket.copy("a.js", "b/c.js")
        bucket.copy("a.js", "b/c.js")
        assert bucket.read("b/c.js") == b"x"
        assert {**JS}.items() <= adapter.headers("b/c.js").items()
        assert bucket.read("a.js") == b"x"

    def test_a_deleted_object_is_gone(self, bucket):
        bucket.put("a.js", b"x", **JS)
        bucket.delete("a.js")
        with pytest.raises(NoSuchObject):
            bucket.read("a.js")
        assert bucket.put("a.js", b"y", **JS)

    def test_the_listing(self, bucket):
        bucket.put("a/1.js", b"x" * 10, **JS)
        bucket.put("a/2/3.js", b"", **JS)
        bucket.put("ab.js", b"x", **JS)
        bucket.write_page("a/index.html", b"page", metadata={}, if_generation=0, **HTML)
        assert [file.key for file in bucket.files()] == ["a/1.js", "a/2/3.js", "a/index.html", "ab.js"]
        assert [file.key for file in bucket.files("a/")] == ["a/1.js", "a/2/3.js", "a/index.html"]
        assert [file.key for file in bucket.files("a/2/3")] == ["a/2/3.js"]
        assert list(bucket.files("nothing/")) == []
        first = next(bucket.files("a/1"))
        assert first.size_bytes == 10
        assert first.sha256 in {None, sha256(b"x" * 10).hexdigest()}
        assert abs(datetime.now(UTC) - first.updated_at) < timedelta(minutes=5)

    @pytest.mark.parametrize(
        "key", ["", "/a", "a/", "a//b", ".", "../a", "a/../b", "a/./b", "a\\b", "a\0b", "a\nb", "x" * 1025, "\ud800"]
    )
    def test_a_key_that_is_no_plain_path_is_refused(self, bucket, key):
        bucket.put("a.js", b"x", **JS)
        for act in (
            lambda: bucket.put(key, b"x", **JS),
            lambda: bucket.read(key),
            lambda: bucket.page(key),
            lambda: bucket.write_page(key, b"x", metadata={}, if_generation=0, **HTML),
            lambda: bucket.delete(key),
            lambda: bucket.copy("a.js", key),
            lambda: bucket.copy(key, "b.js"),
        ):
            with pytest.raises(StorageError, match="is no key"):
                act()


class TestPages:
    def test_a_page_has_content_metadata_and_generation(self, bucket, adapter):
        assert bucket.page(PAGE) is None
        generation = write(bucket, b"<p>one", 0, request_id="7", who="Zoë")
        page = adapter.open().page(PAGE)
        assert (page.content, page.generation, page.metadata) == (
            b"<p>one",
            generation,
            {"request_id": "7", "who": "Zoë"},
        )
        assert generation > 0
        assert bucket.read(PAGE) == b"<p>one"
        assert {**HTML}.items() <= adapter.headers(PAGE).items()

    def test_it_changes_only_for_who_saw_the_newest(self, bucket):
        first = write(bucket, b"one", 0, version="1")
        second = write(bucket, b"two", first, version="2")
        assert second > first
        for stale in (0, first, second + 1):
            with pytest.raises(GenerationMismatch):
                write(bucket, b"stale", stale, version="3")
        page = bucket.page(PAGE)
        assert (page.content, page.generation, page.metadata) == (b"two", second, {"version": "2"})

    def test_there_must_be_a_page_if_one_was_seen(self, bucket):
        with pytest.raises(GenerationMismatch):
            write(bucket, b"one", 5)
        assert bucket.page(PAGE) is None

    def test_the_same_content_again_is_a_new_generation(self, bucket):
        first = write(bucket, b"same", 0)
        assert write(bucket, b"same", first) > first

    def test_a_generation_is_not_used_again_after_a_deletion(self, bucket):
        first = write(bucket, b"one", 0)
        bucket.delete(PAGE)
        assert bucket.page(PAGE) is None
        assert write(bucket, b"two", 0) > first

    def test_of_many_that_saw_the_same_one_wins(self, adapter):
        seen = write(adapter.open(), b"first", 0)
        for _ in range(10):
            barrier = Barrier(8)

            def replace(number: int, seen: int = seen, barrier: Barrier = barrier) -> int | None:
                barrier.wait()
                try:
                    return write(adapter.open(), str(number).encode(), seen, number=str(number))
                except GenerationMismatch:
                    return None

            with ThreadPoolExecutor(8) as pool:
                written = dict(enumerate(pool.map(replace, range(8))))
            won = [number for number, generation in written.items() if generation]
            assert len(won) == 1
            page = adapter.open().page(PAGE)
            assert (page.content, page.metadata["number"]) == (str(won[0]).encode(), str(won[0]))
            seen = page.generation

    def test_content_metadata_and_generation_always_belong_together(self, bucket, adapter):
        generations = {0: write(bucket, b"0" * 200_000, 0, version="0")}

        def keep_writing() -> None:
            for version in range(1, 40):
                content = str(version).encode() * 100_000
                generations[version] = write(bucket, content, generations[version - 1], version=str(version))

        reader = adapter.open()
        seen = []
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(keep_writing)
            while not writing.done():
                page = reader.page(PAGE)
                version = page.metadata["version"]
                assert set(page.content.decode()) == set(version)
                assert set(reader.read(PAGE).decode()) <= set("0123456789")
                seen.append((page.generation, int(version)))
                time.sleep(0.0005)
            writing.result()
        assert seen == sorted(seen)
        assert all(generations[version] == generation for generation, version in seen)
