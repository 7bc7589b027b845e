"""The contract of a bucket of archives, on each adapter: a folder, and Google's client against three servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from lookit_ops.server.archive_server import ArchiveServer
from lookit_ops.storage.archives import PARTS, ArchiveBucket, StoredPart
from lookit_ops.storage.errors import StorageError, UploadForgotten, WrongEnvironment
from lookit_ops.storage.gcs.archives import GcsArchiveBucket
from lookit_ops.storage.gcs.client import GcsAccess
from lookit_ops.storage.local.archives import LocalArchiveBucket
from tests.support.gcs_servers import BUCKET, fake_gcs_server, gcp_storage_emulator
from tests.support.reels import contents_of
from tests.support.strict_gcs import Account, StrictGcs

SCRATCH = f"{PARTS}/1-1"
KEY = "7b9e/7b9e_0f_all.zip"
NAME = "Apples_all_videos_2026-03-01.zip"


@dataclass
class Place:
    """A bucket, and what a test may do behind its back."""

    bucket: ArchiveBucket
    clock: Any
    """An object with `ahead`, in seconds, which the links' clock goes by."""


class Clock:
    ahead = 0.0

    def seconds(self) -> float:
        return datetime.now(UTC).timestamp() + self.ahead


@pytest.fixture(scope="session")
def account() -> Account:
    return Account()


@pytest.fixture
def strict(account: Account) -> Iterator[StrictGcs]:
    with StrictGcs(BUCKET, account=account) as server:
        yield server


@pytest.fixture
def google(strict: StrictGcs, account: Account, tmp_path: Path) -> Iterator[GcsArchiveBucket]:
    """Google's client with a service account's key, against the strict server, giving up after three seconds."""
    bucket = GcsArchiveBucket(BUCKET, GcsAccess(account.key_file(tmp_path, strict.url), strict.url, patience=3))
    yield bucket
    bucket.close()


