"""`lookit-ops videos`: zip, link, list and catalogue, as a person at a terminal meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from sqlalchemy import update

from domain.models import ArchiveKind, Video
from domain.requests.archives import ArchiveLedger
from domain.requests.failure import Failure
from tests.integration.cli.conftest import Shown
from tests.support.footage import Footage
from tests.support.reels import opened
from tests.support.site import Site

ADMIN, STRANGER = "study_admin@example.org", "stranger@example.org"
Run = Callable[..., Shown]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def key(site: Site, home: Path) -> str:
    """A video of an accepted response, in the database and in the folder."""
    footage = Footage(site)
    key = footage.video(footage.response("accepted"))
    folder = home / "videos" / "development"
    folder.mkdir(parents=True)
    (folder / key).write_bytes(b"moving pictures")
    return key


def test_zip_asks_and_list_shows_it(key: str, run: Run) -> None:
    assert (
        "Archive request 1: all videos of Apples and oranges is queued, at place 1."
        in run("videos", "zip", "Apples and oranges", "--as", ADMIN, "--kind", "all").out
    )
    (row,) = json.loads(run("videos", "list", "--json").out)
    assert (row["status"], row["kind"], row["requested_by"]) == ("queued", "all", ADMIN)
    assert "queued (place 1)" in run("videos", "list").out


def test_zip_that_waits_prints_a_link_to_the_archive(key: str, run: Run, home: Path) -> None:
    shown = run("videos", "zip", "Apples and oranges", "--as", ADMIN, "--kind", "all", "--wait")
    assert shown.status == 0, shown.err
    link = urlsplit(shown.out.split()[-1])
    assert link.netloc == "localhost:8003"
    archive = home / "archives" / "development" / unquote(link.path[1:])
    assert opened(archive.read_bytes())[0] == {key: b"moving pictures"}
    listed = run("videos", "list").out
    assert listed.splitlines()[0].strip() == "1 archive request"
    assert "1 video, " in listed
    again = json.loads(run("videos", "link", "1", "--as", ADMIN, "--json").out)
    assert (again["minutes"], again["bytes"]) == (30, archive.stat().st_size)


def test_what_is_tried_again_says_for_which_attempt_it_waits(key: str, site: Site, run: Run) -> None:
    run("videos", "zip", "Apples and oranges", "--as", ADMIN, "--kind", "all")
    ledger = ArchiveLedger(site.sessions)
    ledger.retry(ledger.claim(1, "a run", timedelta(minutes=1)), Failure("stream", "storage_error", "away"), {})
    listed = run("videos", "list").out
    assert "(place 1, attempt 2 from" in listed
    assert "away" in listed


def test_a_link_is_refused_to_others_and_when_the_archive_is_gone(key: str, run: Run, home: Path) -> None:
    run("videos", "zip", "Apples and oranges", "--as", ADMIN, "--kind", "all", "--wait")
    refused = run("videos", "link", "1", "--as", STRANGER)
    assert (refused.status, refused.out) == (1, "")
    assert "lacks studies.view_study_responses" in refused.err
    for archive in (home / "archives" / "development").glob("*/*.zip"):
        archive.unlink()
    gone = run("videos", "link", "1", "--as", ADMIN)
    assert gone.status == 1
    assert "ask for it again with `lookit-ops videos zip" in gone.err


def test_who_waits_for_an_archive_reads_no_warnings(key: str, run: Run, home: Path) -> None:
    """In a process of its own: a test's would have shown them before, or swallowed them."""
    command = [str(Path(sys.executable).with_name("lookit-ops")), "videos", "zip", "Apples and oranges"]
    done = subprocess.run(
        [*command, "--as", ADMIN, "--kind", "all", "--wait"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "for the next 30 minutes" in done.stdout


def test_what_waits_and_fails_says_why(key: str, run: Run, home: Path) -> None:
    (home / "videos" / "development" / key).unlink()
    shown = run("videos", "zip", "Apples and oranges", "--as", ADMIN, "--kind", "all", "--wait")
    assert shown.status == 1
    assert "none of the 1 videos" in shown.err
    assert run("videos", "zip", "Apples and oranges", "--as", STRANGER).status == 1


def test_with_all_places_taken_it_says_so_and_goes_on_waiting(
    key: str, site: Site, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKIT_ARCHIVES_AT_ONCE", "1")
    ledger = ArchiveLedger(site.sessions)
    busy = ledger.request(site.study_id, site.superuser, ArchiveKind.ALL)
    ledger.claim(busy, "a run", timedelta(minutes=5))
    shown = run("videos", "zip", "Apples and oranges", "--as", ADMIN, "--kind", "all", "--wait")
    assert shown.status == 1
    assert "archive request 2 waits, at place 1 of the queue" in " ".join(shown.err.split())
    assert json.loads(run("videos", "list", "--json").out)[0]["status"] == "queued"


def test_a_request_is_cancelled_by_who_may(key: str, run: Run) -> None:
    run("videos", "zip", "Apples and oranges", "--as", ADMIN, "--kind", "all")
    refused = run("videos", "cancel", "1", "--as", STRANGER)
    assert (refused.status, refused.out) == (1, "")
    assert run("videos", "cancel", "1", "--as", ADMIN).out == "Archive request 1 is cancelled.\n"
    (row,) = json.loads(run("videos", "list", "--json").out)
    assert (row["status"], row["error_code"]) == ("cancelled", "cancelled")
    assert "already ended" in run("videos", "cancel", "1", "--as", ADMIN).err


def test_the_catalogue_tells_what_is_new_and_what_has_no_row(key: str, site: Site, run: Run, home: Path) -> None:
    footage = Footage(site)
    folder = home / "videos" / "development"
    new = footage.key(footage.response("pending"))
    for name in (new, "holiday.mp4"):
        (folder / name).write_bytes(b"x")
    shown = run("videos", "catalogue")
    assert "3 objects" in shown.out
    assert "1 videos are new" in shown.out
    assert "holiday.mp4" in shown.out
    assert set(footage.videos()) == {key, new}
    report = json.loads(run("videos", "catalogue", "--study", "Apples and oranges", "--json").out)
    assert (report["listed"], report["added"]) == (2, 0)


def test_the_catalogue_names_buckets_that_are_not_read(key: str, site: Site, run: Run, home: Path) -> None:
    with site.sessions.begin() as session:
        session.execute(update(Video).values(bucket="s3://closed"))
    (home / "videos" / "development" / key).unlink()
    shown = run("videos", "catalogue")
    assert (shown.status, shown.err) == (0, "")
    assert "its bucket is not read" in shown.out
    assert "s3://closed" in shown.out


def test_an_implausible_listing_changes_nothing(site: Site, run: Run, home: Path) -> None:
    footage = Footage(site)
    footage.many(4, 2)
    shown = run("videos", "catalogue")
    assert shown.status == 1
    assert "8 of 8 videos of the catalogue are not in the listing" in shown.err
    assert all(video.gone_at is None for video in footage.videos().values())
    assert run("videos", "catalogue", "--plausible-share", "1").status == 0
    assert all(video.gone_at for video in footage.videos().values())
