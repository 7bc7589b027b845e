"""The job `build_zipfile_of_videos` between a real S3 server and a strict Google Cloud Storage, while things break.

Whatever happens: nothing is visible that is not complete and valid, the next attempt succeeds, and no part stays.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from domain.models import ArchiveKind, ArchiveRequest, RequestStatus
from lookit_ops.runs.reconcile import reconcile_archives
from lookit_ops.storage.gcs.archives import GcsArchiveBucket
from lookit_ops.storage.gcs.client import GcsAccess
from lookit_ops.storage.s3 import S3VideoBucket
from tests.integration.jobs.test_build_experiment import metadata_of, what_failed
from tests.support.faulty_s3 import FaultyS3
from tests.support.gcs_servers import BUCKET
from tests.support.leases import give_up
from tests.support.reels import Reels, contents_of, opened
from tests.support.s3_server import S3Server
from tests.support.site import Site
from tests.support.strict_gcs import StrictGcs

MB = 1_000_000
UNZIP = shutil.which("unzip") or "unzip"
VIDEO_BYTES = 12 * MB
"""Three of them make a part."""


@dataclass
class Clouds:
    """A study with videos in S3, the way there, and the bucket of archives."""

    reels: Reels
    s3: S3Server
    bucket: str
    detour: FaultyS3
    gcs: StrictGcs

    def film(self, count: int = 5) -> list[str]:
        response = self.reels.footage.response("accepted")
        keys = [self.reels.footage.video(response, f"{number}-frame") for number in range(count)]
        for number, key in enumerate(keys):
            self.put(key, contents_of(number, VIDEO_BYTES + number))
        return keys

    def put(self, key: str, contents: bytes) -> None:
        self.s3.put(self.bucket, key, contents)
        self.reels.written[key] = contents

    def delete(self, key: str) -> None:
        self.s3.client.delete_object(Bucket=self.bucket, Key=key)
        del self.reels.written[key]

    def visible(self) -> dict[str, bytes]:
        """All objects of the bucket of archives but the mark of its environment."""
        there = self.gcs.objects(BUCKET)
        return {key: stored.content for key, stored in there.items() if not key.startswith(".bucket/")}

    def check(self, request: ArchiveRequest) -> dict[str, bytes]:
        """The archive is the only object, and holds exactly what is in S3; returns its members."""
        assert request.status == RequestStatus.SUCCEEDED, request.error
        assert list(self.visible()) == [request.archive_key]
        members, _ = opened(self.visible()[request.archive_key or ""])
        assert members == self.reels.written
        return members


@pytest.fixture
def clouds(tmp_path: Path, site: Site, engine: Engine, s3: S3Server) -> Iterator[Clouds]:
    bucket = s3.bucket(f"videos-{uuid4().hex}")
    with FaultyS3(s3.url) as detour, StrictGcs(BUCKET) as gcs:
        videos = S3VideoBucket(bucket, s3.access(endpoint=detour.url, attempts=1))
        archives = GcsArchiveBucket(BUCKET, GcsAccess(endpoint=gcs.url, patience=2))
        reels = Reels(tmp_path / "reels", site, engine, {"lease": 4}, videos, archives)
        reels.services.archives.claim_environment("development")
        yield Clouds(reels, s3, bucket, detour, gcs)
        reels.close()
        videos.close()
        archives.close()


def test_what_arrives_is_what_is_in_s3_and_unzip_says_so(clouds: Clouds, tmp_path: Path) -> None:
    clouds.film()
    request = clouds.reels.archive()
    clouds.check(request)
    file = tmp_path / "a.zip"
    file.write_bytes(clouds.visible()[request.archive_key or ""])
    tested = subprocess.run([UNZIP, "-tq", str(file)], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout
    assert clouds.gcs.open_sessions == 0


def test_the_settings_lead_to_the_clouds(clouds: Clouds, site: Site, engine: Engine, tmp_path: Path) -> None:
    clouds.film(2)
    secret = "made-up-for-tests"
    settings = {
        "videos_bucket": f"s3://{clouds.bucket}",
        "videos_endpoint": clouds.s3.url,
        "videos_access_key_id": "lookit-tests",
        "videos_secret_access_key": secret,
        "archives_bucket": f"gs://{BUCKET}",
        "gcs_endpoint": clouds.gcs.url,
    }
    reels = Reels(tmp_path / "wired", site, engine, settings)
    request = reels.archive()
    clouds.check(request)
    assert secret in reels.services.settings.secrets()
    assert site.mails()[-1].status == "waiting", "without a key no link is signed, and the mail waits for one"
    reels.services.close()
    reels.close()


def s3_cut(clouds: Clouds, keys: list[str]) -> None:
    clouds.detour.fault("cut", keys[1], bytes=5 * MB)
    clouds.detour.fault("short", keys[3], bytes=11 * MB)


def s3_refuses(clouds: Clouds, keys: list[str]) -> None:
    clouds.detour.fault("status", keys[0], status=503, times=2)
    clouds.detour.fault("status", keys[4], status=403)


def gcs_cut(clouds: Clouds, keys: list[str]) -> None:
    clouds.gcs.fault("cut", "PUT", "/upload/", bytes=3 * MB, after=1)


def gcs_refuses(clouds: Clouds, keys: list[str]) -> None:
    clouds.gcs.fault("status", "", "/upload/", status=503, times=2, after=1)
    clouds.gcs.fault("status", "POST", "/compose", status=503)


def gcs_loses_answers(clouds: Clouds, keys: list[str]) -> None:
    clouds.gcs.fault("lost", "PUT", "/upload/", after=2)
    clouds.gcs.fault("lost", "POST", "/compose")


def gcs_forgets_uploads(clouds: Clouds, keys: list[str]) -> None:
    clouds.gcs.fault("status", "PUT", "/upload/", status=410, after=3)
    clouds.gcs.fault("status", "PUT", "/upload/", status=404, after=9)


@pytest.mark.parametrize("plan", [s3_cut, s3_refuses, gcs_cut, gcs_refuses, gcs_loses_answers, gcs_forgets_uploads])
def test_what_passes_stops_nothing(clouds: Clouds, plan: Callable[[Clouds, list[str]], None]) -> None:
    plan(clouds, clouds.film())
    request = clouds.reels.archive()
    clouds.check(request)
    assert request.attempt == 1


def test_a_video_deleted_after_the_listing_is_named_as_missing(clouds: Clouds) -> None:
    keys = clouds.film()
    clouds.detour.fault("act", keys[2], act=lambda: clouds.delete(keys[2]))
    request = clouds.reels.archive()
    clouds.check(request)
    assert (request.video_count, request.missing_count, request.attempt) == (4, 1, 1)
    _, rows = opened(clouds.visible()[request.archive_key or ""])
    assert [row["object_key"] for row in rows if row["status"] == "missing"] == [keys[2]]


def test_a_video_that_shrinks_is_taken_as_it_is_then(clouds: Clouds) -> None:
    keys = clouds.film()
    clouds.detour.fault("act", keys[4], act=lambda: clouds.put(keys[4], b"cut down"))
    request = clouds.reels.archive()
    assert clouds.check(request)[keys[4]] == b"cut down"


def test_videos_that_never_hold_still_end_the_attempt_not_the_request(clouds: Clouds) -> None:
    keys = clouds.film(2)
    takes = iter(range(100))
    clouds.detour.fault("act", keys[0], times=100, act=lambda: clouds.put(keys[0], f"take {next(takes)}".encode()))
    request = clouds.reels.archive()
    assert (request.status, request.error_code) == (RequestStatus.QUEUED, "video_changed")
    assert clouds.visible() == {}
    clouds.detour.heal()
    clouds.reels.run(request_id=request.id)
    clouds.check(clouds.reels.row(request.id))


def gcs_is_away(clouds: Clouds) -> None:
    clouds.gcs.fault("status", "", "/upload/", status=503, times=10_000, after=2)


def gcs_will_not_join(clouds: Clouds) -> None:
    clouds.gcs.fault("status", "POST", "/compose", status=503, times=10_000)


def gcs_forgets(clouds: Clouds) -> None:
    clouds.gcs.fault("altered", "PUT", "/upload/", times=10_000)


def s3_is_away(clouds: Clouds) -> None:
    clouds.detour.fault("status", "videoStream_", status=503, times=10_000, after=2)


@pytest.mark.parametrize("plan", [gcs_is_away, gcs_will_not_join, gcs_forgets, s3_is_away])
def test_what_lasts_lets_the_request_wait_and_the_next_attempt_succeeds(
    clouds: Clouds, plan: Callable[[Clouds], None]
) -> None:
    clouds.film()
    plan(clouds)
    request_id = clouds.reels.request()
    run = clouds.reels.run(request_id=request_id)
    assert what_failed(run).startswith("stream: ")
    request = clouds.reels.row(request_id)
    assert (request.status, request.error_code) == (RequestStatus.QUEUED, "storage_error")
    clouds.gcs.heal()
    clouds.detour.heal()
    assert not [key for key in clouds.visible() if key.endswith(".zip")]
    assert clouds.reels.site.mails() == []
    clouds.reels.run(request_id=request_id)
    clouds.check(clouds.reels.row(request_id))


def test_a_poison_request_ends_as_failed_with_one_mail(clouds: Clouds) -> None:
    clouds.film(2)
    clouds.gcs.fault("status", "", "/upload/", status=403, times=10_000)
    request_id = clouds.reels.request()
    attempts = clouds.reels.ledger.retry_by.attempts
    for attempt in range(1, attempts + 1):
        assert not clouds.reels.run(request_id=request_id).success
        assert clouds.reels.row(request_id).attempt == attempt
    request = clouds.reels.row(request_id)
    assert request.status == RequestStatus.FAILED
    assert f"tried {attempts} times" in (request.error or "")
    assert [mail.template for mail in clouds.reels.site.mails()] == ["archive_failed"]
    assert clouds.visible() == {}


def test_who_cancels_in_the_middle_gets_nothing_and_no_part_stays(clouds: Clouds) -> None:
    keys = clouds.film()
    request_id = clouds.reels.request()

    def cancel() -> None:
        clouds.reels.ledger.cancel(request_id, clouds.reels.site.study_admin)
        time.sleep(1.5)  # longer than a heartbeat

    clouds.detour.fault("act", keys[3], act=cancel)
    assert not clouds.reels.run(request_id=request_id).success
    assert clouds.reels.row(request_id).status == RequestStatus.CANCELLED
    assert clouds.visible() == {}


def test_a_worker_that_lost_its_lease_shows_nothing(clouds: Clouds) -> None:
    keys = clouds.film()
    request_id = clouds.reels.request()

    def lose() -> None:
        services = clouds.reels.services
        assert give_up(clouds.reels.end_leases, lambda: reconcile_archives(services).waiting) == (request_id,)
        lost.append(request_id)

    lost: list[int] = []  # an error in `lose` would end in the server that runs it
    clouds.detour.fault("act", keys[4], act=lose)
    run = clouds.reels.run(request_id=request_id)
    assert lost == [request_id]
    assert not run.success
    assert clouds.visible() == {}
    assert clouds.reels.row(request_id).status == RequestStatus.QUEUED
    clouds.reels.run(request_id=request_id)
    clouds.check(clouds.reels.row(request_id))


@pytest.mark.parametrize("where", ["read", "send", "join"])
def test_killed_in_the_middle_nothing_is_seen_and_the_next_attempt_succeeds(clouds: Clouds, where: str) -> None:
    keys = clouds.film()
    request_id = clouds.reels.request()
    clouds.reels.engine.dispose()
    pids: list[int] = []

    def worker() -> None:
        clouds.reels.engine.dispose(close=False)  # connections of the parent are not ours to use
        clouds.reels.videos_bucket = S3VideoBucket(clouds.bucket, clouds.s3.access(endpoint=clouds.detour.url))
        clouds.reels.archives_bucket = GcsArchiveBucket(BUCKET, GcsAccess(endpoint=clouds.gcs.url, patience=2))
        del clouds.reels.services
        clouds.reels.run(request_id=request_id)

    process = multiprocessing.get_context("fork").Process(target=worker)

    def kill() -> None:
        os.kill(pids[0], signal.SIGKILL)

    if where == "read":
        clouds.detour.fault("act", keys[4], act=kill)
    else:
        answer, count = clouds.gcs.answer, iter(range(1000))

        def answer_or_kill(request: object, **options: object) -> object:
            path = request.path  # ty: ignore[unresolved-attribute]
            if ("/compose" in path) if where == "join" else ("/upload/" in path and next(count) == 3):
                kill()
            return answer(request, **options)  # ty: ignore[invalid-argument-type]

        clouds.gcs.answer = answer_or_kill  # ty: ignore[invalid-assignment]
    process.start()
    pids.append(process.pid or 0)
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    if where != "read":
        clouds.gcs.answer = answer  # ty: ignore[invalid-assignment]
    time.sleep(0.2)
    for key, contents in clouds.visible().items():
        if key.endswith(".zip"):  # killed behind the last request, which was carried out
            assert where == "join"
            assert opened(contents)[0] == clouds.reels.written

    assert reconcile_archives(clouds.reels.services).waiting == (), "a lease that has not ended is not touched"
    clouds.reels.end_leases()
    done = reconcile_archives(clouds.reels.services)
    assert done.waiting == (request_id,)
    assert not [key for key in clouds.visible() if key.startswith(".parts/")]
    run = clouds.reels.run(request_id=request_id)
    clouds.check(clouds.reels.row(request_id))
    assert metadata_of(run, "claim")["attempt"] == 2
    assert reconcile_archives(clouds.reels.services).parts_removed == 0


def test_orphans_are_removed_and_parts_of_a_running_archive_are_not(clouds: Clouds) -> None:
    keys = clouds.film()
    clouds.gcs.insert(BUCKET, ".parts/77-1/000001", b"of a worker that died long ago")
    removed: list[int] = []
    clouds.detour.fault(
        "act", keys[4], act=lambda: removed.append(reconcile_archives(clouds.reels.services).parts_removed)
    )
    request = clouds.reels.archive()
    clouds.check(request)
    assert removed == [1], "what no claim makes, and nothing of the archive that is being made"


def test_two_at_once_make_one_archive(clouds: Clouds) -> None:
    """Another person's worker finishes the same archive while this one is at it."""
    keys = clouds.film()
    reels = clouds.reels
    second = Reels(reels.root / "second", reels.site, reels.engine, {}, reels.videos_bucket, reels.archives_bucket)
    other = reels.ledger.request(reels.site.study_id, reels.site.superuser, ArchiveKind.ALL)
    clouds.detour.fault("act", keys[4], act=lambda: second.run(request_id=other))
    mine = reels.archive()
    clouds.check(mine)
    clouds.check(reels.row(other))
    second.close()
