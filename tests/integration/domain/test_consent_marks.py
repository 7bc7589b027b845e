"""Frames whose names do not say that they film consent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from domain.errors import InvalidRequest, PermissionDenied
from domain.models import ArchiveKind, Study, User
from domain.videos.catalogue import update_catalogue
from domain.videos.consent_marks import mark_consent_frame
from domain.videos.selection import Selection, select_videos
from lookit_ops.storage.videos import ListedVideo
from tests.support.footage import RECORDED_AT, Footage
from tests.support.site import Site

FRAME = "1-video-consent"


@pytest.fixture
def footage(site: Site) -> Footage:
    return Footage(site)


def mark(site: Site, user_id: int, frame: str = FRAME) -> int:
    with site.sessions.begin() as session:
        study, user = session.get_one(Study, site.study_id), session.get_one(User, user_id)
        return mark_consent_frame(session, study, user, frame)


def consent_videos(site: Site) -> Selection:
    with site.sessions.begin() as session:
        study, user = session.get_one(Study, site.study_id), session.get_one(User, site.study_admin)
        return select_videos(session, user, study, ArchiveKind.CONSENT)


def listed(key: str) -> ListedVideo:
    return ListedVideo(key, 10, "e", RECORDED_AT)


def test_a_name_marks_one_video_and_no_other_of_its_frame(
    site: Site, footage: Footage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domain.videos.catalogue.BATCH", 1)
    named = footage.key(footage.response("accepted"), "1-video", is_consent=True)
    plain = footage.key(footage.response("rejected"), "1-video")
    with site.sessions.begin() as session:
        update_catalogue(session, [listed(named), listed(plain)], now=datetime.now(UTC))
    assert {key: video.is_consent_footage for key, video in footage.videos().items()} == {named: True, plain: False}


def test_a_refusal_says_how_many_videos_carry_no_mark_and_how_to_mark_them(site: Site, footage: Footage) -> None:
    for _ in range(2):
        footage.video(footage.response(), FRAME)
    footage.video(footage.response(), "2-play")
    with pytest.raises(InvalidRequest, match=rf"3 of its videos carry no mark .* {FRAME}, 2-play\..*mark-consent"):
        consent_videos(site)


def test_the_videos_of_a_marked_frame_are_consent_footage_and_it_is_on_record(site: Site, footage: Footage) -> None:
    key = footage.video(footage.response(), FRAME)
    footage.video(footage.response(), "2-play")
    assert mark(site, site.site_admin) == 1
    assert mark(site, site.site_admin) == 0
    assert [video.object_key for video in consent_videos(site).videos] == [key]
    (log, _) = site.logs()
    assert (log.action, log.extra) == ("mark_consent_footage", {"frame": FRAME, "videos": 1})
    assert log.user_id == site.site_admin


def test_later_videos_of_the_frame_are_marked_by_the_catalogue(site: Site, footage: Footage) -> None:
    footage.video(footage.response(), FRAME)
    mark(site, site.site_admin)
    later, other = footage.key(footage.response(), FRAME), footage.key(footage.response(), "2-play")
    listing = [ListedVideo(key, 5, "etag", RECORDED_AT) for key in (later, other)]
    with site.sessions.begin() as session:
        assert update_catalogue(session, listing, now=datetime.now(UTC) - timedelta(days=1)).added == 2
    assert later in {video.object_key for video in consent_videos(site).videos}
    assert other not in {video.object_key for video in consent_videos(site).videos}


@pytest.mark.parametrize("who", ["study_admin", "designer", "lab_member", "stranger", "inactive"])
def test_researchers_cannot_call_a_frame_consent_footage_to_get_its_videos(
    site: Site, footage: Footage, who: str
) -> None:
    footage.video(footage.response("rejected"), FRAME)
    with pytest.raises(PermissionDenied):
        mark(site, getattr(site, who))
    with pytest.raises(InvalidRequest):
        consent_videos(site)


def test_a_frame_without_videos_is_refused_with_those_that_there_are(site: Site, footage: Footage) -> None:
    footage.video(footage.response(), FRAME)
    with pytest.raises(InvalidRequest, match=f"no video of the frame '1-typo'; it has videos of {FRAME}"):
        mark(site, site.site_admin, "1-typo")
