"""The cleanups of this machine: what is old goes, what a build uses stays whatever its age, nothing else is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import unittest.mock
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import insert, select

from domain.db import database_now
from domain.errors import InvalidRequest
from domain.models import ArchiveContent, ArchiveKind, ArchiveRequest, BuildKind, State
from domain.requests.build_claim import BuildClaim
from domain.requests.failure import Failure
from ember_build.builder import Removed
from ember_build.removal import REMOVED, Removal
from lookit_ops.assets.disk import build_disk_usage, room_check
from lookit_ops.jobs.cleanups import cleanup_jobs
from lookit_ops.maintenance.cleanup import CLEANUPS, Cleanup, clean_builds
from lookit_ops.runs.in_use import output_folder
from lookit_ops.schedules import CLEANUPS_AT
from lookit_ops.storage.local.archives import LocalArchiveBucket
from tests.support.footage import Footage
from tests.support.workshop import Workshop, player

BY_NAME = {cleanup.name: cleanup for cleanup in CLEANUPS}
HOUR = 3600.0
CHATTR = shutil.which("chattr") or "/usr/bin/chattr"
FIRST, SECOND = player("1.0").sha, player("2.0").sha


def aged(path: Path, hours: float) -> None:
    """Set the time of change of a file, a folder or a link."""
    then = time.time() - hours * HOUR
    os.utime(path, (then, then), follow_symlinks=False)


def made(folder: Path, name: str, hours: float) -> Path:
    """A folder with some files, that old."""
    path = folder / name
    (path / "assets").mkdir(parents=True)
    (path / "assets" / "a.js").write_bytes(b"x" * 5000)
    aged(path, hours)
    return path


@contextmanager
def undeletable(file: Path) -> Iterator[None]:
    """A file that not even root can remove."""
    if os.geteuid():
        file.parent.chmod(0o555)
    elif subprocess.run([CHATTR, "+i", file], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no files that cannot be removed")
    try:
        yield
    finally:
        if os.geteuid():
            file.parent.chmod(0o755)
        else:
            for found in file.parents[2].rglob(file.name):
                subprocess.run([CHATTR, "-i", found], check=True)


def outputs(workshop: Workshop) -> Path:
    folder = workshop.services.settings.home_folder / "ember_build" / "deployments"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def checkouts(workshop: Workshop) -> Path:
    folder = workshop.services.checkouts.root / "lookit__player"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def running(workshop: Workshop, sha: str | None = None) -> BuildClaim:
    """A build that is claimed, and has noted its commit if one is given."""
    claim = workshop.ledger.claim(workshop.request(), "a run", timedelta(hours=1))
    if sha:
        workshop.ledger.note_commit(claim, repository="lookit/player", sha=sha, reason="It was asked for.")
    return claim


def clean(workshop: Workshop, cleanup: str, hours: float = 24, **how: Any) -> Removal:
    return BY_NAME[cleanup].run(workshop.services, timedelta(hours=hours), **how)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- builds


def test_of_hundreds_of_bundles_the_old_ones_go_and_a_running_builds_stays(workshop: Workshop) -> None:
    folder, mine = outputs(workshop), output_folder(running(workshop))
    old = {made(folder, f"old-{n}", 25 + n).name for n in range(200)}
    new = {made(folder, f"new-{n}", 23 - n / 10).name for n in range(200)}
    for name in (mine, f".{mine}.a1b2c3"):
        made(folder, name, 300)
    planned = clean(workshop, "builds", dry_run=True)
    assert names_in(folder) == old | new | {mine, f".{mine}.a1b2c3"}
    done = clean(workshop, "builds")
    assert names_in(folder) == new | {mine, f".{mine}.a1b2c3"}
    assert sorted(planned.removed) == sorted(done.removed)
    assert {Path(name).name for name in done.removed} == old
    assert planned.freed_bytes == done.freed_bytes >= 200 * 5000
    assert (done.in_use, done.failed) == (2, {})


def test_a_file_that_cannot_be_removed_is_told_and_stops_nothing(workshop: Workshop) -> None:
    folder = outputs(workshop)
    for n in range(5):
        made(folder, f"old-{n}", 48)
    with undeletable(folder / "old-2" / "assets" / "a.js"):
        done = clean(workshop, "builds")
        assert [Path(name).name for name in done.removed] == ["old-0", "old-1", "old-3", "old-4"]
        assert [Path(name).name for name in done.failed] == ["old-2"]
        (rest,) = names_in(folder)
        assert rest == "old-2" or rest.startswith(REMOVED)
    aged(folder / rest, 48)
    assert len(clean(workshop, "builds").removed) == 1
    assert names_in(folder) == set()


def test_links_are_removed_and_never_followed(workshop: Workshop, tmp_path: Path) -> None:
    folder, elsewhere = outputs(workshop), made(tmp_path, "elsewhere", 100)
    (folder / "to-root").symlink_to("/")
    (folder / "to-elsewhere").symlink_to(elsewhere)
    within = made(folder, "with-links", 48)
    (within / "root").symlink_to("/")
    (within / "elsewhere").symlink_to(elsewhere)
    for name in ("to-root", "to-elsewhere", "with-links"):
        aged(folder / name, 48)
    done = clean(workshop, "builds")
    assert len(done.removed) == 3
    assert names_in(folder) == set()
    assert (elsewhere / "assets" / "a.js").exists()
    assert done.freed_bytes < 1_000_000, "what a link leads to does not count"


# --- checkouts


def test_of_hundreds_of_checkouts_those_stay_that_are_new_or_wanted(workshop: Workshop) -> None:
    folder = checkouts(workshop)
    shas = [f"{n:040x}" for n in range(300)]
    for n, sha in enumerate(shas):
        made(folder, sha, 48 if n % 3 else 2)
        (folder / f"{sha}.json").write_text("{}")
        aged(folder / f"{sha}.json", 48 if n % 3 else 2)
    for sha in (FIRST, SECOND):
        made(folder, sha, 48)
    running(workshop, FIRST)
    workshop.site.set_metadata(last_known_player_sha=SECOND)
    workshop.ledger.request(workshop.site.study_id, workshop.site.study_admin, BuildKind.PREVIEW)
    planned = clean(workshop, "checkouts", dry_run=True)
    done = clean(workshop, "checkouts")
    assert sorted(planned.removed) == sorted(done.removed)
    kept = {sha for n, sha in enumerate(shas) if n % 3 == 0}
    assert names_in(folder) == {FIRST, SECOND} | kept | {f"{sha}.json" for sha in kept}
    assert done.in_use == 2


def test_a_checkout_of_a_build_that_has_just_fetched_it_stays_and_a_build_after_the_cleanup_fetches_anew(
    workshop: Workshop,
) -> None:
    assert workshop.build().success
    (source,) = [path for path in checkouts(workshop).iterdir() if path.is_dir()]
    aged(source, 48)
    assert workshop.build().success
    assert clean(workshop, "checkouts").removed == []  # fetching it again made it young
    for path in checkouts(workshop).iterdir():
        aged(path, 48)
    assert len(clean(workshop, "checkouts").removed) == 2
    assert workshop.build().success


def test_downloads_that_were_broken_off_go_when_they_are_old(workshop: Workshop) -> None:
    root = checkouts(workshop).parent
    made(root, ".incoming-old", 48)
    made(root, ".incoming-new", 0)
    (root / "a-link").symlink_to("/")
    aged(root / "a-link", 48)
    clean(workshop, "checkouts")
    assert names_in(root) - {".locks"} == {".incoming-new", "lookit__player"}


# --- dependencies


def test_dependencies_of_the_local_builder_go_by_their_last_use(workshop: Workshop) -> None:
    folder = workshop.services.settings.home_folder / "ember_build" / "dependencies"
    made(folder, "old", 15 * 24)
    made(folder, "new", 13 * 24)
    assert [Path(name).name for name in BY_NAME["dependencies"].run(workshop.services).removed] == ["old"]


# --- as jobs


@pytest.mark.parametrize("hours", [0, 0.5, -1, 1e9, float("inf")])
@pytest.mark.parametrize("cleanup", CLEANUPS, ids=lambda cleanup: cleanup.name)
def test_an_age_that_could_hit_a_running_build_is_refused(workshop: Workshop, cleanup: Cleanup, hours: float) -> None:
    with pytest.raises(InvalidRequest, match="1 or more"):
        cleanup.run(workshop.services, timedelta.max if hours > 1e6 else timedelta(hours=hours))


def run(workshop: Workshop, job: str, **config: Any) -> dg.ExecuteInProcessResult:
    resources = {"services": dg.ResourceDefinition.hardcoded_resource(workshop.services)}
    definitions = dg.Definitions(jobs=[cleanup_jobs[job]], resources=resources)
    return definitions.resolve_job_def(f"cleanup_{job}").execute_in_process(
        run_config={
            "ops": {f"clean_{job}": {"config": config}},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        instance=workshop.instance,
        raise_on_error=False,
    )


def test_a_run_reports_numbers_that_can_be_plotted(workshop: Workshop) -> None:
    made(outputs(workshop), "old", 48)
    assert run(workshop, "builds", dry_run=True).success
    assert workshop.instance.get_latest_materialization_event(dg.AssetKey("cleanup_of_builds")) is None
    assert run(workshop, "builds").success
    event = workshop.instance.get_latest_materialization_event(dg.AssetKey("cleanup_of_builds"))
    assert event is not None
    assert event.asset_materialization is not None
    told = event.asset_materialization.metadata
    assert told["removed"].value == 1
    assert isinstance(told["freed MB"].value, float)
    assert (told["kept, being in use"].value, told["failures"].value) == (0, 0)


def test_a_run_that_could_not_remove_something_fails_and_still_reports(workshop: Workshop) -> None:
    folder = outputs(workshop)
    made(folder, "old", 48)
    made(folder, "stuck", 48)
    with undeletable(folder / "stuck" / "assets" / "a.js"):
        assert not run(workshop, "builds").success
    event = workshop.instance.get_latest_materialization_event(dg.AssetKey("cleanup_of_builds"))
    assert event is not None
    assert event.asset_materialization is not None
    told = event.asset_materialization.metadata
    assert (told["removed"].value, told["failures"].value) == (1, 1)


def test_an_age_that_is_refused_fails_the_run_with_the_reason(workshop: Workshop) -> None:
    assert not run(workshop, "checkouts", older_than_hours=0.1).success


# --- room


def test_the_usage_is_told_in_numbers_with_a_check(workshop: Workshop) -> None:
    (made(outputs(workshop), "one", 1) / "large").write_bytes(b"x" * 2_000_000)
    result = dg.materialize(
        [build_disk_usage],
        instance=workshop.instance,
        resources={"services": dg.ResourceDefinition.hardcoded_resource(workshop.services)},
    )
    (event,) = result.asset_materializations_for_node("build_disk_usage")
    assert float(str(event.metadata["home: deployments MB"].value)) > 0
    assert int(str(event.metadata["home: free MB"].value)) > 0
    (checked,) = result.get_asset_check_evaluations()
    assert checked.passed


@pytest.mark.parametrize(
    ("free", "passed", "severity"),
    [(10_000, True, "WARN"), (9_999, False, "WARN"), (5_000, False, "WARN"), (4_999, False, "ERROR")],
)
def test_the_check_warns_while_builds_still_start_and_fails_when_none_does(
    free: int, passed: bool, severity: str
) -> None:
    checked = room_check({"home: free MB": 90_000, "engine: free MB": free, "engine: images MB": 1}, 5_000)
    assert (checked.passed, checked.severity.value) == (passed, severity)
    assert "engine has" in str(checked.description)


def test_a_build_without_room_fails_as_ours_and_says_what_is_missing(workshop: Workshop) -> None:
    workshop.settings["free_disk_mb"] = 10**9
    workshop.site.set_state(State.APPROVED)
    request_id = workshop.request()
    workshop.run(request_id=request_id)
    request = workshop.site.request(request_id)
    assert request.error_code == "platform_error" or request.status == "queued"
    assert "MB are missing" in str(request.error)
    assert workshop.site.study().state == State.APPROVED


def put_archive(workshop: Workshop, key: str, hours: float) -> None:
    """An archive of three bytes in the bucket, that old."""
    bucket = workshop.services.archives
    part = bucket.put_part(f".parts/1-1/{key}", iter([b"zip"]), 3)
    bucket.compose(key, [part], ".parts/1-1")
    aged(workshop.services.settings.local_archives / key, hours)


def archive_request(workshop: Workshop, key: str, ended: timedelta = timedelta()) -> int:
    """A request that ended so long ago, with an archive of one video; returns its id."""
    asked = {"study_id": workshop.site.study_id, "requested_by_id": workshop.site.study_admin, "kind": "all"}
    made_by = {"archive_key": key, "archive_bytes": 3, "video_count": 1, "missing_count": 0, "excluded_count": 0}
    end = {"status": "succeeded", "finished_at": database_now(-ended), "holds_families": True, "holds_previews": False}
    row = insert(ArchiveRequest).values(**asked, **made_by, **end).returning(ArchiveRequest.id)
    with workshop.site.sessions.begin() as session:
        request_id = session.scalars(row).one()
        session.add(ArchiveContent(archive_request_id=request_id, video_id=1, response_id=1, object_key="v.mp4"))
    return request_id


def old_archives_left(workshop: Workshop) -> list[str]:
    return [file.key for file in workshop.services.archives.files() if not file.key.startswith(".")]


def test_old_archives_go_but_not_those_that_somebody_asked_for_lately(workshop: Workshop) -> None:
    for name, hours in (("old", 24 * 31), ("old-and-wanted", 24 * 31), ("new", 0)):
        put_archive(workshop, f"u/{name}.zip", hours)
    archive_request(workshop, "u/old-and-wanted.zip")
    planned = BY_NAME["archives"].run(workshop.services, dry_run=True)
    done = BY_NAME["archives"].run(workshop.services)
    assert planned.removed == done.removed == ["u/old.zip"]
    assert (done.in_use, done.freed_bytes) == (1, 3)
    assert old_archives_left(workshop) == ["u/new.zip", "u/old-and-wanted.zip"]


def test_an_archive_that_is_asked_for_while_others_are_deleted_stays(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        put_archive(workshop, f"u/{name}.zip", 24 * 31)
    delete = LocalArchiveBucket.delete

    def delete_slowly(bucket: LocalArchiveBucket, key: str) -> None:
        delete(bucket, key)
        archive_request(workshop, "u/b.zip")

    monkeypatch.setattr(LocalArchiveBucket, "delete", delete_slowly)
    done = BY_NAME["archives"].run(workshop.services)
    assert (done.removed, done.in_use) == (["u/a.zip"], 1)
    assert old_archives_left(workshop) == ["u/b.zip"]


def test_archives_of_a_study_stay_while_one_of_it_is_being_made(workshop: Workshop) -> None:
    """The worker may have found one by its name; its request says which only when it ends."""
    site, ledger = workshop.site, workshop.services.archive_ledger
    mine, other = site.study().uuid, site.study(site.another_study("Other")).uuid
    for study_uuid in (mine, other):
        put_archive(workshop, f"{study_uuid}/{study_uuid}_d_all.zip", 24 * 31)
    footage = Footage(site)
    footage.video(footage.response("accepted"))
    request_id = ledger.request(site.study_id, site.study_admin, ArchiveKind.ALL)
    claim = ledger.claim(request_id, "run-1", timedelta(minutes=1))
    done = BY_NAME["archives"].run(workshop.services)
    assert (done.removed, done.in_use) == ([f"{other}/{other}_d_all.zip"], 1)
    ledger.fail(claim, Failure("stream", "storage_error", "no answer"), {})
    assert BY_NAME["archives"].run(workshop.services).removed == [f"{mine}/{mine}_d_all.zip"]


def test_what_was_in_an_archive_is_forgotten_once_it_is_away_for_a_day(workshop: Workshop) -> None:
    put_archive(workshop, "u/old.zip", 24 * 31)
    put_archive(workshop, "u/kept.zip", 24)
    day = timedelta(days=1)
    archive_request(workshop, "u/old.zip", 31 * day)
    archive_request(workshop, "u/removed-by-hand.zip", 2 * day)
    kept = {archive_request(workshop, "u/kept.zip", 2 * day), archive_request(workshop, "u/just-made.zip")}
    for dry_run in (True, False):
        with workshop.site.sessions.begin() as session:
            assert len(session.scalars(select(ArchiveContent)).all()) == 4
        BY_NAME["archives"].run(workshop.services, dry_run=dry_run)
    with workshop.site.sessions.begin() as session:
        assert set(session.scalars(select(ArchiveContent.archive_request_id))) == kept


def test_the_nightly_cleanup_removes_what_dead_builds_left_on_the_engine(workshop: Workshop) -> None:
    removed = []
    with unittest.mock.patch.object(
        workshop.services.builder, "remove_orphans", lambda is_running: removed.append(is_running) or Removed()
    ):
        clean_builds(workshop.services, datetime.now(UTC), dry_run=True)
        assert removed == []
        clean_builds(workshop.services, datetime.now(UTC), dry_run=False)
    (is_running,) = removed
    claim = workshop.ledger.claim(workshop.request(), "a run", timedelta(minutes=5))
    assert is_running({"request": str(claim.request_id), "claim": str(claim.fencing_token)})
    assert not is_running({"request": str(claim.request_id), "claim": "77"})


def test_each_cleanup_has_its_time_of_the_night() -> None:
    assert list(CLEANUPS_AT) == [cleanup.name for cleanup in CLEANUPS]
