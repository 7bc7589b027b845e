"""The pruning removes what nobody needs any more, a day after it was last needed, and nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lookit_ops.deployments.commit_point import fence
from lookit_ops.deployments.manifest import history, live_deployment
from lookit_ops.deployments.prune import prune
from lookit_ops.deployments.rollback import restorable, rollback
from lookit_ops.storage.errors import StorageError
from tests.support import bundles
from tests.support.bundles import FOLDER, PREFIX, assert_live, deploy
from tests.support.faulty_bucket import FaultyBucket, backdated

HOUR = timedelta(hours=1)
LATER = timedelta(hours=25)
OTHER = {"content_type": "application/json", "cache_control": "no-cache"}


@pytest.fixture
def bundle_of(tmp_path: Path):
    """Makes the bundle of a version."""
    return lambda version, **options: bundles.bundle_of(tmp_path / f"dist-{version}", version, **options)


def clean(bucket, after: timedelta = LATER, **options):
    settings = {"keep": 2, "now": datetime.now(UTC) + after, "in_use": lambda _folder: False, **options}
    return prune(bucket, **settings)


def keys(bucket) -> set[str]:
    return {file.key for file in bucket.files()}


@pytest.fixture
def four(bucket, bundle_of):
    """Four deployments, r1 to r4."""
    made = [bundle_of(str(number)) for number in (1, 2, 3, 4)]
    for token, bundle in enumerate(made, 1):
        deploy(bucket, bundle, token)
    return made


class TestWhatGoes:
    def test_what_only_dropped_deployments_name(self, bucket, four):
        before = keys(bucket)
        done = clean(bucket)
        assert_live(bucket, four[3])
        gone = before - keys(bucket)
        assert {file.key for file in done.removed} == gone
        for bundle, version in ((four[0], 1), (four[1], 2)):
            own = {
                f"{FOLDER}/{file.path}"
                for file in bundle.files
                if file.fingerprinted and "vendor" not in str(file.path)
            }
            assert own <= gone
            assert {key for key in before if f"/r{version}-{version}/" in key} <= gone
            assert f"{FOLDER}/only-{version}.txt" in gone
        assert not any("r3-3" in key or "r4-4" in key or "vendor" in key for key in gone)
        assert done.freed_bytes == sum(file.size_bytes for file in done.removed) > 0
        assert (done.failed, done.left_alone) == ({}, {})

    def test_what_is_kept_can_be_rolled_back_to(self, bucket, four):
        clean(bucket)
        assert [found.manifest.request_id for found in restorable(bucket, FOLDER, 2)] == ["r3"]
        seen = live_deployment(bucket, FOLDER).generation
        rollback(
            bucket, FOLDER, request_id=None, fencing_token=5, seen_generation=seen, before_commit=lambda: None, keep=2
        )
        assert_live(bucket, four[2])

    def test_again_there_is_nothing_to_do(self, bucket, four):
        assert clean(bucket).removed
        assert clean(bucket).removed == ()

    def test_a_dry_run_tells_the_same_and_removes_nothing(self, bucket, four):
        before = keys(bucket)
        told = clean(bucket, dry_run=True)
        assert keys(bucket) == before
        done = clean(bucket)
        assert [file.key for file in told.removed] == [file.key for file in done.removed]
        assert told.freed_bytes == done.freed_bytes

    def test_what_a_failed_build_left(self, bucket, four, bundle_of):
        def lost() -> None:
            raise PermissionError

        with pytest.raises(PermissionError):
            deploy(bucket, bundle_of("5"), 5, before_commit=lost)
        left = {key for key in keys(bucket) if "/r5-5/" in key or "only-5" in key}
        assert left
        assert clean(bucket, keep=4, after=23 * HOUR).removed == ()
        assert {file.key for file in clean(bucket, keep=4).removed} >= left
        assert_live(bucket, four[3])

    def test_what_a_failed_first_build_left(self, bucket, bundle_of):
        faulty = FaultyBucket(bucket)
        faulty.refuse("put", "manifest")
        with pytest.raises(StorageError):
            deploy(faulty, bundle_of("1"), 1)
        assert clean(bucket, after=23 * HOUR).removed == ()
        clean(bucket)
        assert keys(bucket) == set()

    def test_after_a_rollback_files_of_the_dropped_original_stay(self, bucket, four):
        seen = live_deployment(bucket, FOLDER).generation
        rollback(bucket, FOLDER, request_id="r1", fencing_token=5, seen_generation=seen, before_commit=lambda: None)
        clean(bucket, keep=1)
        assert_live(bucket, four[0])
        (only,) = history(bucket, FOLDER)
        assert {file.key for file in only.manifest.files} <= keys(bucket)


class TestWhatStays:
    def test_a_day_counts_from_when_it_was_superseded_not_from_the_upload(self, bucket, bundle_of):
        """Old files, whose deployment was superseded just now."""
        made = [bundle_of(str(number)) for number in (1, 2)]
        deploy(bucket, made[0], 1)
        deploy(bucket, made[1], 2)
        old = backdated(bucket, timedelta(days=100))
        assert clean(old, keep=1, after=23 * HOUR).removed == ()
        assert clean(old, keep=1, after=25 * HOUR).removed != ()
        assert_live(bucket, made[1])

    def test_a_family_that_loaded_any_page_within_the_hour_gets_all_that_it_names(self, bucket, bundle_of):
        made = [bundle_of(str(number)) for number in range(1, 9)]
        pages = []
        for token, bundle in enumerate(made, 1):
            deploy(bucket, bundle, token)
            pages.append(bucket.read(f"{FOLDER}/index.html").decode())
            clean(backdated(bucket, timedelta(days=9)), keep=1, after=HOUR)
            for page in pages:
                for name in re.findall(rf'src="{PREFIX}([^"]+)"', page):
                    assert bucket.read(f"{FOLDER}/{name}")

    def test_what_was_live_before_the_oldest_that_is_known(self, bucket, bundle_of):
        """A page of before this platform: nobody can tell what it names."""
        bucket.put(f"{FOLDER}/assets/old.js", b"old", **OTHER)
        bucket.put(f"{FOLDER}/index.html", b"old", content_type="text/html", cache_control="no-cache")
        old = backdated(bucket, timedelta(days=100))
        assert "does not say" in clean(old).left_alone[FOLDER]
        deploy(bucket, bundle_of("1"), 1)
        assert clean(old, after=23 * HOUR).removed == ()
        assert [file.key for file in clean(old, after=25 * HOUR).removed] == [f"{FOLDER}/assets/old.js"]

    def test_the_files_of_a_running_build(self, bucket, four):
        asked = []

        def in_use(folder: str) -> bool:
            asked.append(folder)
            return True

        done = clean(bucket, in_use=in_use)
        assert (done.removed, done.left_alone) == ((), {FOLDER: "a build is running"})
        assert asked == [FOLDER]

    def test_a_build_that_begins_stops_the_removal(self, bucket, four):
        answers = iter([False, False, False, True])
        done = clean(bucket, in_use=lambda _folder: next(answers))
        assert len(done.removed) == 2
        assert done.left_alone == {FOLDER: "a build has begun"}
        assert_live(bucket, four[3])

    def test_a_build_that_begins_and_ends_within_one_removal_can_lose_no_other_file(self, bucket, four, bundle_of):
        """No build is that fast; but if one were, and had use for a file that is just going, it is only that one."""
        fifth = bundle_of("1")
        running = set()
        faulty = FaultyBucket(bucket)

        def build(_key: str) -> None:
            if not running:
                running.add(FOLDER)
                deploy(bucket, fifth, 5)

        faulty.before("delete", build)
        done = clean(faulty, in_use=lambda folder: folder in running)
        assert len(done.removed) == 1
        assert done.left_alone == {FOLDER: "a build has begun"}
        gone = [file.path for file in fifth.files if f"{FOLDER}/{file.path}" not in keys(bucket)]
        assert len(gone) <= 1
        deploy(bucket, fifth, 6)
        assert_live(bucket, fifth)

    def test_what_is_none_of_a_studys(self, bucket, four):
        bucket.claim_environment("staging")
        others = ["discoverable_studies.json", "experiments/readme.txt", "elsewhere/a/b.js", "robots.txt"]
        for key in others:
            bucket.put(key, b"{}", **OTHER)
        clean(bucket, after=timedelta(days=1000))
        assert set(others) <= keys(bucket)
        bucket.claim_environment("staging")

    def test_a_folder_whose_live_manifest_is_gone(self, bucket, four):
        bucket.delete(live_deployment(bucket, FOLDER).manifest_key)
        before = keys(bucket)
        done = clean(bucket, after=timedelta(days=1000))
        assert "manifest" in done.failed[FOLDER]
        assert keys(bucket) == before

    def test_a_folder_with_deployments_whose_page_somebody_deleted(self, bucket, four):
        bucket.delete(f"{FOLDER}/index.html")
        before = keys(bucket)
        assert "no index.html" in clean(bucket, after=timedelta(days=1000)).left_alone[FOLDER]
        fence(bucket, FOLDER, "r9", 9)
        assert "no index.html" in clean(bucket, after=timedelta(days=1000)).left_alone[FOLDER]
        assert before <= keys(bucket)


class TestFailures:
    def test_one_file_that_cannot_be_removed_stops_no_other(self, bucket, four):
        faulty = FaultyBucket(bucket)
        faulty.refuse("delete", "only-1")
        done = clean(faulty)
        assert len(done.failed) == 2
        assert all(key.endswith("/only-1.txt") for key in done.failed)
        assert {file.key for file in clean(bucket).removed} == set(done.failed)
        assert len(done.removed) > 5

    def test_one_folder_that_cannot_be_read_stops_no_other(self, bucket, four):
        first = "experiments/00000000-0000-4000-8000-000000000000"
        bucket.put(f"{first}/.deployments/r1-1/files/a.js", b"x", **OTHER)
        faulty = FaultyBucket(bucket)
        faulty.refuse("page", first)
        done = clean(faulty)
        assert list(done.failed) == [first]
        assert done.removed

    def test_who_is_asked_what_is_in_use_may_fail(self, bucket, four):
        def in_use(_folder: str) -> bool:
            raise ConnectionError("the database is away")

        done = clean(bucket, in_use=in_use)
        assert (done.removed, done.failed) == ((), {FOLDER: "the database is away"})

    def test_a_listing_that_fails_is_told(self, bucket, four):
        faulty = FaultyBucket(bucket)
        faulty.refuse("files", "preview")
        done = clean(faulty)
        assert list(done.failed) == ["preview_experiments"]
        assert done.removed

    def test_a_cleanup_that_is_killed_leaves_no_gap_in_the_history(self, bucket, four):
        for number in range(1, 30):
            faulty = FaultyBucket(bucket)
            deleted = []

            def die(key: str, deleted: list[str] = deleted, number: int = number) -> None:
                deleted.append(key)
                if len(deleted) == number:
                    raise KeyboardInterrupt

            faulty.before("delete", die)
            try:
                clean(faulty)
            except KeyboardInterrupt:
                assert_live(bucket, four[3])
                requests = [found.manifest.request_id for found in history(bucket, FOLDER)]
                assert requests == ["r4", "r3", "r2", "r1"][: len(requests)]
                assert len(requests) >= 2
            else:
                break
        assert clean(bucket).removed == ()

    @pytest.mark.parametrize("wrong", [{"keep": 0}, {"now": datetime(2026, 1, 1)}])  # noqa: DTZ001
    def test_what_cannot_be_meant_is_refused(self, bucket, wrong):
        with pytest.raises(ValueError, match=r"keep|time zone"):
            clean(bucket, **wrong)
