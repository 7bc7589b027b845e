"""What only the bucket in Google Cloud Storage has to stand: a network, and a storage that fails in passing."""

from __future__ import annotations

import gc
import json
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lookit_ops.deployments.commit_point import fence
from lookit_ops.deployments.manifest import live_deployment
from lookit_ops.storage.errors import GenerationMismatch, NameTaken, NoAnswer, StorageError
from lookit_ops.storage.experiments import HIDDEN
from lookit_ops.storage.gcs.client import GcsAccess
from lookit_ops.storage.gcs.experiments import GcsExperimentBucket
from lookit_ops.storage.gcs.objects import ATTEMPTS, CHUNK_BYTES
from tests.support.bundles import FOLDER, assert_live, bundle_of, deploy
from tests.support.strict_gcs import CHUNK_MULTIPLE

BUCKET = "studies"
JS = {"content_type": "text/javascript", "cache_control": "public, max-age=31536000, immutable"}
HTML = {"content_type": "text/html; charset=utf-8", "cache_control": "no-cache"}
PAGE = f"{FOLDER}/index.html"


@pytest.fixture
def bucket(gcs_bucket):
    return gcs_bucket


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file that goes up in three chunks."""
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (2 * CHUNK_BYTES // 256) + b"end")
    return path


def write(bucket, content: bytes, seen: int, **metadata: str) -> int:
    return bucket.write_page(PAGE, content, metadata=metadata, if_generation=seen, **HTML)


class TestRequests:
    def test_a_new_file_takes_one_request_if_a_listing_is_at_hand(self, bucket, gcs):
        listed = {file.key: file for file in bucket.files()}
        gcs.requests.clear()
        assert bucket.put("a.js", b"x", listed=listed, **JS)
        assert len(gcs.requests) == 1

    def test_a_file_that_is_there_takes_none(self, bucket, gcs):
        bucket.put("a.js", b"x", **JS)
        listed = {file.key: file for file in bucket.files()}
        gcs.requests.clear()
        assert not bucket.put("a.js", b"x", listed=listed, **JS)
        assert gcs.requests == []

    def test_a_listing_that_is_out_of_date_decides_nothing(self, bucket):
        before = {file.key: file for file in bucket.files()}
        bucket.put("a.js", b"x", **JS)
        with_x = {file.key: file for file in bucket.files()}
        with pytest.raises(NameTaken):
            bucket.put("a.js", b"y", listed=before, **JS)
        bucket.put("a.js", b"y", replace=True, **JS)
        assert not bucket.put("a.js", b"y", listed=with_x, **JS)
        bucket.delete("a.js")
        assert bucket.put("a.js", b"z", listed=with_x, **JS)
        assert bucket.read("a.js") == b"z"

    def test_the_listing_goes_by_pages(self, bucket, gcs):
        for number in range(1003):
            gcs.insert(BUCKET, f"a/{number:04}", b"x")
        gcs.requests.clear()
        assert [file.key for file in bucket.files("a/")] == [f"a/{number:04}" for number in range(1003)]
        assert len(gcs.requests) == 2

    def test_the_buckets_own_folder_is_no_place_for_objects(self, bucket):
        bucket.claim_environment("staging")
        assert list(bucket.files()) == list(bucket.files(f"{HIDDEN}/")) == []
        with pytest.raises(StorageError, match="the bucket's own"):
            bucket.put(f"{HIDDEN}/environment", b"production", replace=True, **JS)

    def test_headers_of_what_another_program_uploaded_are_put_right(self, bucket, gcs):
        gcs.insert(BUCKET, "a.js", b"x")
        assert not bucket.put("a.js", b"x", **JS)
        resource = gcs.objects(BUCKET)["a.js"].resource
        assert (resource["contentType"], resource["cacheControl"]) == tuple(JS.values())
        assert next(bucket.files("a.js")).sha256 is not None

    def test_an_answer_that_is_dropped_leaves_no_connection_open(self, bucket, gcs):
        bucket.put("a.js", b"x", **JS)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                gcs.fault("status", "GET", "alt=media")
                assert bucket.read("a.js") == b"x"
            gc.collect()
        assert [str(one.message) for one in caught if issubclass(one.category, ResourceWarning)] == []


class TestLargeFiles:
    def test_they_go_up_in_chunks(self, bucket, gcs, large):
        assert bucket.put("large.mp4", large, **JS)
        assert bucket.read("large.mp4") == large.read_bytes()
        assert not bucket.put("large.mp4", large, **JS)
        assert sum(line.startswith("PUT") for line in gcs.requests) == 3

    @pytest.mark.parametrize("kind", ["cut", "lost", "status"])
    @pytest.mark.parametrize("after", [0, 1, 2], ids=["first", "middle", "last"])
    def test_a_chunk_that_fails_is_sent_again(self, bucket, gcs, large, kind, after):
        fault = gcs.fault(kind, "PUT", after=after, bytes=CHUNK_MULTIPLE * 3)
        assert bucket.put("large.mp4", large, **JS)
        assert fault.seen > after
        assert gcs.objects(BUCKET)["large.mp4"].content == large.read_bytes()
        assert gcs.open_sessions == 0

    @pytest.mark.parametrize("status", [404, 410])
    @pytest.mark.parametrize("after", [0, 1, 2], ids=["first", "middle", "last"])
    def test_a_session_that_google_has_forgotten_begins_anew(self, bucket, gcs, large, status, after):
        gcs.fault("status", "PUT", after=after, status=status)
        assert bucket.put("large.mp4", large, **JS)
        assert gcs.objects(BUCKET)["large.mp4"].content == large.read_bytes()

    def test_sessions_that_are_always_forgotten_end_within_the_usual_attempts(self, bucket, gcs, large):
        gcs.fault("status", "PUT", status=410, times=100)
        with pytest.raises(StorageError, match="410"):
            bucket.put("large.mp4", large, **JS)
        assert gcs.objects(BUCKET) == {}

    def test_nothing_is_visible_of_an_upload_that_never_got_through(self, bucket, gcs, large):
        gcs.fault("cut", "PUT", after=1, times=10**6, bytes=CHUNK_MULTIPLE)
        with pytest.raises(StorageError):
            bucket.put("large.mp4", large, **JS)
        assert gcs.objects(BUCKET) == {}


class TestSmallFiles:
    @pytest.mark.parametrize("kind", ["cut", "lost", "status"])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_what_fails_in_passing_is_done_again(self, bucket, gcs, kind, method):
        fault = gcs.fault(kind, method, "a.js", times=2, bytes=30)
        assert bucket.put("a.js", b"content " * 1000, **JS)
        assert fault.seen > 2
        assert gcs.objects(BUCKET)["a.js"].content == b"content " * 1000

    @pytest.mark.parametrize("kind", ["damaged", "altered"])
    def test_what_arrives_damaged_is_sent_again(self, bucket, gcs, kind):
        fault = gcs.fault(kind, "POST", "a.js", times=2)
        assert bucket.put("a.js", b"content", **JS)
        assert fault.seen == 3
        assert gcs.objects(BUCKET)["a.js"].content == b"content"

    @pytest.mark.parametrize("size", ["small", "large"])
    @pytest.mark.parametrize("kind", ["damaged", "altered"])
    def test_what_is_always_damaged_does_not_stay(self, bucket, gcs, large, kind, size):
        source = b"content" if size == "small" else large
        fault = gcs.fault(kind, "POST" if size == "small" else "PUT", times=10**6)
        with pytest.raises(StorageError, match="did not arrive"):
            bucket.put("a.js", source, **JS)
        assert fault.seen >= ATTEMPTS
        assert gcs.objects(BUCKET) == {}

    def test_what_somebody_else_put_over_a_damaged_object_stays(self, bucket, gcs):
        fault = gcs.fault("altered", "POST", "a.js")
        put_back = bucket._remove_damaged

        def interfere(key: str, generation: int) -> None:
            gcs.insert(BUCKET, "a.js", b"theirs")
            put_back(key, generation)

        bucket._remove_damaged = interfere
        with pytest.raises(NameTaken):
            bucket.put("a.js", b"content", **JS)
        assert fault.seen == 1
        assert gcs.objects(BUCKET)["a.js"].content == b"theirs"

    def test_a_storage_that_stays_away_is_given_up(self, bucket, gcs):
        gcs.fault("status", times=10**6)
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"did not get through with a\.js.*try again later"):
            bucket.put("a.js", b"x", **JS)
        assert time.monotonic() - began < 20

    def test_a_read_that_is_cut_goes_on(self, bucket, gcs):
        bucket.put("a.js", b"content" * 1000, **JS)
        fault = gcs.fault("cut", "GET", "a.js", times=2)
        assert bucket.read("a.js") == b"content" * 1000
        assert fault.seen == 3

    def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(self, gcs):
        impatient = GcsExperimentBucket(BUCKET, GcsAccess(endpoint=gcs.url, patience=2, read_timeout=0.3))
        impatient.put("a.js", b"x", **JS)
        gcs.fault("slow", "GET", "a.js", seconds=1.5)
        assert impatient.read("a.js") == b"x"
        impatient.close()


def test_a_page_that_changes_between_the_two_questions_is_asked_for_again(bucket, gcs):
    """What is stored with it and its contents are told by two requests."""
    seen = write(bucket, b"one", 0, version="one")
    fault = gcs.fault("slow", "GET", "index.html", seconds=0.5)  # its answer was true when it was made
    other = GcsExperimentBucket(BUCKET, GcsAccess(endpoint=gcs.url))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(bucket.page, PAGE)
        while not fault.seen:
            time.sleep(0.01)
        time.sleep(0.1)
        write(other, b"two", seen, version="two")
        page = reading.result()
    assert (page.content, page.metadata) == (b"two", {"version": "two"})
    assert fault.seen >= 3
    other.close()


class TestPageWithoutAnswer:
    def test_a_lost_answer_is_looked_up(self, bucket, gcs):
        seen = write(bucket, b"one", 0)
        fault = gcs.fault("lost", "POST", "index.html")
        generation = write(bucket, b"two", seen, request_id="2")
        page = bucket.page(PAGE)
        assert (page.content, page.generation, page.metadata) == (b"two", generation, {"request_id": "2"})
        assert fault.seen == 1

    @pytest.mark.parametrize("kind", ["cut", "status"])
    def test_a_lost_request_is_made_again(self, bucket, gcs, kind):
        seen = write(bucket, b"one", 0)
        fault = gcs.fault(kind, "POST", "index.html", times=2)
        generation = write(bucket, b"two", seen)
        assert fault.seen == 3
        assert (bucket.page(PAGE).content, bucket.page(PAGE).generation) == (b"two", generation)

    def test_a_request_that_comes_late_is_carried_out_once(self, bucket, gcs):
        seen = write(bucket, b"one", 0)
        gcs.fault("late", "POST", "index.html", seconds=0.4)
        generation = write(bucket, b"two", seen)
        gcs.wait_for_late()
        assert (bucket.page(PAGE).content, bucket.page(PAGE).generation) == (b"two", generation)

    def test_the_same_contents_by_somebody_else_are_not_taken_for_ones_own(self, bucket, gcs):
        seen = write(bucket, b"one", 0, request_id="1")
        other = GcsExperimentBucket(BUCKET, GcsAccess(endpoint=gcs.url))
        gcs.fault("cut", "POST", "index.html")
        outcome = bucket._outcome

        def interfere(*arguments):
            write(other, b"two", seen, request_id="2")
            return outcome(*arguments)

        bucket._outcome = interfere
        with pytest.raises(GenerationMismatch):
            write(bucket, b"two", seen, request_id="2")
        other.close()

    def test_if_nobody_can_be_asked_there_is_no_answer(self, bucket, gcs):
        seen = write(bucket, b"one", 0)
        gcs.fault("lost", "POST", "index.html", times=10**6)
        gcs.fault("status", "GET", "index.html", times=10**6)
        with pytest.raises(NoAnswer, match="is not known"):
            write(bucket, b"two", seen)
        gcs.heal()
        assert bucket.page(PAGE).content == b"two"

    def test_a_refusal_is_an_answer(self, bucket, gcs):
        gcs.fault("status", "POST", "index.html", status=403, times=10**6)
        with pytest.raises(StorageError, match=r"does not let these credentials.*rights") as error:
            write(bucket, b"one", 0)
        assert not isinstance(error.value, NoAnswer)

    def test_a_damaged_page_is_replaced(self, bucket, gcs):
        gcs.fault("altered", "POST", "index.html")
        generation = write(bucket, b"one", 0)
        assert (bucket.page(PAGE).content, bucket.page(PAGE).generation) == (b"one", generation)


class TestDeployment:
    def test_a_page_that_arrives_after_the_failure_was_told_never_goes_live(self, bucket, gcs, tmp_path):
        first, second = bundle_of(tmp_path / "1", "1"), bundle_of(tmp_path / "2", "2")
        deploy(bucket, first, 1)
        # The first write of the page is long on its way; meanwhile nothing gets through, not even the fence.
        impatient = GcsExperimentBucket(BUCKET, GcsAccess(endpoint=gcs.url, patience=0.5))
        gcs.fault("late", "POST", f"{FOLDER}/index.html", seconds=4)
        gcs.fault("status", "POST", f"{FOLDER}/index.html", times=10**6)
        with pytest.raises(NoAnswer):
            deploy(impatient, second, 2)
        gcs.heal()
        # What whoever ends the build does before it is called a failure.
        assert fence(bucket, FOLDER, "r2", 2) is None
        assert live_deployment(bucket, FOLDER).request_id == "r1"
        assert gcs.late_answers == []
        gcs.wait_for_late()
        assert gcs.late_answers == [412]
        assert live_deployment(bucket, FOLDER).request_id == "r1"
        assert_live(bucket, first)
        impatient.close()

    @pytest.mark.parametrize("kind", ["cut", "lost", "status"])
    def test_every_request_may_fail_twice(self, bucket, gcs, tmp_path, kind):
        first, second = bundle_of(tmp_path / "1", "1", assets=10), bundle_of(tmp_path / "2", "2", assets=10)
        deploy(bucket, first, 1)
        faults = [gcs.fault(kind, method, times=2, after=after) for method in ("GET", "POST") for after in (0, 5, 10)]
        deployed = deploy(bucket, second, 2)
        assert all(fault.seen > fault.after for fault in faults)
        assert_live(bucket, second)
        assert live_deployment(bucket, FOLDER).generation == deployed.generation

    def test_of_two_at_once_one_is_live_and_whole(self, gcs, tmp_path):
        bundles = {f"r{token}": bundle_of(tmp_path / str(token), str(token), assets=5) for token in (2, 3)}
        buckets = [GcsExperimentBucket(BUCKET, GcsAccess(endpoint=gcs.url)) for _ in range(2)]
        deploy(buckets[0], bundle_of(tmp_path / "1", "1"), 1)
        for _ in range(5):
            seen = live_deployment(buckets[0], FOLDER).generation
            barrier = threading.Barrier(2, timeout=20)

            def run(number: int, seen: int = seen, barrier: threading.Barrier = barrier) -> bool:
                token = number + 2
                try:
                    deploy(
                        buckets[number],
                        bundles[f"r{token}"],
                        10,
                        request_id=f"r{token}",
                        seen_generation=seen,
                        before_commit=barrier.wait,
                    )
                except GenerationMismatch:
                    return False
                return True

            with ThreadPoolExecutor(2) as pool:
                won = list(pool.map(run, range(2)))
            assert sum(won) == 1
            live = live_deployment(buckets[0], FOLDER)
            assert live.request_id == f"r{won.index(True) + 2}"
            assert_live(buckets[0], bundles[live.request_id])
            buckets[0].delete(PAGE)
            deploy(buckets[0], bundle_of(tmp_path / "1", "1"), 1)
        for bucket in buckets:
            bucket.close()

    def test_a_deployment_needs_few_requests(self, bucket, gcs, tmp_path):
        bundle = bundle_of(tmp_path / "1", "1", assets=100)
        deploy(bucket, bundle, 1)
        assert len(gcs.requests) < len(bundle.files) + 20
        gcs.requests.clear()
        deploy(bucket, bundle, 2)
        assert len(gcs.requests) < 30


class TestAccess:
    def test_a_bucket_that_is_not_there_is_named(self, gcs):
        bucket = GcsExperimentBucket("nowhere", GcsAccess(endpoint=gcs.url))
        with pytest.raises(StorageError, match="no bucket gs://nowhere"):
            bucket.claim_environment("staging")
        bucket.close()

    def test_the_mark_of_the_environment_survives_a_lost_answer(self, bucket, gcs):
        fault = gcs.fault("lost", "POST", "environment")
        bucket.claim_environment("staging")
        assert fault.seen == 2
        assert gcs.objects(BUCKET)[f"{HIDDEN}/environment"].content == b"staging\n"

    def test_a_file_that_is_no_key_is_named(self, tmp_path):
        key = tmp_path / "key.json"
        for content in (None, "no json", json.dumps({"type": "service_account"})):
            if content is not None:
                key.write_text(content)
            with pytest.raises(StorageError, match=r"key\.json cannot be used as the key of a service account"):
                GcsExperimentBucket(BUCKET, GcsAccess(credentials_file=key))

    def test_without_credentials_it_says_how_to_get_some(self, monkeypatch, tmp_path):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        with pytest.raises(StorageError, match="gcloud auth application-default login"):
            GcsExperimentBucket(BUCKET)

    def test_a_server_that_is_not_there_is_told(self):
        bucket = GcsExperimentBucket(BUCKET, GcsAccess(endpoint="http://127.0.0.1:9", patience=0.3))
        with pytest.raises(StorageError, match="did not get through"):
            bucket.page(PAGE)
        bucket.close()
