"""Names of video objects: what is read from one, that it can be written again, and what is never guessed."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.videos.object_names import Container, Reason, Unparsable, VideoKey, bare_etag, prefixes_of

STUDY = "0d6a8a0c-5b0e-4b5f-9f1e-1d2c3b4a5f60"
RESPONSE = "7e1f2a3b-4c5d-4e6f-8a9b-0c1d2e3f4a5b"
KEY = f"videoStream_{STUDY}_4-my-frame_{RESPONSE}_1519757400123_417.mp4"

uuids = st.uuids()
frame_ids = st.text(
    st.characters(categories=("L", "N", "P", "S"), exclude_characters="_/\\"), min_size=1, max_size=255
).filter(lambda text: "PREVIEW_DATA_DISREGARD" not in text)
keys = st.builds(
    VideoKey,
    study_uuid=uuids,
    frame_id=frame_ids,
    response_uuid=uuids,
    unix_ms=st.integers(0, 10**13 - 1),
    digits=st.text("0123456789", min_size=1, max_size=12),
    container=st.sampled_from(Container),
    has_consent_prefix=st.booleans(),
)


def parsed(object_key: str) -> VideoKey:
    key = VideoKey.parse(object_key)
    assert isinstance(key, VideoKey)
    return key


def test_a_name_says_study_frame_response_and_time() -> None:
    key = parsed(KEY)
    assert (key.study_uuid, key.response_uuid) == (UUID(STUDY), UUID(RESPONSE))
    assert (key.frame_id, key.digits, key.container) == ("4-my-frame", "417", Container.MP4)
    assert key.recorded_at == datetime(2018, 2, 27, 18, 50, 0, 123_000, tzinfo=UTC)
    assert not key.is_consent_footage


def test_webm_is_a_video_too() -> None:
    assert parsed(KEY.replace(".mp4", ".webm")).container is Container.WEBM


@pytest.mark.parametrize("object_key", [f"consent-{KEY}", KEY.replace("4-my-frame", "consent-4-frame")])
def test_consent_footage_is_marked_before_the_name_or_the_frame_id(object_key: str) -> None:
    assert parsed(object_key).is_consent_footage


def test_a_frame_that_only_speaks_of_consent_is_no_consent_footage() -> None:
    assert not parsed(KEY.replace("4-my-frame", "4-after-consent-given")).is_consent_footage


@pytest.mark.parametrize(
    "object_key", [KEY.replace("4-my-frame", "PREVIEW_DATA_DISREGARD"), f"{KEY}_PREVIEW_DATA_DISREGARD"]
)
def test_what_is_to_be_disregarded_is(object_key: str) -> None:
    assert VideoKey.parse(object_key) == Unparsable(object_key, Reason.DISREGARDED)


MALFORMED = {
    "empty": "",
    "another file": "index.html",
    "in a folder": f"videos/{KEY}",
    "a frame id with an underscore": KEY.replace("4-my-frame", "4_my_frame"),
    "a frame id with a slash": KEY.replace("4-my-frame", "4/my/frame"),
    "a frame id with a backslash": KEY.replace("4-my-frame", "4\\my"),
    "a frame id with a line break": KEY.replace("4-my-frame", "4\nmy"),
    "a frame id with NUL": KEY.replace("4-my-frame", "4\x00my"),
    "a frame id with half a character": KEY.replace("4-my-frame", "4\ud800my"),
    "a frame id that turns the direction of writing": KEY.replace("4-my-frame", "4\u202emy"),
    "no frame id": KEY.replace("4-my-frame", ""),
    "a frame id that is too long": KEY.replace("4-my-frame", "f" * 256),
    "a study that is no UUID": KEY.replace(STUDY, "my-study"),
    "a UUID without dashes": KEY.replace(STUDY, STUDY.replace("-", "")),
    "a UUID in capitals": KEY.replace(STUDY, STUDY.upper()),
    "a response that is no UUID": KEY.replace(RESPONSE, RESPONSE[:-1]),
    "a time in seconds": KEY.replace("1519757400123", "1519757400"),
    "a time in microseconds": KEY.replace("1519757400123", "1519757400123000"),
    "a negative time": KEY.replace("1519757400123", "-151975740012"),
    "a time in other digits": KEY.replace("1519757400123", "١٥١٩٧٥٧٤٠٠١٢٣"),
    "no random digits": KEY.replace("_417", "_"),
    "another format": KEY.replace(".mp4", ".mov"),
    "a format in capitals": KEY.replace(".mp4", ".MP4"),
    "something behind": f"{KEY}.part",
    "a line break behind": f"{KEY}\n",
    "another prefix": f"assent-{KEY}",
    "the prefix twice": f"consent-consent-{KEY}",
}


@pytest.mark.parametrize("object_key", list(MALFORMED.values()), ids=list(MALFORMED))
def test_what_deviates_is_not_guessed(object_key: str) -> None:
    assert VideoKey.parse(object_key) == Unparsable(object_key, Reason.MALFORMED)


@given(keys)
def test_a_name_that_was_written_is_read_again(key: VideoKey) -> None:
    assert VideoKey.parse(key.object_key) == key
    assert key.object_key.startswith(prefixes_of(key.study_uuid))


@given(
    st.one_of(st.text(), st.from_regex(r"(consent-)?videoStream_[^_]*_[^_]*_[^_]*_\d+_\d+\.(mp4|webm)", fullmatch=True))
)
def test_any_text_is_a_name_that_can_be_written_again_or_none(text: str) -> None:
    key = VideoKey.parse(text)
    if isinstance(key, Unparsable):
        assert key.object_key == text
    else:
        assert key.object_key == text


@given(keys, st.data())
def test_a_name_with_one_character_lost_is_never_another_response_or_study(key: VideoKey, data: st.DataObject) -> None:
    name = key.object_key
    at = data.draw(st.integers(0, len(name) - 1))
    other = VideoKey.parse(name[:at] + name[at + 1 :])
    if isinstance(other, VideoKey):
        assert (other.study_uuid, other.response_uuid) == (key.study_uuid, key.response_uuid)


def test_a_study_has_two_prefixes_in_the_order_of_a_listing() -> None:
    prefixes = prefixes_of(UUID(STUDY))
    assert prefixes == (f"consent-videoStream_{STUDY}_", f"videoStream_{STUDY}_")
    assert sorted(prefixes) == list(prefixes)


@pytest.mark.parametrize(("sent", "bare"), [('"abc-2"', "abc-2"), ("abc", "abc"), ("", "")])
def test_an_etag_loses_its_quotation_marks(sent: str, bare: str) -> None:
    assert bare_etag(sent) == bare
