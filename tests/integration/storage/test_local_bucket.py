"""What only the bucket in a folder promises: a plain server can serve it, and the disk may fail at any moment."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import requests

from lookit_ops.storage.errors import GenerationMismatch, NameTaken, PathTaken, StorageError
from lookit_ops.storage.local import experiments as local
from lookit_ops.storage.local.experiments import HIDDEN, LocalExperimentBucket

HEADERS = {"content_type": "text/html", "cache_control": "no-cache"}
PAGE = "experiments/uuid/index.html"


@pytest.fixture
def bucket(tmp_path: Path) -> LocalExperimentBucket:
    return LocalExperimentBucket(tmp_path / "bucket")


def write(bucket: LocalExperimentBucket, content: bytes, seen: int) -> int:
    return bucket.write_page(PAGE, content, metadata={"v": content.decode()}, if_generation=seen, **HEADERS)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(bucket: LocalExperimentBucket) -> Iterator[str]:
    bucket.root.mkdir(parents=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(bucket.root))) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_plain_static_server_serves_it(bucket, served):
    bucket.put("experiments/uuid/assets/app.js", b"play()", **HEADERS)
    seen = write(bucket, b"one", 0)
    write(bucket, b"two", seen)
    for path, content in (("", b"two"), ("index.html", b"two"), ("assets/app.js", b"play()")):
        assert requests.get(f"{served}/experiments/uuid/{path}", timeout=5).content == content


def test_the_bucket_may_be_moved(bucket, tmp_path):
    seen = write(bucket, b"one", 0)
    bucket.root.rename(tmp_path / "moved")
    page = LocalExperimentBucket(tmp_path / "moved").page(PAGE)
    assert (page.content, page.generation) == (b"one", seen)


def test_the_hidden_folder_is_no_place_for_objects(bucket):
    write(bucket, b"one", 0)
    assert [file.key for file in bucket.files()] == [PAGE]
    assert list(bucket.files(HIDDEN)) == list(bucket.files(f"{HIDDEN}/")) == []
    with pytest.raises(StorageError, match="the bucket's own"):
        bucket.put(f"{HIDDEN}/environment", b"production", replace=True, **HEADERS)


def test_a_page_that_somebody_put_there_by_hand_can_be_replaced(bucket):
    path = bucket.root / PAGE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"by hand")
    page = bucket.page(PAGE)
    assert (page.content, page.metadata) == (b"by hand", {})
    assert write(bucket, b"new", page.generation) > page.generation
    assert path.read_bytes() == b"new"


def test_an_object_that_was_damaged_is_seen_as_other_contents(bucket):
    bucket.put("a.js", b"whole", **HEADERS)
    (bucket.root / "a.js").write_bytes(b"who")
    assert bucket.put("a.js", b"whole", replace=True, **HEADERS)
    assert bucket.read("a.js") == b"whole"


def test_superseded_versions_go_once_nobody_can_be_reading_them(bucket, monkeypatch):
    versions = bucket.root / HIDDEN / "pages" / PAGE
    hour = 3600 * 10**9
    now = 10**18
    monkeypatch.setattr("lookit_ops.storage.local.experiments.time.time_ns", lambda: now)
    first = write(bucket, b"1", 0)
    now += 5 * hour
    second = write(bucket, b"2", first)
    now += hour // 2
    third = write(bucket, b"3", second)
    assert {int(path.name) for path in versions.iterdir()} == {first, second, third}
    now += 2 * hour
    fourth = write(bucket, b"4", third)
    assert {int(path.name) for path in versions.iterdir()} == {third, fourth}


def test_the_version_that_was_live_until_now_stays_whatever_a_crash_left(bucket, monkeypatch):
    versions = bucket.root / HIDDEN / "pages" / PAGE
    hour = 3600 * 10**9
    now = 10**18
    monkeypatch.setattr("lookit_ops.storage.local.experiments.time.time_ns", lambda: now)
    first = write(bucket, b"1", 0)
    (versions / str(first + 5)).mkdir()
    now += 5 * hour
    second = write(bucket, b"2", first)
    assert {first, second} <= {int(path.name) for path in versions.iterdir()}


def test_whoever_is_suspended_over_a_page_holds_up_nobody_and_changes_nothing(bucket, monkeypatch):
    seen = write(bucket, b"one", 0)
    asleep, wake, real = threading.Event(), threading.Event(), os.fsync

    def sleep_at_first(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", real)
        asleep.set()
        assert wake.wait(20)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sleep_at_first)
    with ThreadPoolExecutor() as pool:
        sleeper = pool.submit(write, bucket, b"asleep", seen)
        assert asleep.wait(20)
        try:
            other = pool.submit(write, bucket, b"two", seen).result(20)
            before = all_files(bucket.root)
        finally:
            wake.set()
        with pytest.raises(GenerationMismatch, match=f"generation {seen} was seen, now it is {other}"):
            sleeper.result(20)
    assert bucket.page(PAGE).content == b"two"
    after = all_files(bucket.root)
    assert set(after) <= set(before)
    assert {name: after[name] for name in after} == {name: before[name] for name in after}
    assert {path.name for path in (bucket.root / HIDDEN / "pages" / PAGE).iterdir()} == {str(seen), str(other)}


def test_an_unchanged_object_is_read_once(bucket, monkeypatch, tmp_path):
    source = tmp_path / "app.js"
    source.write_bytes(b"app")
    bucket.put("app.js", source, **HEADERS)
    read, real = [], local._sha256
    monkeypatch.setattr(local, "_sha256", lambda file: read.append(file) or real(file))
    assert not bucket.put("app.js", source, **HEADERS)
    assert read == [source, bucket.root / "app.js"]


def test_what_somebody_else_put_meanwhile_is_looked_at_again(bucket, monkeypatch):
    real = bucket._arriving

    @contextmanager
    def overtaken(source):
        with real(source) as arrived:
            monkeypatch.undo()
            bucket.put("app.js", b"theirs", **HEADERS)
            yield arrived

    monkeypatch.setattr(bucket, "_arriving", overtaken)
    with pytest.raises(NameTaken):
        bucket.put("app.js", b"ours", **HEADERS)
    assert bucket.read("app.js") == b"theirs"


def test_notes_that_cannot_be_read_are_the_storages_trouble(bucket):
    generation = write(bucket, b"one", 0)
    (bucket.root / HIDDEN / "pages" / PAGE / str(generation) / "metadata.json").write_text("{")
    with pytest.raises(StorageError, match="changed by hand"):
        bucket.page(PAGE)


def all_files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "locks" not in path.parts
    }


@pytest.mark.parametrize("act", ["put", "replace", "copy", "page"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_moment_leaves_what_was(bucket, monkeypatch, act, code):
    bucket.put("old.js", b"old", **HEADERS)
    seen = write(bucket, b"one", 0)
    acts = {
        "put": lambda: bucket.put("new.js", b"new", **HEADERS),
        "replace": lambda: bucket.put("old.js", b"new", replace=True, **HEADERS),
        "copy": lambda: bucket.copy("old.js", "new.js"),
        "page": lambda: write(bucket, b"two", seen),
    }
    real = os.fsync
    failures = 0
    for moment in range(20):
        before = all_files(bucket.root)
        left = moment

        def failing(descriptor: int) -> None:
            nonlocal left
            if left == 0:
                left -= 1
                raise OSError(code, os.strerror(code))
            left -= 1
            real(descriptor)

        monkeypatch.setattr(os, "fsync", failing)
        try:
            acts[act]()
        except StorageError as error:
            failures += 1
            assert ("is full" in str(error)) == (code == errno.ENOSPC)  # noqa: PT017  # which moment fails is not known
            assert list((bucket.root / HIDDEN / "incoming").iterdir()) == []
            # Each file is the old one or the new one, whole.
            after = all_files(bucket.root)
            assert set(before) <= set(after)
            assert bucket.page(PAGE).content in {b"one", b"two"}
            assert bucket.page(PAGE).content == bucket.page(PAGE).metadata["v"].encode()
            assert bucket.read("old.js") in {b"old", b"new"}
            if bucket.page(PAGE).content == b"two":
                break  # the last moment: written, though not surely on disk
        else:
            break
    assert failures >= 2


def test_what_killed_processes_were_writing_goes_after_a_day(bucket):
    incoming = bucket.root / HIDDEN / "incoming"
    bucket.put("app.js", b"app", **HEADERS)
    for name, hours in (("old", 25), ("new", 23)):
        (incoming / name).write_bytes(b"half")
        os.utime(incoming / name, (time.time() - hours * 3600,) * 2)
    bucket.claim_environment("development")
    assert [path.name for path in incoming.iterdir()] == ["new"]


def test_a_fingerprinted_name_in_a_folder_that_is_a_file_of_the_live_deployment_is_refused_with_the_reason(bucket):
    bucket.put("study/audio", b"one", **HEADERS)
    with pytest.raises(PathTaken, match="needs a folder where study/audio is a file of the deployment that is live"):
        bucket.put("study/audio/star-0.mp3", b"two", **HEADERS)
    bucket.put("study/sounds/star.mp3", b"three", **HEADERS)
    with pytest.raises(PathTaken, match=r"study/sounds in .* is a folder"):
        bucket.put("study/sounds", b"four", **HEADERS)
    assert bucket.read("study/audio") == b"one"
    assert bucket.read("study/sounds/star.mp3") == b"three"
