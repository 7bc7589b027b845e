"""An earlier deployment comes back whole or not at all, and the deployments tell their own history."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from lookit_ops.deployments.commit_point import fence, finish_public_files
from lookit_ops.deployments.manifest import history, kept_of, live_deployment
from lookit_ops.deployments.rollback import NotRestorable, choose, restorable, rollback
from lookit_ops.storage.errors import GenerationMismatch, NoAnswer, StorageError
from tests.support import bundles
from tests.support.bundles import FOLDER, assert_live, deploy
from tests.support.faulty_bucket import FaultyBucket


@pytest.fixture
def bundle_of(tmp_path: Path):
    """Makes the bundle of a version."""
    return lambda version, **options: bundles.bundle_of(tmp_path / f"dist-{version}", version, **options)


def back(bucket, token: int, to: str | None = None, **options):
    """Roll back as the caller that has got this fencing token."""
    settings = {
        "request_id": to,
        "fencing_token": token,
        "seen_generation": live_deployment(bucket, FOLDER).generation,
        "before_commit": lambda: None,
        **options,
    }
    return rollback(bucket, FOLDER, **settings)


def chain(bucket) -> list[tuple[str, int]]:
    return [(found.manifest.request_id, found.manifest.fencing_token) for found in history(bucket, FOLDER)]


@pytest.fixture
def three(bucket, bundle_of):
    """Three deployments, r1 to r3."""
    made = [bundle_of(str(number)) for number in (1, 2, 3)]
    for token, bundle in enumerate(made, 1):
        deploy(bucket, bundle, token, facts={"sha": str(token) * 40})
    return made


class TestHistory:
    def test_it_goes_from_the_live_one_to_the_first_without_gaps_in_time(self, bucket, three):
        past = history(bucket, FOLDER)
        assert [found.manifest.request_id for found in past] == ["r3", "r2", "r1"]
        assert past[0].superseded_at is None
        for newer, older in itertools.pairwise(past):
            assert older.superseded_at == newer.live_since
            assert older.live_since <= older.superseded_at

    def test_there_is_none_without_a_page_or_before_this_platform(self, bucket, bundle_of):
        assert history(bucket, FOLDER) == ()
        bucket.put(f"{FOLDER}/index.html", b"old", content_type="text/html", cache_control="no-cache")
        assert history(bucket, FOLDER) == ()
        deploy(bucket, bundle_of("1"), 1)
        (only,) = history(bucket, FOLDER)
        assert only.manifest.replaces.manifest_key == ""

    def test_what_never_became_live_is_not_in_it(self, bucket, three, bundle_of):
        def lost() -> None:
            raise PermissionError

        with pytest.raises(PermissionError):
            deploy(bucket, bundle_of("4"), 4, before_commit=lost)
        fence(bucket, FOLDER, "r4", 4)
        deploy(bucket, bundle_of("5"), 5)
        assert chain(bucket) == [("r5", 5), ("r3", 3), ("r2", 2), ("r1", 1)]

    def test_a_worker_that_publishes_twice_does_not_replace_itself(self, bucket, three):
        deploy(bucket, three[2], 3, seen_generation=1)
        assert chain(bucket) == [("r3", 3), ("r2", 2), ("r1", 1)]

    def test_going_to_and_fro_keeps_as_many_builds(self, bucket, three):
        for token in (4, 6, 8):
            back(bucket, token, "r2")
            back(bucket, token + 1, "r3")
        assert len(chain(bucket)) == 9
        assert [found.manifest.request_id for found in kept_of(history(bucket, FOLDER), 2)] == ["r3", "r2"] * 4
        assert [found.manifest.request_id for found in kept_of(history(bucket, FOLDER), 1)] == ["r3"]
        assert len(kept_of(history(bucket, FOLDER), 3)) == 9


class TestRollback:
    def test_the_one_before_comes_back_with_all_its_files(self, bucket, three):
        before = live_deployment(bucket, FOLDER)
        done = back(bucket, 4)
        assert_live(bucket, three[1])
        live = live_deployment(bucket, FOLDER)
        assert (live.request_id, live.fencing_token, live.facts) == ("r2", 4, {"sha": "2" * 40})
        assert (done.request_id, done.replaced_request_id, done.fencing_token) == ("r2", "r3", 4)
        assert done.generation == live.generation > before.generation
        assert (done.file_count, done.facts) == (len(three[1].files), {"sha": "2" * 40})
        assert chain(bucket) == [("r2", 4), ("r3", 3), ("r2", 2), ("r1", 1)]

    def test_again_goes_further_back_until_there_is_none(self, bucket, three):
        back(bucket, 4)
        back(bucket, 5)
        assert_live(bucket, three[0])
        with pytest.raises(NotRestorable, match=r"nothing older than request r1.*r3 .*r2 "):
            back(bucket, 6)
        assert_live(bucket, three[0])

    def test_a_named_one_may_be_newer(self, bucket, three):
        back(bucket, 4, "r1")
        assert_live(bucket, three[0])
        back(bucket, 5, "r3")
        assert_live(bucket, three[2])
        assert [found.manifest.request_id for found in restorable(bucket, FOLDER)] == ["r2", "r1"]

    def test_the_next_build_can_be_rolled_back_to_what_was_live(self, bucket, three, bundle_of):
        back(bucket, 4)
        deploy(bucket, bundle_of("5"), 5)
        assert choose(bucket, FOLDER).manifest.request_id == "r3"  # the build before, whatever was live
        back(bucket, 6, "r2")
        assert_live(bucket, three[1])

    def test_many_files_take_no_more_requests(self, bucket, bundle_of):
        for token in (1, 2):
            deploy(bucket, bundle_of(str(token), assets=200), token)
        counting = FaultyBucket(bucket)
        back(counting, 3)
        methods = [method for method, _ in counting.calls]
        assert methods.count("put") == 1, "only the manifest is sent"
        assert methods.count("files") == 1
        assert len(methods) < 25

    def test_what_is_not_kept_is_refused_with_what_there_is(self, bucket, three):
        with pytest.raises(NotRestorable, match=r"no deployment of request r7; there are: r2 \(live since .*\), r1"):
            back(bucket, 4, "r7")
        with pytest.raises(NotRestorable, match=r"no deployment of request r1; there are: r2"):
            back(bucket, 4, "r1", keep=2)
        with pytest.raises(NotRestorable, match="r3 is what is live"):
            back(bucket, 4, "r3")
        assert_live(bucket, three[2])

    def test_without_a_deployment_there_is_none_before_it(self, bucket):
        with pytest.raises(NotRestorable, match="no deployment"):
            choose(bucket, FOLDER)

    @pytest.mark.parametrize("what", ["asset", "staged", "page"])
    @pytest.mark.parametrize("how", ["missing", "changed"])
    def test_one_that_is_no_longer_whole_is_refused_before_anything_changes(self, bucket, three, what, how):
        files = history(bucket, FOLDER)[1].manifest.files
        wanted = {"asset": "assets/app-", "staged": "robots.txt", "page": "index.html"}[what]
        file = next(file for file in files if file.path.startswith(wanted))
        bucket.delete(file.key)
        if how == "changed":
            bucket.put(file.key, b"other", content_type="text/plain", cache_control="no-cache")
        seen = live_deployment(bucket, FOLDER)
        with pytest.raises(NotRestorable, match="no longer whole"):
            back(bucket, 4)
        assert live_deployment(bucket, FOLDER) == seen
        assert_live(bucket, three[2])

    def test_who_may_not_go_on_changes_nothing(self, bucket, three):
        def lost() -> None:
            raise PermissionError

        with pytest.raises(PermissionError):
            back(bucket, 4, before_commit=lost)
        assert_live(bucket, three[2])
        assert chain(bucket)[0] == ("r3", 3)

    def test_who_comes_late_changes_nothing(self, bucket, three):
        seen = live_deployment(bucket, FOLDER).generation
        with pytest.raises(GenerationMismatch):
            back(bucket, 4, seen_generation=seen - 1)
        with pytest.raises(GenerationMismatch, match="later fencing token 3"):
            back(bucket, 2)
        with pytest.raises(GenerationMismatch):
            back(bucket, 5, before_commit=lambda: back(bucket, 4))
        assert_live(bucket, three[1])

    def test_one_that_was_given_up_can_never_become_live(self, bucket, three):
        with pytest.raises(GenerationMismatch):
            back(bucket, 4, before_commit=lambda: fence(bucket, FOLDER, "r2", 4) and None)
        assert_live(bucket, three[2])

    def test_one_that_died_after_its_page_is_finished_by_anybody(self, bucket, three):
        faulty = FaultyBucket(bucket)
        faulty.refuse("copy")
        with pytest.raises(StorageError, match="refuses to copy"):
            back(faulty, 4)
        live = fence(bucket, FOLDER, "r2", 4)
        assert live is not None
        finish_public_files(bucket, live)
        assert_live(bucket, three[1])

    def test_an_interruption_that_cannot_be_settled_leaves_the_answer_open(self, bucket, three):
        faulty = FaultyBucket(bucket)

        def interrupt(_key: str) -> None:
            faulty.refuse("write_page")
            raise KeyboardInterrupt

        faulty.before("write_page", interrupt)
        with pytest.raises(NoAnswer, match="is not known: the bucket refuses"):
            back(faulty, 4)

    def test_a_lost_answer_is_settled(self, bucket, three):
        faulty = FaultyBucket(bucket)

        def lose(_key: str) -> None:
            raise NoAnswer("who knows")

        faulty.after("write_page", lose)
        assert back(faulty, 4).request_id == "r2"
        assert_live(bucket, three[1])
