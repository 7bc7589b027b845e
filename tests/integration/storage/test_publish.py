"""A deployment is either live as a whole or not at all, whatever fails and whoever else is at it."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from pathlib import Path, PurePosixPath

import pytest

from ember_build.bundle import Bundle, BundleFile
from ember_build.errors import PlayerBuildFailed
from lookit_ops.publish import (
    IMMUTABLE,
    REVALIDATED,
    Manifest,
    content_type_of,
    finish_public_files,
    folder_of,
    live_deployment,
    publish,
)
from lookit_ops.storage.experiments import (
    ExperimentBucket,
    GenerationMismatch,
    NameTaken,
    NoSuchObject,
    StorageError,
)
from lookit_ops.storage.local import LocalExperimentBucket

FOLDER = folder_of("deployment", "0c5f5dd7-0000-4000-8000-000000000001")
PREFIX = "/studies/0c5f5dd7-0000-4000-8000-000000000001/"


@pytest.fixture
def bucket(tmp_path: Path) -> LocalExperimentBucket:
    return LocalExperimentBucket(tmp_path / "bucket")


@pytest.fixture
def bundle_of(tmp_path: Path):
    """Makes the bundle of a version: two assets of its own, one that all versions share, two files without print."""

    def make(version: str, extra: dict[str, bytes] | None = None) -> Bundle:
        root = tmp_path / f"dist-{version}"
        contents = {"robots.txt": f"# {version}".encode(), f"only-{version}.txt": b"", **(extra or {})}
        named = []
        for name, content in (
            ("app.js", f"play('{version}')".encode()),
            ("app.css", f"/* {version} */".encode()),
            ("vendor.js", b"shared"),
        ):
            stem, _, suffix = name.partition(".")
            path = f"assets/{stem}-{hashlib.md5(content, usedforsecurity=False).hexdigest()}.{suffix}"
            contents[path] = content
            named.append(f'<script src="{PREFIX}{path}"></script>')
        contents["index.html"] = f"<!-- {version} -->{''.join(named)}".encode()
        files = []
        for path, content in sorted(contents.items()):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
            fingerprinted = re.search(r"-[0-9a-f]{32}\.", path) is not None
            digest = hashlib.sha256(content).hexdigest()
            files.append(BundleFile(PurePosixPath(path), len(content), digest, fingerprinted))
        return Bundle(root, PREFIX, tuple(files))

    return make


def deploy(bucket: ExperimentBucket, bundle: Bundle, token: int, **options):
    live = live_deployment(bucket, FOLDER)
    settings = {
        "folder": FOLDER,
        "request_id": f"r{token}",
        "fencing_token": token,
        "seen_generation": live.generation if live else 0,
        "facts": {"sha": "a" * 40},
        "before_commit": lambda: None,
        **options,
    }
    return publish(bucket, bundle, **settings)


def assert_live(bucket: ExperimentBucket, bundle: Bundle, *, public_files: bool = True) -> None:
    """The live page is this bundle's, and all of its files are there."""
    for file in bundle.files:
        if file.fingerprinted or file.path.name == "index.html" or public_files:
            assert bucket.read(f"{FOLDER}/{file.path}") == (bundle.root / file.path).read_bytes(), file.path


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
        ("LICENSE", "application/octet-stream"),
    ],
)
def test_content_types(name, expected):
    assert content_type_of(PurePosixPath(name)) == expected


def test_a_first_deployment(bucket, bundle_of):
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
        headers = bucket.headers(f"{FOLDER}/{file.path}")
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

    def __getattr__(self, name: str):
        act = getattr(self.bucket, name)
        if name not in {"put", "write_page", "copy", "delete"}:
            return act

        def failing(*arguments, **named):
            self.changes.append(name)
            fails = len(self.changes) - 1 == self.at
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
            steps.append(failing.changes[-1])
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
            steps.append("none" if len(failing.changes) <= at else f"{failing.changes[at]} was repaired")
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


def test_families_never_meet_a_mixed_or_missing_version(bucket, bundle_of):
    bundles = [bundle_of(version) for version in ("1", "2", "3")]
    contents = {bundle: {f.path.name: (bundle.root / f.path).read_bytes() for f in bundle.files} for bundle in bundles}
    whole = {contents[bundle]["index.html"]: contents[bundle] for bundle in bundles}
    deploy(bucket, bundles[0], 1)
    done = threading.Event()
    problems: list[str] = []
    visits = [0, 0, 0]

    def visit(number: int) -> None:
        """As a browser through a plain server: open the page, then what it names, a little later."""
        page_file = bucket.root / FOLDER / "index.html"
        while not done.is_set():
            try:
                page = page_file.read_bytes()
                expected = whole[page]
                for name in re.findall(rf'src="{PREFIX}([^"]+)"', page.decode()):
                    content = (bucket.root / FOLDER / name).read_bytes()
                    assert content == expected[Path(name).name], f"{name} is another version's"
            except (OSError, KeyError, AssertionError) as error:
                problems.append(f"{type(error).__name__}: {error}")
            visits[number] += 1
            time.sleep(0.0005)

    families = [threading.Thread(target=visit, args=(number,)) for number in range(3)]
    for family in families:
        family.start()
    for token in range(2, 32):
        deploy(bucket, bundles[token % 3], token)
    done.set()
    for family in families:
        family.join()
    assert problems == []
    assert min(visits) > 5
