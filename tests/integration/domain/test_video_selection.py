"""Who gets which videos, on both databases: by permission, source, newest ruling, and a part of the name."""

from __future__ import annotations

import time
from datetime import timedelta
from itertools import combinations
from uuid import uuid4

import pytest
from sqlalchemy import insert

from domain.errors import InvalidRequest, PermissionDenied
from domain.models import ArchiveKind, ConsentRuling, Study, User
from domain.models.responses import Ruling
from domain.permissions.codes import Permission
from domain.videos.selection import HeldVideo, Selection, Source, basis_of, require_videos, select_videos
from tests.support.footage import RECORDED_AT, Footage
from tests.support.site import Site
from tests.support.statements import statements_of

CONSENT, ALL = ArchiveKind.CONSENT, ArchiveKind.ALL
REAL, PREVIEW = Permission.VIEW_STUDY_RESPONSES, Permission.VIEW_STUDY_PREVIEW_DATA
CODE, CODE_PREVIEW = Permission.CODE_STUDY_CONSENT, Permission.CODE_STUDY_PREVIEW_CONSENT
FOUR = (REAL, PREVIEW, CODE, CODE_PREVIEW)


@pytest.fixture
def footage(site: Site) -> Footage:
    return Footage(site)


def select(site: Site, user_id: int, kind: ArchiveKind = ALL, name_contains: str = "") -> Selection:
    with site.sessions.begin() as session:
        user, study = session.get_one(User, user_id), session.get_one(Study, site.study_id)
        return select_videos(session, user, study, kind, name_contains)


def require(site: Site, user_id: int, kind: ArchiveKind = ALL, name_contains: str = "") -> None:
    with site.sessions.begin() as session:
        require_videos(
            session, session.get_one(User, user_id), session.get_one(Study, site.study_id), kind, name_contains
        )


def keys(selection: Selection) -> list[str]:
    return [video.object_key for video in selection.videos]


@pytest.mark.parametrize("held", [held for size in range(5) for held in combinations(FOUR, size)])
@pytest.mark.parametrize("kind", ArchiveKind)
def test_each_permission_opens_what_the_table_says(
    site: Site, footage: Footage, held: tuple[Permission, ...], kind: ArchiveKind
) -> None:
    videos = {
        (is_preview, is_consent): footage.video(response, is_consent=is_consent)
        for is_preview in (False, True)
        for response in [footage.response("accepted", is_preview=is_preview)]
        for is_consent in (False, True)
    }
    opens = {False: {REAL}, True: {PREVIEW}}
    if kind is CONSENT:
        opens = {False: {REAL, CODE}, True: {PREVIEW, CODE_PREVIEW}}
    expected = sorted(
        key
        for (is_preview, is_consent), key in videos.items()
        if opens[is_preview] & set(held) and (is_consent or kind is ALL)
    )
    person = footage.person_with(*held)
    if expected:
        require(site, person, kind)
        assert keys(select(site, person, kind)) == expected
    else:
        for ask in (select, require):
            with pytest.raises(PermissionDenied):
                ask(site, person, kind)


def test_a_row_tells_all_that_the_manifest_needs(site: Site, footage: Footage) -> None:
    response = footage.response("accepted")
    key = footage.video(response, "4-my-frame", size_bytes=None, etag=None)
    (video,) = select(site, site.study_admin).videos
    assert (video.object_key, video.frame_id, video.recorded_at) == (key, "4-my-frame", RECORDED_AT)
    assert (video.size_bytes, video.etag, video.ruling) == (None, None, Ruling.ACCEPTED)
    assert (video.source, video.is_consent_footage) == (Source.FAMILIES, False)
    assert str(video.response_uuid) in key


def test_rulings_that_were_imported_in_another_order_count_by_their_time(site: Site, footage: Footage) -> None:
    response = footage.response()
    footage.video(response)
    with site.sessions.begin() as session:
        for ruling, day in (("rejected", 2), ("accepted", 1)):
            made = insert(ConsentRuling).values(response_id=response, ruling=ruling)
            session.execute(made.values(created_at=RECORDED_AT + timedelta(days=day)))
    with pytest.raises(InvalidRequest, match="accepted"), site.sessions.begin() as session:
        select_videos(session, session.get_one(User, site.study_admin), session.get_one(Study, site.study_id), ALL)


@pytest.mark.parametrize(
    ("rulings", "is_in"),
    [
        ((), False),
        (("accepted",), True),
        (("rejected",), False),
        (("pending",), False),
        (("rejected", "accepted"), True),
        (("accepted", "rejected"), False),
        (("accepted", "pending"), False),
        (("accepted", "rejected", "accepted"), True),
    ],
)
def test_the_newest_ruling_decides_over_all_videos_and_none_over_consent_footage(
    site: Site, footage: Footage, rulings: tuple[str, ...], is_in: bool
) -> None:
    other = footage.video(footage.response("accepted"), is_consent=True)
    response = footage.response(*rulings)
    mine = [footage.video(response), footage.video(response, is_consent=True)]
    assert keys(select(site, site.study_admin)) == sorted([other, *(mine if is_in else ())])
    consent = select(site, site.study_admin, CONSENT)
    assert keys(consent) == sorted([other, mine[1]])
    assert {video.ruling for video in consent.videos if video.object_key == mine[1]} == {
        Ruling(rulings[-1]) if rulings else Ruling.PENDING
    }


