"""A real Dagster that makes archives by itself, and is killed: each request gets its one end, and no part stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg
import pytest

from domain.models import ArchiveKind, ArchiveRequest
from lookit_ops.archives.zip_format import PART_BYTES
from lookit_ops.storage.archives import PARTS
from tests.e2e.conftest import free_port
from tests.support.footage import Footage
from tests.support.live import CODE, DAEMON, Live, live
from tests.support.reels import contents_of, opened


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A Dagster that runs; each test leaves it running."""
    with live(tmp_path_factory.mktemp("archives") / "home", port=free_port()) as living:
        living.start(CODE, DAEMON)
        yield living


@dataclass(frozen=True)
class Film:
    """Two videos, each of which fills a part, and the request for an archive of them alone."""

    running: Live
    videos: dict[str, bytes]
    request_id: int

    @property
    def row(self) -> ArchiveRequest:
        with self.running.site.sessions.begin() as session:
            return session.get_one(ArchiveRequest, self.request_id)

    def wait_for(self, *statuses: str) -> ArchiveRequest:
        self.running.wait(lambda: self.row.status in statuses, 90, lambda: self.running.told_of(self.row))
        return self.row

    def visible(self) -> list[str]:
        """The archives that a link could lead to, of all films."""
        return [file.key for file in self.running.services.archives.files() if not file.key.startswith(f"{PARTS}/")]

    def parts(self) -> list[str]:
        return [file.key for file in self.running.services.archives.files(f"{PARTS}/")]

    def stray(self) -> list[str]:
        """All files of the bucket that are no archive, nor the bucket's own notes; half-written ones among them."""
        root = self.running.services.settings.local_archives
        own = {".bucket/environment", ".bucket/link-key"}
        names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        return sorted(name for name in names - own - set(self.visible()) if not name.startswith(".bucket/locks/"))

    def assert_ended_once(self, outcome: str) -> None:
        """One log, one mail to who asked, and nothing but whole archives in the bucket."""
        logs = [log for log in self.running.site.logs() if log.action == "video_archive"]
        outcomes = [log.extra["outcome"] for log in logs if log.extra["request_id"] == self.request_id]
        events = [mail.event for mail in self.running.site.mails()]
        mine = [event for event in events if event.startswith(f"archive_request:{self.request_id}:")]
        assert outcomes == [outcome]
        assert mine == [f"archive_request:{self.request_id}:{outcome}"]
        self.running.wait(lambda: self.stray() == [], 30, lambda: f"{self.stray()} stays")

    def assert_is_there(self) -> None:
        """The archive is whole, and holds exactly these videos."""
        assert self.row.archive_key in self.visible()
        path = self.running.services.settings.local_archives / (self.row.archive_key or "")
        assert opened(path.read_bytes())[0] == self.videos


def film(running: Live, name: str) -> Film:
    """Film, and ask for the archive; `name` is in the videos' names, and in no other's."""
    footage = Footage(running.site)
    response = footage.response("accepted")
    videos = {footage.video(response, f"{name}-{place}"): contents_of(place, PART_BYTES + place) for place in range(2)}
    folder = running.services.settings.local_videos
    folder.mkdir(parents=True, exist_ok=True)
    for key, contents in videos.items():
        (folder / key).write_bytes(contents)
    site = running.site
    request = running.services.archive_ledger.request(site.study_id, site.study_admin, ArchiveKind.ALL, name)
    return Film(running, videos, request)


def is_half_made(filmed: Film) -> bool:
    """Whether one part is there, and another one on its way."""
    return any(key.endswith("000000") for key in filmed.parts())


@pytest.mark.parametrize("step", ["archive claim", "archive part", "archive joined"])
def test_an_archive_whose_process_is_killed_is_made_by_the_next_attempt(running: Live, step: str) -> None:
    """Killed behind its claim, in the middle of a part while another is there, and behind the commit."""
    running.hold(step)
    filmed = film(running, f"killed-{step.replace(' ', '-')}")
    process = running.wait_until_held()
    before = filmed.visible()
    if step == "archive part":
        running.wait(lambda: is_half_made(filmed), 30, "the first part did not come")
    os.kill(process, signal.SIGKILL)
    running.let_go()
    assert filmed.visible() == before
    request = filmed.wait_for("succeeded", "failed")
    assert (request.status, request.attempt) == ("succeeded", 2), running.told_of(request)
    filmed.assert_is_there()
    filmed.assert_ended_once("succeeded")
    (log,) = [log for log in running.site.logs() if log.extra["request_id"] == request.id]
    assert log.extra["was_there"] == (step == "archive joined"), "what was joined is found, and not made again"
    assert [failed["code"] for failed in request.failed_attempts] == ["worker_died"]


@pytest.mark.parametrize("how", ["command", "Dagster"])
def test_an_archive_that_is_cancelled_in_the_middle_ends_within_seconds(running: Live, how: str) -> None:
    running.hold("archive part")
    filmed = film(running, f"cancelled-by-{how}")
    running.wait_until_held()
    running.wait(lambda: is_half_made(filmed), 30, "the first part did not come")
    before, lease = filmed.visible(), filmed.row.lease_expires_at
    (run,) = running.runs_of(filmed.request_id)
    if how == "command":
        running.services.archive_ledger.cancel(filmed.request_id, running.site.study_admin)
        running.wait(lambda: filmed.row.lease_expires_at != lease, 30, "no heartbeat")
    else:
        running.terminate(run.run_id)
    running.let_go()
    seconds = running.wait(lambda: filmed.row.status == "cancelled", 30, lambda: running.told_of(filmed.row))
    assert seconds < 15
    filmed.assert_ended_once("cancelled")
    assert filmed.visible() == before
    (log,) = [log for log in running.site.logs() if log.extra["request_id"] == filmed.request_id]
    assert log.extra["cancelled_by"] == ("Study Admin" if how == "command" else "an operator, in Dagster")
    if how == "Dagster":
        running.wait(lambda: running.run_status(run.run_id) == dg.DagsterRunStatus.CANCELED, 30, "the run goes on")
