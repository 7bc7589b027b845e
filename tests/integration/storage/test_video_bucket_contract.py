"""The contract of a bucket of videos, on each adapter: a folder, Amazon's client against a real S3 server, several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr

from lookit_ops.storage.errors import StorageError, VideoChanged
from lookit_ops.storage.local.videos import LocalVideoBucket
from lookit_ops.storage.s3 import S3VideoBucket
from lookit_ops.storage.video_buckets import VideoBuckets
from lookit_ops.storage.videos import ListedVideo, VideoBucket, read_video
from tests.support.faulty_s3 import FaultyS3
from tests.support.reels import contents_of
from tests.support.s3_server import S3Server

Put = Callable[[str, bytes], None]


@pytest.fixture(params=["folder", "s3", "second of two"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[VideoBucket, Put, Callable[[str], None]]]:
    """A bucket, how something gets into it, and how it goes."""
    if request.param != "s3":
        folder = tmp_path / "videos"
        folder.mkdir()
        here = LocalVideoBucket(folder)
        both = VideoBuckets(LocalVideoBucket(tmp_path / "first"), {str(folder): here})
        yield (
            here if request.param == "folder" else both,
            lambda key, contents: (folder / key).write_bytes(contents) and None,
            lambda key: (folder / key).unlink(),
        )
        return
    server: S3Server = request.getfixturevalue("s3")
    name = server.bucket(f"videos-{uuid4().hex}")
    bucket = S3VideoBucket(name, server.access())
    yield (
        bucket,
        lambda key, contents: server.put(name, key, contents),
        lambda key: server.client.delete_object(Bucket=name, Key=key),
    )
    bucket.close()


@pytest.fixture
def bucket(made: tuple[VideoBucket, Put, object]) -> VideoBucket:
    return made[0]


@pytest.fixture
def put(made: tuple[VideoBucket, Put, object]) -> Put:
    return made[1]


def listed(bucket: VideoBucket, key: str) -> ListedVideo:
    (video,) = bucket.videos(key)
    return video


def test_it_is_a_bucket_of_videos(bucket: VideoBucket) -> None:
    assert isinstance(bucket, VideoBucket)
    assert list(bucket.videos()) == []
    assert bucket.name


def test_a_listing_is_by_key_and_by_prefix(bucket: VideoBucket, put: Put) -> None:
    keys = ["b.mp4", "a_2.webm", "a_1.mp4", "ä.mp4"]
    for number, key in enumerate(keys):
        put(key, bytes(number))
    assert [video.key for video in bucket.videos()] == sorted(keys)
    assert [(video.key, video.size_bytes) for video in bucket.videos("a_")] == [("a_1.mp4", 2), ("a_2.webm", 1)]
    assert all(video.etag and '"' not in video.etag for video in bucket.videos())
    assert all(video.updated_at.tzinfo for video in bucket.videos())


def test_more_than_one_page_is_listed(bucket: VideoBucket, put: Put) -> None:
    for number in range(1010):
        put(f"v{number:04}.mp4", b"x")
    assert [video.key for video in bucket.videos()] == [f"v{number:04}.mp4" for number in range(1010)]


@pytest.mark.parametrize("size", [0, 1, 2**20, 3 * 2**20 + 17])
def test_all_bytes_come_in_blocks(bucket: VideoBucket, put: Put, size: int) -> None:
    contents = contents_of(1, size)
    put("a.mp4", contents)
    assert b"".join(read_video(bucket, listed(bucket, "a.mp4"))) == contents


def test_reading_goes_on_from_any_byte(bucket: VideoBucket, put: Put) -> None:
    contents = contents_of(2, 2 * 2**20 + 5)
    put("a.mp4", contents)
    video = listed(bucket, "a.mp4")
    for offset in (1, 2**20, len(contents) - 1):
        assert b"".join(bucket.blocks(video, offset)) == contents[offset:]


def test_a_changed_video_is_refused_however_it_is_read(bucket: VideoBucket, put: Put) -> None:
    put("a.mp4", b"the first take")
    video = listed(bucket, "a.mp4")
    put("a.mp4", b"the second one")
    for offset in (0, 3):
        with pytest.raises(VideoChanged, match=r"a\.mp4"):
            list(bucket.blocks(video, offset))
    assert listed(bucket, "a.mp4").etag != video.etag


def test_a_video_that_shrank_is_refused(bucket: VideoBucket, put: Put) -> None:
    put("a.mp4", bytes(1000))
    video = listed(bucket, "a.mp4")
    put("a.mp4", bytes(500))
    with pytest.raises(VideoChanged):
        list(read_video(bucket, video))


def test_a_vanished_video_is_said_to_be_gone(made: tuple[VideoBucket, Put, Callable[[str], None]]) -> None:
    bucket, put, remove = made
    put("a.mp4", b"x")
    video = listed(bucket, "a.mp4")
    remove("a.mp4")
    with pytest.raises(VideoChanged, match="no longer"):
        list(bucket.blocks(video, 0))


def test_a_listing_that_tells_another_length_is_never_read_as_that(bucket: VideoBucket, put: Put) -> None:
    put("a.mp4", bytes(100))
    for size in (99, 101):
        with pytest.raises(StorageError):
            list(read_video(bucket, replace(listed(bucket, "a.mp4"), size_bytes=size), sleep=lambda _: None))


# -- what only a network can do -----------------------------------------------------------------------------------


@pytest.fixture
def detour(s3: S3Server) -> Iterator[FaultyS3]:
    with FaultyS3(s3.url) as detour:
        yield detour


@pytest.fixture
def far(s3: S3Server, detour: FaultyS3) -> Iterator[tuple[S3VideoBucket, bytes]]:
    """A bucket with one video of three megabytes, which is reached by the detour."""
    name, contents = s3.bucket(f"videos-{uuid4().hex}"), contents_of(3, 3_000_000)
    s3.put(name, "a.mp4", contents)
    bucket = S3VideoBucket(name, s3.access(endpoint=detour.url, attempts=1))
    yield bucket, contents
    bucket.close()


@pytest.mark.parametrize("kind", ["cut", "short"])
def test_a_broken_read_goes_on_at_the_byte_where_it_broke(
    far: tuple[S3VideoBucket, bytes], detour: FaultyS3, kind: str
) -> None:
    bucket, contents = far
    video = listed(bucket, "a.mp4")
    detour.fault(kind, "a.mp4", bytes=1_234_567, times=1)
    detour.fault(kind, "a.mp4", bytes=300_000, times=1)
    pauses: list[float] = []
    assert b"".join(read_video(bucket, video, sleep=pauses.append)) == contents
    reads = [request for request in detour.requests if "list-type" not in request]
    assert len(reads) == 3
    assert len(pauses) == 2
    if kind == "short":  # a reset may lose what had arrived
        assert reads[1].endswith("bytes=1234567-"), "not from the beginning"


@pytest.mark.parametrize("status", [500, 503, 403])
def test_a_passing_refusal_is_tried_again(far: tuple[S3VideoBucket, bytes], detour: FaultyS3, status: int) -> None:
    bucket, contents = far
    video = listed(bucket, "a.mp4")
    detour.fault("status", "a.mp4", status=status, times=2)
    assert b"".join(read_video(bucket, video, sleep=lambda _: None)) == contents


def test_a_refusal_that_stays_is_an_error_with_its_reason(far: tuple[S3VideoBucket, bytes], detour: FaultyS3) -> None:
    bucket, _ = far
    video = listed(bucket, "a.mp4")
    detour.fault("status", "a.mp4", status=503, times=1000)
    with pytest.raises(StorageError, match=r"cannot be read beyond byte 0 of 3000000.*SlowDown") as raised:
        list(read_video(bucket, video, sleep=lambda _: None))
    assert not isinstance(raised.value, VideoChanged)


def test_a_network_that_gives_nothing_more_ends_the_read(far: tuple[S3VideoBucket, bytes], detour: FaultyS3) -> None:
    bucket, _ = far
    video = listed(bucket, "a.mp4")
    detour.fault("short", "a.mp4", bytes=0, times=1000)
    with pytest.raises(StorageError, match="beyond byte 0"):
        list(read_video(bucket, video, sleep=lambda _: None))


def test_a_read_that_is_given_up_closes_its_connection_at_once(far: tuple[S3VideoBucket, bytes]) -> None:
    """Not when its error is collected: that may be late, and a warning."""
    bucket, _ = far

    def give_up() -> None:
        raise ZeroDivisionError

    bodies = []
    get_object = bucket._client.get_object
    bucket._client.get_object = lambda **asked: (answer := get_object(**asked), bodies.append(answer["Body"]))[0]
    with pytest.raises(ZeroDivisionError) as raised:
        list(read_video(bucket, listed(bucket, "a.mp4"), check=give_up))
    assert raised.tb is not None, "what it holds is still held"
    assert [body._raw_stream.closed for body in bodies] == [True]


def test_wrong_credentials_and_a_missing_bucket_say_what_to_check(s3: S3Server) -> None:
    bucket = S3VideoBucket("videos", s3.access(secret_access_key=SecretStr("wrong")))
    with pytest.raises(StorageError, match="does not let these credentials"):
        list(bucket.videos())
    bucket.close()
    missing = S3VideoBucket("there-is-no-such-bucket", s3.access())
    with pytest.raises(StorageError, match="LOOKIT_VIDEOS_BUCKET"):
        list(missing.videos())
    missing.close()