def test_the_videos_come_by_object_key_as_code_points_sort(site: Site, footage: Footage) -> None:
    response = footage.response("accepted")
    given = ["b", "B", "a-1", "a_1", "a1", "é", "z", "Z"]
    for key in given:
        footage.video(response, key=key)
    assert keys(select(site, site.study_admin)) == sorted(given)


def test_what_is_gone_is_left_out_and_named(site: Site, footage: Footage) -> None:
    response = footage.response("accepted")
    here, gone = footage.video(response), footage.video(response, is_gone=True)
    footage.video(footage.response("rejected"), is_gone=True)
    selection = select(site, site.study_admin)
    assert keys(selection) == [here]
    assert [video.object_key for video in selection.gone] == [gone]


def test_what_is_to_be_disregarded_is_never_in_it(site: Site, footage: Footage) -> None:
    response = footage.response("accepted")
    here = footage.video(response)
    footage.video(response, key="videoStream_PREVIEW_DATA_DISREGARD.mp4")
    assert keys(select(site, site.study_admin)) == [here]


def test_a_video_of_another_study_or_of_another_studys_response_is_never_in_it(site: Site, footage: Footage) -> None:
    here = footage.video(footage.response("accepted"))
    other = site.another_study("Other")
    elsewhere = footage.response("accepted", study_id=other)
    footage.video(elsewhere)
    footage.video(elsewhere, study_id=site.study_id)
    footage.video(footage.response("accepted"), study_id=other)
    assert keys(select(site, site.study_admin)) == [here]


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ("", ["100%_a", "100x_A", "1000a"]),
        ("100", ["100%_a", "100x_A", "1000a"]),
        ("%", ["100%_a"]),
        ("%_", ["100%_a"]),
        ("_", ["100%_a", "100x_A"]),
        ("A", ["100x_A"]),
        ("a", ["100%_a", "1000a"]),
    ],
)
def test_a_part_of_the_name_is_meant_letter_by_letter(
    site: Site, footage: Footage, part: str, found: list[str]
) -> None:
    response = footage.response("accepted")
    for key in ("100%_a", "100x_A", "1000a"):
        footage.video(response, key=key)
    assert keys(select(site, site.study_admin, name_contains=part)) == sorted(found)


def test_quotation_marks_and_backslashes_are_letters_too(site: Site, footage: Footage) -> None:
    key = footage.video(footage.response("accepted"), key="a'\"\\b;--")
    assert keys(select(site, site.study_admin, name_contains="'\"\\b;--")) == [key]


@pytest.mark.parametrize("part", ["a\x00b", "\ud800", "x" * 256])
def test_a_part_that_no_request_can_hold_is_refused(site: Site, footage: Footage, part: str) -> None:
    footage.video(footage.response("accepted"))
    with pytest.raises(InvalidRequest, match="no object name can hold"):
        require(site, site.study_admin, name_contains=part)


def test_what_is_left_out_is_counted(site: Site, footage: Footage) -> None:
    footage.video(footage.response("accepted"))
    for ruling in ("rejected", "pending"):
        footage.video(footage.response(ruling))
    preview = footage.response("accepted", is_preview=True)
    for number in range(3):
        footage.video(preview, f"{number}-frame")
    footage.video(footage.response("rejected", is_preview=True))
    selection = select(site, footage.person_with(REAL))
    assert (len(selection.videos), selection.without_permission, selection.without_consent) == (1, 3, 2)
    selection = select(site, site.study_admin)
    assert (len(selection.videos), selection.without_permission, selection.without_consent) == (4, 0, 3)


# -- refusals -----------------------------------------------------------------------------------------------------


def test_who_holds_nothing_learns_only_what_they_lack(site: Site, footage: Footage) -> None:
    without = footage.person_with()
    with pytest.raises(PermissionDenied) as empty:
        select(site, without, CONSENT)
    footage.video(footage.response("accepted"), is_consent=True)
    with pytest.raises(PermissionDenied) as full:
        select(site, without, CONSENT)
    assert str(full.value) == str(empty.value)
    for permission in FOUR:
        assert permission.value in str(full.value)
    assert "Apples and oranges" in str(full.value)
    assert "ask someone" in str(full.value)


@pytest.mark.parametrize(("kind", "lacking"), [(ALL, {REAL}), (CONSENT, {REAL, CODE})])
def test_where_only_families_were_filmed_the_permission_for_them_is_named(
    site: Site, footage: Footage, kind: ArchiveKind, lacking: set[Permission]
) -> None:
    footage.video(footage.response("accepted"), is_consent=True)
    for ask in (select, require):
        with pytest.raises(PermissionDenied) as refusal:
            ask(site, footage.person_with(PREVIEW, CODE_PREVIEW), kind)
        assert {code for code in FOUR if code.value in str(refusal.value)} == lacking
        assert "videos of families" in str(refusal.value)


