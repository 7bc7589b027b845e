"""The asset `video_catalogue`: rows from the bucket, a check that warns, and a listing that is not believed."""

from __future__ import annotations

import dagster as dg
import pytest
from sqlalchemy import update

from domain.models import Video
from lookit_ops.assets.video_catalogue import EVERY_BUCKET_IS_READ, EVERY_VIDEO_HAS_A_ROW, video_catalogue_asset
from lookit_ops.definitions import defs
from tests.support.reels import Reels


@pytest.fixture
def catalogue(reels: Reels) -> Reels:
    reels.services.settings.local_videos.mkdir(parents=True)
    return reels


def materialize(reels: Reels) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [video_catalogue_asset],
        resources={"services": dg.ResourceDefinition.hardcoded_resource(reels.services)},
        instance=reels.instance,
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )


def check_of(run: dg.ExecuteInProcessResult, name: str = EVERY_VIDEO_HAS_A_ROW) -> dg.AssetCheckEvaluation:
    (evaluation,) = [one for one in run.get_asset_check_evaluations() if one.check_name == name]
    return evaluation


def test_a_row_for_each_video_and_a_check_that_passes(catalogue: Reels) -> None:
    key = catalogue.footage.key(catalogue.footage.response())
    catalogue.put(key, b"moving pictures")
    run = materialize(catalogue)
    assert run.success
    assert catalogue.footage.videos()[key].size_bytes == 15
    assert check_of(run).passed
    (event,) = run.get_asset_materialization_events()
    metadata = event.step_materialization_data.materialization.metadata
    assert (metadata["listed"].value, metadata["added"].value) == (1, 1)


def test_the_check_warns_of_what_no_row_knows_and_not_of_what_is_to_be_disregarded(catalogue: Reels) -> None:
    catalogue.put("videoStream_PREVIEW_DATA_DISREGARD_1.mp4", b"x")
    assert check_of(materialize(catalogue)).passed
    catalogue.put("holiday.mp4", b"x")
    evaluation = check_of(materialize(catalogue))
    assert not evaluation.passed
    assert evaluation.severity is dg.AssetCheckSeverity.WARN
    assert "holiday.mp4" in str(evaluation.metadata["objects without a row"].value)


def test_the_check_of_buckets_warns_of_rows_in_one_that_is_not_read(catalogue: Reels) -> None:
    (key,) = catalogue.film(1)
    assert check_of(materialize(catalogue), EVERY_BUCKET_IS_READ).passed
    with catalogue.site.sessions.begin() as session:
        session.execute(update(Video).values(bucket="s3://closed"))
    (catalogue.services.settings.local_videos / key).unlink()
    evaluation = check_of(materialize(catalogue), EVERY_BUCKET_IS_READ)
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert evaluation.description == "1 in s3://closed"


def test_a_listing_that_lacks_too_much_changes_nothing_and_fails_the_run(catalogue: Reels) -> None:
    catalogue.footage.many(4, 3)
    run = materialize(catalogue)
    assert not run.success
    (failed,) = [event for event in run.all_events if event.is_step_failure]
    assert "12 of 12 videos" in str(failed.step_failure_data.user_failure_data.description)
    assert all(video.gone_at is None for video in catalogue.footage.videos().values())


def test_it_runs_every_night() -> None:
    (schedule,) = [schedule for schedule in defs.schedules or [] if schedule.name == "refresh_video_catalogue_nightly"]
    assert schedule.cron_schedule == "0 1 * * *"
