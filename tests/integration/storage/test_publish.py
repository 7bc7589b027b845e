"""A deployment is either live as a whole or not at all, whatever fails and whoever else is at it."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path, PurePosixPath

import pytest

from ember_build.bundle import Bundle
from ember_build.errors import PlayerBuildFailed
from lookit_ops.deployments.commit_point import finish_public_files
from lookit_ops.deployments.manifest import REVALIDATED, Manifest, folder_of, live_deployment
from lookit_ops.deployments.publish import IMMUTABLE, content_type_of
from lookit_ops.deployments.rollback import rollback
from lookit_ops.storage.errors import GenerationMismatch, NameTaken, NoAnswer, NoSuchObject, StorageError
from lookit_ops.storage.experiments import ExperimentBucket
from lookit_ops.storage.local.experiments import LocalExperimentBucket
from tests.support import bundles
from tests.support.bundles import FOLDER, PREFIX, assert_live, deploy
from tests.support.faulty_bucket import FaultyBucket


@pytest.fixture
def bundle_of(tmp_path: Path):
    """Makes the bundle of a version."""
    return lambda version, extra=None: bundles.bundle_of(tmp_path / f"dist-{version}", version, extra)


def test_the_folders():
    assert folder_of("preview", "u") == "preview_experiments/u"
    assert folder_of("deployment", "u") == "experiments/u"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("index.html", "text/html; charset=utf-8"),
        ("assets/app.JS", "text/javascript; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.json", "application/json; charset=utf-8"),
        ("a.js.map", "application/json; charset=utf-8"),
        ("a.svg", "image/svg+xml; charset=utf-8"),
        ("a.png", "image/png"),
        ("a.woff2", "font/woff2"),
        ("a.mp4", "video/mp4"),
        ("a.webm", "video/webm"),
        ("a.wasm", "application/wasm"),
        ("a.tar.gz", "application/octet-stream"),
        ("a.m4a", "audio/mp4"),
        ("a.flac", "audio/flac"),
        ("a.oga", "audio/ogg"),
        ("a.ogv", "video/ogg"),
        ("a.m4v", "video/mp4"),
        ("a.MOV", "video/quicktime"),
        ("a.ttf", "font/ttf"),
        ("a.otf", "font/otf"),
        ("a.avif", "image/avif"),
        ("a.wav", "audio/wav"),
        ("a.vtt", "text/vtt; charset=utf-8"),
        ("a.srt", "application/x-subrip; charset=utf-8"),
        ("a.pdf", "application/pdf"),
        ("LICENSE", "application/octet-stream"),
    ],
)
def test_content_types(name, expected):
    assert content_type_of(PurePosixPath(name)) == expected


def test_a_first_deployment(bucket, headers_of, bundle_of):
    bundle = bundle_of("1")
    seen = []
    deployed = deploy(bucket, bundle, 1, after_file=seen.append)
    assert_live(bucket, bundle)
    assert sorted(file.path for file in seen) == sorted(file.path for file in bundle.files)
    assert (deployed.prefix, deployed.page_key) == (FOLDER, f"{FOLDER}/index.html")
    assert (deployed.file_count, deployed.uploaded_count) == (6, 6)
    assert deployed.size_bytes == deployed.uploaded_bytes == sum(file.size_bytes for file in bundle.files)
    live = live_deployment(bucket, FOLDER)
    assert (live.request_id, live.fencing_token, live.generation) == ("r1", 1, deployed.generation)
    assert live.facts == {"sha": "a" * 40}
    for file in bundle.files:
        headers = headers_of(f"{FOLDER}/{file.path}")
        assert headers["cache_control"] == (IMMUTABLE if file.fingerprinted else REVALIDATED)
        assert headers["content_type"] == content_type_of(file.path)


def test_the_manifest_has_all_that_a_rollback_needs(bucket, bundle_of):
    first, second = bundle_of("1"), bundle_of("2")
    deploy(bucket, first, 1)
    manifest = Manifest.from_json(bucket.read(live_deployment(bucket, FOLDER).manifest_key))
    deploy(bucket, second, 2)
    assert (manifest.request_id, manifest.fencing_token, manifest.facts) == ("r1", 1, {"sha": "a" * 40})
    assert {file.path for file in manifest.files} == {str(file.path) for file in first.files}
    for file in manifest.files:
        content = bucket.read(file.key)
        assert content == (first.root / file.path).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_next_deployment_leaves_the_earlier_ones_assets(bucket, bundle_of):
    first, second = bundle_of("1"), bundle_of("2")
    deploy(bucket, first, 1)
    deployed = deploy(bucket, second, 2)
    assert_live(bucket, second)
    assert deployed.uploaded_count == 5  # not the shared vendor.js
    for file in first.files:
        if file.fingerprinted:
            assert bucket.read(f"{FOLDER}/{file.path}") == (first.root / file.path).read_bytes()


def test_the_same_bundle_again_uploads_little_and_counts_as_new(bucket, bundle_of):
    first = deploy(bucket, bundle_of("1"), 1)
    second = deploy(bucket, bundle_of("1"), 2)
    assert second.generation > first.generation
    assert second.uploaded_count == 3
    assert live_deployment(bucket, FOLDER).request_id == "r2"


def test_a_fingerprinted_name_with_other_contents_is_an_error(bucket, bundle_of):
    first, second = bundle_of("1"), bundle_of("2")
    deploy(bucket, first, 1)
    shared = next(file for file in second.files if "vendor" in file.path.name)
    (second.root / shared.path).write_bytes(b"other")
    with pytest.raises(NameTaken, match="vendor"):
        deploy(bucket, second, 2)
    assert_live(bucket, first)


def test_a_file_may_become_a_folder_and_a_folder_a_file(bucket, bundle_of):
    """A bucket that is a folder cannot have both at once; a deployment that waits for neither can."""
    file, folder = bundle_of("1", extra={"audio": b"one"}), bundle_of("2", extra={"audio/star.mp3": b"two"})
    deploy(bucket, file, 1)
    deploy(bucket, folder, 2, before_commit=lambda: assert_live(bucket, file))
    assert_live(bucket, folder)
    again = bundle_of("3", extra={"audio": b"three"})
    deploy(bucket, again, 3, before_commit=lambda: assert_live(bucket, folder))
    assert_live(bucket, again)
    rollback(
        bucket,
        FOLDER,
        request_id="r2",
        fencing_token=4,
        seen_generation=live_deployment(bucket, FOLDER).generation,
        before_commit=lambda: None,
    )
    assert_live(bucket, folder)


def test_nothing_that_families_see_changes_before_the_claim_is_confirmed(bucket, bundle_of):
    first, second = bundle_of("1"), bundle_of("2")
    deploy(bucket, first, 1)

    def lost() -> None:
        assert_live(bucket, first)
        raise PermissionError("lease lost")

    with pytest.raises(PermissionError):
        deploy(bucket, second, 2, before_commit=lost)
    assert_live(bucket, first)
    assert live_deployment(bucket, FOLDER).request_id == "r1"


def test_who_saw_an_earlier_page_is_refused(bucket, bundle_of):
    first, second, third = bundle_of("1"), bundle_of("2"), bundle_of("3")
    seen = deploy(bucket, first, 1).generation
    deploy(bucket, second, 2)
    with pytest.raises(GenerationMismatch, match="somebody else"):
        deploy(bucket, third, 3, seen_generation=seen)
    assert_live(bucket, second)


def test_a_page_that_changes_during_the_upload_is_not_overwritten(bucket, bundle_of):
    first, second, third = bundle_of("1"), bundle_of("2"), bundle_of("3")
    deploy(bucket, first, 1)
    with pytest.raises(GenerationMismatch):
        deploy(bucket, second, 2, before_commit=lambda: deploy(bucket, third, 3))
    assert_live(bucket, third)


def test_a_smaller_fencing_token_is_refused_even_with_the_right_generation(bucket, bundle_of):
    first, second = bundle_of("1"), bundle_of("2")
    deploy(bucket, first, 5)
    with pytest.raises(GenerationMismatch, match="later fencing token 5"):
        deploy(bucket, second, 4)
    assert_live(bucket, first)


def test_the_same_worker_may_publish_twice(bucket, bundle_of):
    bundle = bundle_of("1")
    first = deploy(bucket, bundle, 1, seen_generation=0)
    again = deploy(bucket, bundle, 1, seen_generation=0)
    assert again.generation == first.generation
    assert again.uploaded_count == 0


def test_a_page_of_before_this_platform_is_replaced(bucket, bundle_of):
    bucket.put(f"{FOLDER}/index.html", b"old", content_type="text/html", cache_control="no-cache")
    live = live_deployment(bucket, FOLDER)
    assert (live.request_id, live.fencing_token, live.manifest_key) == ("", 0, "")
    finish_public_files(bucket, live)
    bundle = bundle_of("1")
    deploy(bucket, bundle, 1)
    assert_live(bucket, bundle)


def test_there_is_no_deployment_yet(bucket):
    assert live_deployment(bucket, FOLDER) is None


def test_a_bundle_without_a_page_or_with_the_platforms_own_names_is_refused(bucket, bundle_of):
    bundle = bundle_of("1")
    without = Bundle(bundle.root, PREFIX, tuple(file for file in bundle.files if file.path.name != "index.html"))
    with pytest.raises(PlayerBuildFailed, match=r"no index\.html"):
        deploy(bucket, without, 1)
    with pytest.raises(PlayerBuildFailed, match=r"\.deployments"):
        deploy(bucket, bundle_of("2", {".deployments/r1-1/manifest.json": b"{}"}), 1)
    assert list(bucket.files()) == []


@pytest.mark.parametrize("request_id", ["", "../7", "a/b", "x" * 101])
def test_a_request_id_that_is_no_name_is_refused(bucket, bundle_of, request_id):
    with pytest.raises(ValueError, match="request id"):
        deploy(bucket, bundle_of("1"), 1, request_id=request_id)


class FailsOnce:
    """A bucket whose nth change fails: before it has happened, or after, so that only the answer is lost."""

    def __init__(self, bucket: ExperimentBucket, at: int, *, after: bool) -> None:
        self.bucket = bucket
        self.at = at
        self.after = after
        self.changes: list[str] = []
        self.failed = ""
        self._lock = threading.Lock()  # files are sent in several threads

    def __getattr__(self, name: str):
        act = getattr(self.bucket, name)
        if name not in {"put", "write_page", "copy", "delete"}:
            return act

        def failing(*arguments, **named):
            with self._lock:
                self.changes.append(name)
                fails = len(self.changes) - 1 == self.at
                if fails:
                    self.failed = name
            if fails and not self.after:
                raise StorageError("before it happened")
            result = act(*arguments, **named)
            if fails:
                raise StorageError("after it happened")
            return result

        return failing


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
def test_a_failure_at_each_change_leaves_one_whole_version(tmp_path, bundle_of, after):
    first, second = bundle_of("1"), bundle_of("2")
    steps: list[str] = []
    for at in range(100):
        bucket = LocalExperimentBucket(tmp_path / f"bucket-{at}")
        deploy(bucket, first, 1)
        failing = FailsOnce(bucket, at, after=after)
        try:
            deploy(failing, second, 2)
        except StorageError:
            steps.append(failing.failed)
            live = live_deployment(bucket, FOLDER)
            if live.request_id == "r1":
                assert_live(bucket, first)
            else:
                # Committed: what a reconciler does now must be enough.
                assert_live(bucket, second, public_files=False)
                finish_public_files(bucket, live)
                assert_live(bucket, second)
            assert "copy" in failing.changes or live.request_id == "r1"
        else:
            assert_live(bucket, second)
            steps.append("none" if len(failing.changes) <= at else f"{failing.failed} was repaired")
            if len(failing.changes) <= at:
                break
        # The next try, by a new claim, goes well whatever is left over.
        deploy(bucket, second, 3)
        assert_live(bucket, second)
    assert steps[-1] == "none"
    assert "put" in steps
    assert "copy" in steps
    assert ("write_page was repaired" if after else "write_page") in steps


def test_who_finishes_for_a_dead_worker_may_do_so_often(bucket, bundle_of):
    first, second = bundle_of("1"), bundle_of("2")
    deploy(bucket, first, 1)
    copies = FailsOnce(bucket, 10**6, after=False)
    deploy(copies, second, 2)
    copy_at = copies.changes.index("copy")
    deploy(bucket, first, 3)
    with pytest.raises(StorageError):
        deploy(FailsOnce(bucket, copy_at, after=False), second, 4)
    assert bucket.read(f"{FOLDER}/robots.txt") == b"# 1"
    live = live_deployment(bucket, FOLDER)
    finish_public_files(bucket, live)
    finish_public_files(bucket, live)
    assert_live(bucket, second)


def test_who_finishes_too_late_changes_nothing(bucket, bundle_of):
    first, second = bundle_of("1"), bundle_of("2")
    deploy(bucket, first, 1)
    superseded = live_deployment(bucket, FOLDER)
    deploy(bucket, second, 2)
    finish_public_files(bucket, superseded)
    assert_live(bucket, second)


def test_a_lost_or_broken_manifest_is_told(bucket, bundle_of):
    deploy(bucket, bundle_of("1"), 1)
    live = live_deployment(bucket, FOLDER)
    bucket.put(live.manifest_key, b"{}", content_type="x", cache_control="x", replace=True)
    with pytest.raises(StorageError, match="manifest cannot be read"):
        finish_public_files(bucket, live)
    bucket.delete(live.manifest_key)
    with pytest.raises(NoSuchObject, match="manifest"):
        finish_public_files(bucket, live)


class TestInParallel:
    def test_so_many_files_are_sent_at_once_and_no_more(self, bucket, bundle_of):
        bundle = bundle_of("1", {f"assets/{n}-{'0' * 31}{n}.js": b"x" for n in range(10)})
        counted = Counted(bucket, threading.Barrier(4, timeout=5))
        deploy(counted, bundle, 1, parallel=4)
        assert counted.most == 4
        assert_live(bucket, bundle)

    def test_files_come_before_the_manifest_and_the_manifest_before_the_page(self, bucket, bundle_of):
        faulty = FaultyBucket(bucket)
        deploy(faulty, bundle_of("1"), 1)
        changes = [(name, key) for name, key in faulty.calls if name in {"put", "write_page", "copy"}]
        assert [name for name, _ in changes] == ["put"] * 9 + ["write_page"]
        assert changes[-2][1].endswith("/manifest.json")

    def test_the_first_error_stops_the_rest(self, bucket, bundle_of):
        bundle = bundle_of("1", {f"assets/{n:03}-{n:032}.js": b"x" for n in range(300)})
        faulty = FaultyBucket(bucket)
        faulty.refuse("put", "000-")
        with pytest.raises(StorageError, match="refuses to put"):
            deploy(faulty, bundle, 1)
        assert sum(name == "put" for name, _ in faulty.calls) < 200
        assert live_deployment(bucket, FOLDER) is None

    def test_who_is_told_of_files_and_raises_stops_the_rest(self, bucket, bundle_of):
        bundle = bundle_of("1", {f"assets/{n:03}-{n:032}.js": b"x" for n in range(300)})
        told = []

        def tell(file) -> None:
            told.append(file)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            deploy(bucket, bundle, 1, after_file=tell)
        assert len(told) == 1
        assert len(list(bucket.files())) < 200


class Counted:
    """Counts how many puts are under way at once; the first four wait for each other."""

    def __init__(self, bucket: ExperimentBucket, barrier: threading.Barrier) -> None:
        self.bucket = bucket
        self.barrier = barrier
        self.most = self.now = self.begun = 0
        self.lock = threading.Lock()

    def __getattr__(self, name: str):
        return getattr(self.bucket, name)

    def put(self, *arguments, **named):
        with self.lock:
            self.now += 1
            self.begun += 1
            self.most = max(self.most, self.now)
            waits = self.begun <= 4
        if waits:
            self.barrier.wait()
        try:
            return self.bucket.put(*arguments, **named)
        finally:
            with self.lock:
                self.now -= 1


def test_a_file_that_goes_during_the_upload_is_sent_again(bucket, bundle_of):
    """As when it was old, and pruned between the listing and the commit."""
    first, second = bundle_of("1"), bundle_of("2")
    deploy(bucket, first, 1)
    shared = next(file for file in second.files if "vendor" in file.path.name)
    faulty = FaultyBucket(bucket)
    faulty.after("put", lambda key: bucket.delete(f"{FOLDER}/{shared.path}") if "only-2" in key else None)
    deploy(faulty, second, 2)
    assert_live(bucket, second)


def test_a_file_that_cannot_be_kept_there_stops_the_deployment(bucket, bundle_of):
    first, second = bundle_of("1"), bundle_of("2")
    deploy(bucket, first, 1)
    faulty = FaultyBucket(bucket)
    faulty.after("put", lambda key: bucket.delete(key) if "vendor" in key else None)
    with pytest.raises(StorageError, match=r"vendor.*are not there"):
        deploy(faulty, second, 2)
    assert live_deployment(bucket, FOLDER).request_id == "r1"


class TestNoAnswer:
    """The page's write gets no answer: only a fence can tell, and make sure."""

    def deploy_without_answer(self, bucket, bundle, *, written: bool, unreachable: bool = False):
        faulty = FaultyBucket(bucket)

        def lose(_key: str) -> None:
            faulty.before("write_page", lambda _key: None)  # the fence's goes through
            faulty.after("write_page", lambda _key: None)
            if unreachable:
                faulty.refuse("page")
            raise NoAnswer("who knows")

        (faulty.after if written else faulty.before)("write_page", lose)
        return deploy(faulty, bundle, 2)

    def test_a_page_that_was_written_counts(self, bucket, bundle_of):
        deploy(bucket, bundle_of("1"), 1)
        deployed = self.deploy_without_answer(bucket, bundle_of("2"), written=True)
        live = live_deployment(bucket, FOLDER)
        assert (live.request_id, live.generation) == ("r2", deployed.generation)
        assert_live(bucket, bundle_of("2"))

    def test_a_page_that_was_not_written_can_never_be(self, bucket, bundle_of):
        seen = deploy(bucket, bundle_of("1"), 1).generation
        with pytest.raises(StorageError, match="never will be") as error:
            self.deploy_without_answer(bucket, bundle_of("2"), written=False)
        assert not isinstance(error.value, NoAnswer)
        assert_live(bucket, bundle_of("1"))
        assert live_deployment(bucket, FOLDER).generation > seen  # what comes late does not fit any more

    def test_as_long_as_nobody_can_ask_it_is_not_called_a_failure(self, bucket, bundle_of):
        deploy(bucket, bundle_of("1"), 1)
        with pytest.raises(NoAnswer):
            self.deploy_without_answer(bucket, bundle_of("2"), written=False, unreachable=True)