@pytest.mark.parametrize("kind", ArchiveKind)
def test_an_inactive_superuser_is_refused(site: Site, footage: Footage, kind: ArchiveKind) -> None:
    footage.video(footage.response("accepted"), is_consent=True)
    for ask in (select, require):
        with pytest.raises(PermissionDenied, match=r"inactive@example\.org is inactive"):
            ask(site, site.inactive, kind)


def test_a_superuser_gets_everything(site: Site, footage: Footage) -> None:
    for is_preview in (False, True):
        footage.video(footage.response("accepted", is_preview=is_preview))
    assert len(select(site, site.superuser).videos) == 2


def refusal_of(site: Site, user_id: int, kind: ArchiveKind = ALL, name_contains: str = "") -> str:
    with pytest.raises(InvalidRequest) as selecting:
        select(site, user_id, kind, name_contains)
    with pytest.raises(InvalidRequest) as requiring:
        require(site, user_id, kind, name_contains)
    assert str(selecting.value) == str(requiring.value)
    return str(selecting.value)


def test_a_study_with_nothing_says_so(site: Site, footage: Footage) -> None:
    assert refusal_of(site, site.study_admin) == "the study 'Apples and oranges' has no videos"
    assert refusal_of(site, site.study_admin, CONSENT) == "the study 'Apples and oranges' has no consent videos"
    footage.video(footage.response("accepted"))
    assert "has no consent videos: 1 of its videos carry no mark" in refusal_of(site, site.study_admin, CONSENT)
    assert refusal_of(site, site.study_admin, ALL, "x-frame").endswith("has no videos whose name contains 'x-frame'")
    assert refusal_of(site, footage.person_with(REAL), ALL, "x").endswith(
        "no videos of families whose name contains 'x'"
    )


def test_where_consent_is_what_lacks_it_is_named(site: Site, footage: Footage) -> None:
    footage.video(footage.response("rejected"))
    footage.video(footage.response())
    assert "there are 2, but none is of a response whose newest consent ruling is 'accepted'" in refusal_of(
        site, site.study_admin
    )


def test_where_everything_is_gone_that_is_said(site: Site, footage: Footage) -> None:
    footage.video(footage.response("accepted"), is_gone=True)
    assert "all 1 are gone from the bucket" in refusal_of(site, site.study_admin)


def test_a_permission_is_not_named_where_it_would_not_help(site: Site, footage: Footage) -> None:
    footage.video(footage.response("rejected"))
    footage.video(footage.response("accepted"), is_gone=True)
    assert "has no videos of previews" in refusal_of(site, footage.person_with(PREVIEW))


def test_an_archive_rests_on_the_videos_that_it_holds(site: Site, footage: Footage) -> None:
    response = footage.response("accepted")
    key = footage.video(response)
    footage.video(footage.response("accepted", is_preview=True))
    selection = select(site, site.study_admin)
    assert basis_of(selection.videos).sources == frozenset(Source)
    basis = basis_of(video for video in selection.videos if video.source is Source.FAMILIES)
    assert basis.sources == {Source.FAMILIES}
    assert basis.videos == (HeldVideo(footage.videos()[key].id, response, key),)


# -- size ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ArchiveKind)
def test_a_selection_takes_the_same_statements_for_few_and_many(
    site: Site, footage: Footage, kind: ArchiveKind
) -> None:
    footage.video(footage.response("accepted"), is_consent=True)
    numbers = []
    for responses in (0, 300):
        if responses:
            footage.many(responses, 3)
        with site.sessions.begin() as session:
            user, study = session.get_one(User, site.study_admin), session.get_one(Study, site.study_id)
            with statements_of(session) as statements:
                select_videos(session, user, study, kind)
            numbers.append(len(statements))
            assert sum("FROM video" in statement for statement in statements) == 2
    assert numbers[0] == numbers[1] <= 6


def test_twenty_thousand_videos_are_selected_in_about_a_second(site: Site, footage: Footage) -> None:
    footage.many(4000, 5)
    for kind, name, count in ((ALL, "", 20_000), (ALL, "_3.mp4", 4000)):
        start = time.perf_counter()
        selection = select(site, site.study_admin, kind, name)
        seconds = time.perf_counter() - start
        assert len(selection.videos) == count
        assert seconds < 5  # about one on a machine of its own


def test_a_study_that_is_unknown_to_the_person_stays_so(site: Site, footage: Footage) -> None:
    footage.video(footage.response("accepted"))
    for part in ("", str(uuid4())):
        with pytest.raises(PermissionDenied, match=r"stranger@example\.org lacks studies\.view_study_responses"):
            select(site, site.stranger, ALL, part)