@pytest.fixture(params=["folder", "strict"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    clock = Clock()
    if request.param == "folder":
        bucket = LocalArchiveBucket(tmp_path / "archives", "", now=clock.seconds)
        with ArchiveServer(bucket) as server:
            yield Place(LocalArchiveBucket(tmp_path / "archives", server.url, now=clock.seconds), clock)
        return
    strict: StrictGcs = request.getfixturevalue("strict")
    strict.now = lambda: datetime.fromtimestamp(clock.seconds(), UTC)  # ty: ignore[invalid-assignment]
    yield Place(request.getfixturevalue("google"), clock)


@pytest.fixture(params=["folder", "strict", "gcp-storage-emulator", "fake-gcs-server"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArchiveBucket]:
    """Each adapter and server in turn; the emulators know no conditions and no links."""
    if request.param == "folder":
        yield LocalArchiveBucket(tmp_path / "archives", "http://localhost/")
    elif request.param == "strict":
        yield request.getfixturevalue("google")
    else:
        server = gcp_storage_emulator if request.param == "gcp-storage-emulator" else fake_gcs_server
        with server(tmp_path) as url:
            bucket = GcsArchiveBucket(BUCKET, GcsAccess(endpoint=url, patience=3))
            yield bucket
            bucket.close()


def put(bucket: ArchiveBucket, number: int, contents: bytes) -> StoredPart:
    blocks = (contents[begin : begin + 100_000] for begin in range(0, len(contents), 100_000))
    return bucket.put_part(f"{SCRATCH}/{number:06}", blocks, len(contents))


def keys(bucket: ArchiveBucket) -> list[str]:
    return [file.key for file in bucket.files()]


def contents_in(bucket: ArchiveBucket, key: str) -> bytes:
    if isinstance(bucket, LocalArchiveBucket):
        return bucket.path(key).read_bytes()
    assert isinstance(bucket, GcsArchiveBucket)
    return bucket._bucket.blob(key).download_as_bytes()


def test_it_is_a_bucket_of_archives(bucket: ArchiveBucket) -> None:
    assert isinstance(bucket, ArchiveBucket)
    assert bucket.size_of(KEY) is None
    assert keys(bucket) == []


def test_parts_become_an_archive_in_their_order(bucket: ArchiveBucket) -> None:
    contents = [contents_of(number, size) for number, size in enumerate([300_000, 1, 9_000_000])]
    parts = [put(bucket, number, part) for number, part in enumerate(contents)]
    assert bucket.size_of(KEY) is None, "nothing is seen before"
    bucket.compose(KEY, parts, SCRATCH)
    assert contents_in(bucket, KEY) == b"".join(contents)
    assert bucket.size_of(KEY) == 9_300_001


def test_any_number_of_parts_can_be_joined(bucket: ArchiveBucket) -> None:
    contents = [bytes([number % 256]) * (number + 1) for number in range(70)]
    parts = [put(bucket, number, part) for number, part in enumerate(contents)]
    bucket.compose(KEY, parts, SCRATCH)
    assert contents_in(bucket, KEY) == b"".join(contents)
    assert all(key.startswith(f"{SCRATCH}/") for key in keys(bucket) if key != KEY)


def test_an_archive_that_is_there_stays_as_it_is(place: Place) -> None:
    bucket = place.bucket
    bucket.compose(KEY, [put(bucket, 1, b"first")], SCRATCH)
    bucket.compose(KEY, [put(bucket, 2, b"other")], SCRATCH)
    assert contents_in(bucket, KEY) == b"first"
    with pytest.raises(StorageError, match="has 5 bytes, and an archive of that name must have 7"):
        bucket.compose(KEY, [put(bucket, 3, b"another")], SCRATCH)


def test_what_is_cut_off_while_it_is_made_leaves_nothing(bucket: ArchiveBucket) -> None:
    class Broken(Exception):
        pass

    def blocks() -> Iterator[bytes]:
        yield contents_of(1, 500_000)
        raise Broken

    for size in (1_000_000, 20_000_000):
        with pytest.raises(Broken):
            bucket.put_part(f"{SCRATCH}/{size}", blocks(), size)
    assert keys(bucket) == []


def test_a_part_has_the_length_that_was_said(place: Place) -> None:
    for number, size in enumerate((6, 4)):
        with pytest.raises(StorageError):
            place.bucket.put_part(f"{SCRATCH}/{number}", iter([b"12345"]), size)


def test_all_that_comes_before_the_end_of_the_blocks_is_done(bucket: ArchiveBucket) -> None:
    """Whoever gives the blocks may have something to do behind the last one."""
    for size in (10, 8 * 2**20, 16 * 2**20):
        ended = []

        def blocks(size: int = size, ended: list[int] = ended) -> Iterator[bytes]:
            yield bytes(size)
            ended.append(size)

        bucket.put_part(f"{SCRATCH}/{size}", blocks(), size)
        assert ended == [size]


def test_a_lost_part_makes_no_archive(place: Place) -> None:
    bucket = place.bucket
    parts = [put(bucket, number, b"xyz") for number in range(3)]
    bucket.delete(parts[1].key)
    with pytest.raises(StorageError, match="no longer"):
        bucket.compose(KEY, parts, SCRATCH)
    assert bucket.size_of(KEY) is None


def test_deleting_twice_is_nothing(bucket: ArchiveBucket) -> None:
    part = put(bucket, 1, b"x")
    bucket.delete(part.key)
    bucket.delete(part.key)
    assert keys(bucket) == []


def test_a_bucket_is_of_one_environment(place: Place) -> None:
    place.bucket.claim_environment("staging")
    place.bucket.claim_environment("staging")
    with pytest.raises(WrongEnvironment, match="staging"):
        place.bucket.claim_environment("production")
    assert keys(place.bucket) == []


def test_a_link_gives_the_archive_under_its_name_for_half_an_hour(place: Place) -> None:
    bucket, contents = place.bucket, contents_of(1, 2_000_000)
    bucket.compose(KEY, [put(bucket, 1, contents)], SCRATCH)
    link = bucket.link(KEY, NAME, timedelta(minutes=30))
    answer = requests.get(link, timeout=10)
    assert (answer.status_code, answer.content) == (200, contents)
    assert re.match(rf'attachment; filename="{NAME}"', answer.headers["Content-Disposition"])
    assert answer.headers["Content-Type"] == "application/zip"
    place.clock.ahead = timedelta(minutes=29).total_seconds()
    assert requests.get(link, timeout=10).status_code == 200
    place.clock.ahead = timedelta(minutes=31).total_seconds()
    assert requests.get(link, timeout=10).status_code in {400, 403}


def test_a_link_is_good_for_its_archive_alone(place: Place) -> None:
    bucket = place.bucket
    bucket.compose(KEY, [put(bucket, 1, b"one")], SCRATCH)
    bucket.compose("other.zip", [put(bucket, 2, b"two")], SCRATCH)
    link = bucket.link(KEY, NAME, timedelta(minutes=30))
    others = [
        link.replace(KEY, "other.zip"),
        link.replace("Apples", "Pears"),
        re.sub(r"[Ss]ignature=..", lambda found: found[0][:-2] + "00", link),
        link.split("?")[0],
        re.sub(r"(expires=|Expires=)\d", r"\g<1>9", link),
    ]
    assert len({*others, link}) == 6
    assert {requests.get(other, timeout=10).status_code for other in others} <= {400, 401, 403}


def test_a_link_of_google_is_of_version_4(google: GcsArchiveBucket) -> None:
    query = parse_qs(urlsplit(google.link(KEY, NAME, timedelta(minutes=30))).query)
    assert query["X-Goog-Algorithm"] == ["GOOG4-RSA-SHA256"]
    assert query["X-Goog-Expires"] == ["1800"]
    with pytest.raises(StorageError, match="no link for longer"):
        google.link(KEY, NAME, timedelta(days=8))


def test_without_a_key_no_link_is_signed(strict: StrictGcs) -> None:
    bucket = GcsArchiveBucket(BUCKET, GcsAccess(endpoint=strict.url, patience=1))
    with pytest.raises(StorageError, match="LOOKIT_GCS_CREDENTIALS_FILE"):
        bucket.link(KEY, NAME, timedelta(minutes=30))
    bucket.close()


def test_the_folders_key_is_nobody_elses(tmp_path: Path) -> None:
    bucket = LocalArchiveBucket(tmp_path, "http://localhost/")
    bucket.link(KEY, NAME, timedelta(minutes=30))
    assert (tmp_path / ".bucket" / "link-key").stat().st_mode & 0o077 == 0


# -- what only a network can do -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cut", {"bytes": 5_000_000}),
        ("status", {"status": 503, "times": 3}),
        ("status", {"status": 429}),
        ("lost", {}),
        ("slow", {"seconds": 0.3}),
    ],
)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_part_arrives_whole_over_a_bad_network(
    google: GcsArchiveBucket, strict: StrictGcs, kind: Any, options: dict[str, Any], after: int
) -> None:
    contents = contents_of(1, 20_000_000)
    google.size_of(KEY)  # logs in, which is not what is to fail
    strict.fault(kind, "", "/upload/", after=after, **options)
    part = put(google, 1, contents)
    assert contents_in(google, part.key) == contents


@pytest.mark.parametrize("status", [404, 410])
def test_a_part_whose_upload_was_forgotten_is_to_be_sent_again(
    google: GcsArchiveBucket, strict: StrictGcs, status: int
) -> None:
    contents = contents_of(1, 20_000_000)
    google.size_of(KEY)
    strict.fault("status", "PUT", "/upload/", after=2, status=status)
    with pytest.raises(UploadForgotten, match=f"has forgotten .*{status}"):
        put(google, 1, contents)
    assert list(google.files()) == []
    assert contents_in(google, put(google, 1, contents).key) == contents


def test_a_small_part_whose_answer_is_lost_is_not_sent_twice(google: GcsArchiveBucket, strict: StrictGcs) -> None:
    google.size_of(KEY)
    strict.fault("lost", "POST", "/upload/")
    assert put(google, 1, b"tiny").size_bytes == 4


@pytest.mark.parametrize("kind", ["damaged", "altered"])
def test_a_part_that_arrives_damaged_does_not_count(google: GcsArchiveBucket, strict: StrictGcs, kind: Any) -> None:
    google.size_of(KEY)
    strict.fault(kind, "", "/upload/", times=100)
    for size in (1000, 20_000_000):
        with pytest.raises(StorageError):
            put(google, size, contents_of(1, size))
    assert google.size_of(KEY) is None


def test_a_join_whose_answer_is_lost_is_found_to_be_done(google: GcsArchiveBucket, strict: StrictGcs) -> None:
    parts = [put(google, number, b"xyz") for number in range(40)]
    strict.fault("lost", "POST", "/compose", times=2)
    google.compose(KEY, parts, SCRATCH)
    assert contents_in(google, KEY) == b"xyz" * 40


def test_a_part_that_somebody_replaced_makes_no_archive(google: GcsArchiveBucket, strict: StrictGcs) -> None:
    parts = [put(google, number, b"xyz") for number in range(3)]
    strict.insert(BUCKET, parts[0].key, b"abc")
    with pytest.raises(StorageError):
        google.compose(KEY, parts, SCRATCH)
    assert google.size_of(KEY) is None


def test_another_part_of_the_same_name_is_never_taken_for_ours(google: GcsArchiveBucket) -> None:
    part = put(google, 1, b"first")
    with pytest.raises(StorageError, match="did not arrive"):
        put(google, 1, b"other")
    assert contents_in(google, part.key) == b"first"


def test_what_can_be_seen_by_links_is_in_no_cache(google: GcsArchiveBucket, strict: StrictGcs) -> None:
    google.compose(KEY, [put(google, 1, b"x")], SCRATCH)
    resource = strict.objects(BUCKET)[KEY].resource
    assert (resource["contentType"], resource["cacheControl"]) == ("application/zip", "private, no-store")


def test_the_account_is_asked_for(strict: StrictGcs, tmp_path: Path, account: Account) -> None:
    stranger = replace(GcsAccess(Account().key_file(tmp_path, strict.url), strict.url), patience=1)
    bucket = GcsArchiveBucket(BUCKET, stranger)
    with pytest.raises(StorageError, match="credentials"):
        bucket.size_of(KEY)
    bucket.close()
    file = account.key_file(tmp_path, strict.url)
    file.write_text(json.dumps({**json.loads(file.read_text()), "private_key": "nonsense"}))
    with pytest.raises(StorageError, match="cannot be used as the key"):
        GcsArchiveBucket(BUCKET, GcsAccess(file, strict.url))
