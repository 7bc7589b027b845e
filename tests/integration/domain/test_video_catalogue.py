"""The catalogue on both databases: what a listing adds and changes, what is only reported, and what is not believed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import text, update

from domain.db import database_now
from domain.errors import InvalidRequest
from domain.models import Response, Study, Video
from domain.videos import catalogue
from domain.videos.catalogue import ALWAYS_PLAUSIBLE, EXAMPLES, CatalogueReport, Finding, Found, update_catalogue
from tests.support.footage import RECORDED_AT, RECORDED_MS, Footage
from tests.support.site import Site
from tests.support.statements import statements_of

NOTHING = Found(0, ())


@dataclass(frozen=True)
class Listed:
    """An object of a listing."""

    key: str
    size_bytes: int = 10
    etag: str = '"e"'
    bucket: str = ""


@pytest.fixture
def footage(site: Site) -> Footage:
    return Footage(site)


def run(
    site: Site,
    listing: Iterable[Listed],
    study_id: int | None = None,
    share: float = 0.2,
    now: datetime | None = None,
    buckets: dict[str, str] | None = None,
) -> CatalogueReport:
    with site.sessions.begin() as session:
        study = session.get_one(Study, study_id) if study_id else None
        moment = now or session.scalar(database_now().select())
        return update_catalogue(session, listing, now=moment, buckets=buckets, study=study, plausible_share=share)


def report(listed: int, **changes: object) -> CatalogueReport:
    """Of a study whose videos are none of its consent, but for what the test says."""
    nothing = {"added": 0, "changed": 0, "returned": 0, "moved": 0, "gone": NOTHING, "without_row": {}, "not_read": {}}
    nothing["unmarked"] = Found(1, ("Apples and oranges",))
    return CatalogueReport(listed=listed, **{**nothing, **changes})  # ty: ignore[invalid-argument-type]


def gone(footage: Footage) -> set[str]:
    return {key for key, video in footage.videos().items() if video.gone_at}


def listing_of(keys: Iterable[str]) -> list[Listed]:
    return [Listed(key) for key in keys]


def test_a_listing_fills_an_empty_catalogue(site: Site, footage: Footage) -> None:
    real, preview = footage.response(), footage.response(is_preview=True)
    key, consent = footage.key(real, "4-my-frame"), footage.key(preview, "1-consent", is_consent=True)
    assert run(site, [Listed(key, 123, '"abc-2"'), Listed(consent)]) == report(2, added=2, unmarked=NOTHING)
    videos = footage.videos()
    video = videos[key]
    assert (video.study_id, video.response_id, video.frame_id) == (site.study_id, real, "4-my-frame")
    assert (video.recorded_at, video.size_bytes, video.etag) == (RECORDED_AT, 123, "abc-2")
    assert (video.is_consent_footage, video.gone_at) == (False, None)
    assert (videos[consent].is_consent_footage, videos[consent].response_id) == (True, preview)


def test_the_same_listing_again_writes_nothing(site: Site, footage: Footage) -> None:
    response = footage.response()
    listing = listing_of(footage.key(response, f"{number}-frame") for number in range(5))
    run(site, listing)
    with site.sessions.begin() as session:
        now = session.scalar(database_now().select())
        with statements_of(session) as statements:
            assert update_catalogue(session, listing, now=now) == report(5)
    assert not [statement for statement in statements if statement.startswith(("INSERT", "UPDATE", "DELETE"))]


def test_size_and_etag_follow_the_bucket(site: Site, footage: Footage) -> None:
    response = footage.response()
    keys = [footage.video(response), footage.video(response, size_bytes=None, etag=None), footage.video(response)]
    listing = [Listed(keys[0], 11), Listed(keys[1]), Listed(keys[2])]
    assert run(site, listing) == report(3, changed=2)
    videos = footage.videos()
    assert [(videos[key].size_bytes, videos[key].etag) for key in keys] == [(11, "e"), (10, "e"), (10, "e")]


def test_what_is_not_in_the_bucket_is_marked_as_gone_and_unmarked_when_it_comes_back(
    site: Site, footage: Footage
) -> None:
    response = footage.response()
    here, away = footage.video(response), footage.video(response)
    now = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=5)
    assert run(site, [Listed(here)], now=now) == report(1, gone=Found(1, (away,)))
    assert (footage.videos()[away].gone_at, footage.videos()[here].gone_at) == (now, None)
    assert run(site, [Listed(here)]) == report(1)
    assert footage.videos()[away].gone_at == now  # the first time counts
    assert run(site, [Listed(here), Listed(away, 99)]) == report(2, changed=1, returned=1)
    assert (footage.videos()[away].gone_at, footage.videos()[away].size_bytes) == (None, 99)


def test_what_is_not_understood_is_reported_and_never_guessed(site: Site, footage: Footage) -> None:
    other = site.another_study("Other")
    mine, theirs = footage.response(), footage.response(study_id=other)
    good, of_theirs = footage.key(mine), footage.key(theirs)
    uuids = {}
    with site.sessions.begin() as session:
        for name, row in (("mine", session.get_one(Response, mine)), ("theirs", session.get_one(Response, theirs))):
            uuids[name] = str(row.uuid)
        study_uuid = str(session.get_one(Study, site.study_id).uuid)
    found = {
        Finding.MALFORMED: ["README.txt", "a\x00b", "a\ud800b", good.replace(str(RECORDED_MS), "1519757400")],
        Finding.DISREGARDED: [good.replace("1-frame", "PREVIEW_DATA_DISREGARD")],
        Finding.UNKNOWN_STUDY: [good.replace(study_uuid, str(uuid4()))],
        Finding.UNKNOWN_RESPONSE: [good.replace(uuids["mine"], str(uuid4()))],
        Finding.RESPONSE_OF_ANOTHER_STUDY: [good.replace(uuids["mine"], uuids["theirs"])],
    }
    listing = listing_of([good, of_theirs, *(key for keys in found.values() for key in keys)])
    assert run(site, listing) == report(
        len(listing),
        added=2,
        without_row={finding: Found(len(keys), tuple(keys)) for finding, keys in found.items()},
        unmarked=Found(2, ("Apples and oranges", "Other")),
    )
    assert footage.videos().keys() == {good, of_theirs}
    assert footage.videos()[of_theirs].study_id == other


def test_of_many_findings_the_first_are_named(site: Site) -> None:
    done = run(site, listing_of(f"{number}.txt" for number in range(25)))
    assert done.without_row == {Finding.MALFORMED: Found(25, tuple(f"{number}.txt" for number in range(EXAMPLES)))}


def test_a_row_of_the_application_is_known_by_its_key_whatever_the_key_says(site: Site, footage: Footage) -> None:
    response = footage.response()
    odd, disregarded = footage.video(response, key="odd.mp4"), footage.video(response, key="PREVIEW_DATA_DISREGARD.mp4")
    assert run(site, [Listed(odd, 11), Listed(disregarded)]) == report(2, changed=1)
    assert gone(footage) == set()


def test_a_key_that_is_listed_twice_is_taken_once(site: Site, footage: Footage) -> None:
    key = footage.key(footage.response())
    assert run(site, [Listed(key, 1), Listed(key, 2)]) == report(2, added=1)
    assert footage.videos()[key].size_bytes == 2


def test_a_row_that_the_application_writes_meanwhile_stays_its_own(site: Site, footage: Footage) -> None:
    response = footage.response()
    key = footage.key(response)
    before = datetime.now(UTC) - timedelta(minutes=1)
    young = footage.video(response)
    assert run(site, [Listed(key)], now=before) == report(1, added=1)  # the listing began before the row was written
    assert gone(footage) == set()
    assert footage.videos().keys() == {key, young}


def test_a_conflict_with_another_writer_is_no_error(
    site: Site, footage: Footage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is unseen by the question for known keys and met in the unique index: every key is asked for in vain."""
    key = footage.video(footage.response(), size_bytes=5)
    monkeypatch.setattr(catalogue, "_can_be_stored", lambda key: False)
    assert run(site, [Listed(key)], share=1).added == 0
    assert footage.videos()[key].size_bytes == 5


# -- the listing of one study -------------------------------------------------------------------------------------


def test_the_listing_of_one_study_says_nothing_about_others_and_about_other_names(site: Site, footage: Footage) -> None:
    other = site.another_study("Other")
    mine, theirs = footage.response(), footage.response(study_id=other)
    here, away, consent = (footage.video(mine, is_consent=is_consent) for is_consent in (False, False, True))
    odd = footage.video(mine, key="odd.mp4")
    footage.video(theirs)
    done = run(site, listing_of([here]), site.study_id, share=1)
    assert done.gone == Found(2, tuple(sorted([away, consent], key=list(footage.videos()).index)))
    assert gone(footage) == {away, consent}
    assert odd not in gone(footage)


def test_studies_whose_videos_carry_no_mark_of_consent_are_reported(site: Site, footage: Footage) -> None:
    marked = site.another_study("Marked")
    for study_id in (site.study_id, marked, site.another_study("Gone")):
        response = footage.response(study_id=study_id)
        footage.video(response, is_gone=study_id not in {site.study_id, marked})
        if study_id == marked:
            footage.video(response, is_consent=True)
    assert run(site, listing_of(footage.videos()), marked).unmarked == NOTHING
    assert run(site, [], share=1).unmarked == NOTHING, "what is gone counts no more"
    assert run(site, listing_of(list(footage.videos())[:3])).unmarked == Found(1, ("Apples and oranges",))


# -- several buckets ----------------------------------------------------------------------------------------------

SECOND = "s3://second"
BOTH = {"": "s3://first", SECOND: SECOND}


def put_into(site: Site, bucket: str, *keys: str) -> None:
    """Name this bucket in the rows of these keys, as the application does."""
    with site.sessions.begin() as session:
        session.execute(update(Video).where(Video.object_key.in_(keys)).values(bucket=bucket))


def test_each_bucket_has_its_videos_new_ones_and_gone_ones(site: Site, footage: Footage) -> None:
    response = footage.response()
    first, second, lost = footage.video(response), footage.video(response), footage.video(response)
    put_into(site, SECOND, second, lost)
    new = footage.key(response)
    listing = [Listed(first), Listed(second, bucket=SECOND), Listed(new, bucket=SECOND)]
    assert run(site, listing, buckets=BOTH) == report(3, added=1, gone=Found(1, (lost,)))
    assert {key: video.bucket for key, video in footage.videos().items()} == {
        first: "",
        second: SECOND,
        lost: SECOND,
        new: SECOND,
    }
    assert run(site, listing, buckets=BOTH) == report(3)


def test_a_video_that_several_buckets_have_stays_where_its_row_says(site: Site, footage: Footage) -> None:
    response = footage.response()
    first, second, new = footage.video(response), footage.video(response), footage.key(response)
    put_into(site, SECOND, second)
    keys = (first, second, new)
    both = [*(Listed(key, 10) for key in keys), *(Listed(key, 99, bucket=SECOND) for key in keys)]
    assert run(site, both, buckets=BOTH) == report(6, added=1, changed=1)
    rows = {key: (video.bucket, video.size_bytes) for key, video in footage.videos().items()}
    assert rows == {first: ("", 10), second: (SECOND, 99), new: ("", 10)}
    assert run(site, both, buckets=BOTH) == report(6)


def test_a_video_that_only_another_bucket_has_is_found_there(site: Site, footage: Footage) -> None:
    response = footage.response()
    moved, back, gone_before = footage.video(response), footage.video(response), footage.video(response, is_gone=True)
    put_into(site, "s3://closed", back)
    listing = [Listed(back, 7), Listed(moved, 8, bucket=SECOND), Listed(gone_before, 9, bucket=SECOND)]
    assert run(site, listing, buckets=BOTH) == report(3, moved=3)
    rows = {key: (video.bucket, video.size_bytes, video.gone_at) for key, video in footage.videos().items()}
    assert rows == {moved: (SECOND, 8, None), back: ("", 7, None), gone_before: (SECOND, 9, None)}


def test_a_row_of_a_bucket_that_is_not_listed_is_counted_and_never_gone(site: Site, footage: Footage) -> None:
    keys = some(footage, 8)
    put_into(site, "s3://closed", *keys[:6])
    listing = listing_of(keys[6:])
    assert run(site, listing, buckets=BOTH) == report(2, not_read={"s3://closed": 6})
    assert run(site, listing, site.study_id, buckets=BOTH) == report(2, not_read={"s3://closed": 6})
    assert run(site, listing, site.another_study("Other"), buckets=BOTH) == report(2, unmarked=NOTHING)
    assert gone(footage) == set()


def test_an_implausible_loss_in_one_bucket_is_not_hidden_by_the_others(site: Site, footage: Footage) -> None:
    keys = some(footage, 60)
    put_into(site, SECOND, *keys[:8])
    with pytest.raises(InvalidRequest, match=r"8 of 8 videos of the catalogue are not in the listing of s3://second"):
        run(site, listing_of(keys[8:]), buckets=BOTH)
    assert gone(footage) == set()
    assert run(site, listing_of(keys[8:]), buckets=BOTH, share=1).gone.count == 8


# -- what is not believed -----------------------------------------------------------------------------------------


def some(footage: Footage, count: int) -> list[str]:
    response = footage.response()
    return [footage.video(response) for _ in range(count)]


@pytest.mark.parametrize(
    ("rows", "lost", "share", "is_believed"),
    [
        (1, 1, 0.2, True),
        (3, 1, 0.2, True),
        (3, 2, 0.2, True),
        (3, 3, 0.2, False),
        (ALWAYS_PLAUSIBLE + 1, ALWAYS_PLAUSIBLE, 0.2, True),
        (20, 5, 0.2, True),
        (20, 6, 0.2, False),
        (50, 10, 0.2, True),
        (50, 11, 0.2, False),
        (50, 11, 0.5, True),
        (50, 50, 0.99, False),
        (50, 50, 1, True),
    ],
)
def test_an_implausible_loss_changes_nothing(
    site: Site, footage: Footage, rows: int, lost: int, share: float, is_believed: bool
) -> None:
    keys = some(footage, rows)
    added = footage.key(footage.response())
    listing = [*(Listed(key, 99) for key in keys[lost:]), *([Listed(added)] if rows > lost else [])]
    if is_believed:
        assert run(site, listing, share=share).gone.count == lost
        assert gone(footage) == set(keys[:lost])
        return
    before = {key: (video.size_bytes, video.gone_at) for key, video in footage.videos().items()}
    for study_id in (None, site.study_id):
        with pytest.raises(InvalidRequest, match=rf"{lost} of {rows} videos .* not in the listing") as refusal:
            run(site, listing, study_id, share)
        assert f"larger plausible share than {share}" in str(refusal.value)
        assert ("of the study 'Apples and oranges'" in str(refusal.value)) == (study_id is not None)
    assert {key: (video.size_bytes, video.gone_at) for key, video in footage.videos().items()} == before


def test_nothing_is_changed_even_if_the_caller_goes_on(site: Site, footage: Footage) -> None:
    keys = some(footage, 20)
    with site.sessions.begin() as session:
        now = session.scalar(database_now().select())
        with pytest.raises(InvalidRequest):
            update_catalogue(session, [Listed(keys[0], 99), Listed(footage_key := keys[0] + "x")], now=now)
        session.get_one(Study, site.study_id).purpose = "another act of the same transaction"
    assert site.study().purpose == "another act of the same transaction"
    assert gone(footage) == set()
    assert footage.videos()[keys[0]].size_bytes == 10
    assert footage_key not in footage.videos()


def test_rows_that_were_gone_before_count_neither_way(site: Site, footage: Footage) -> None:
    response = footage.response()
    for _ in range(30):
        footage.video(response, is_gone=True)
    keys = some(footage, 3)
    assert run(site, listing_of(keys[1:])).gone == Found(1, (keys[0],))


def test_a_listing_that_breaks_off_changes_nothing(site: Site, footage: Footage) -> None:
    keys = some(footage, 2)

    def broken() -> Iterator[Listed]:
        yield Listed(keys[0], 99)
        yield from (Listed(f"{number}.txt") for number in range(catalogue.BATCH))
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        run(site, broken())
    assert footage.videos()[keys[0]].size_bytes == 10
    assert gone(footage) == set()


def test_batches_do_not_show(site: Site, footage: Footage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "BATCH", 7)
    response = footage.response()
    old = some(footage, 40)
    new = [footage.key(response) for _ in range(30)]
    listing = [*listing_of([*old[5:], *new, *(f"{number}.txt" for number in range(20))])]
    listing = [*listing[1::2], *listing[::2]]
    done = run(site, listing)
    assert (done.listed, done.added, done.gone) == (85, 30, Found(5, tuple(old[:5])))
    assert done.without_row[Finding.MALFORMED].count == 20
    assert run(site, listing) == report(85, without_row=done.without_row)


# -- size ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [60_000, pytest.param(200_000, marks=pytest.mark.soak)])
def test_many_rows_take_bounded_memory(site: Site, footage: Footage, count: int) -> None:
    head = footage.key(footage.response()).rsplit("_", 1)[0]
    fill = text(
        "INSERT INTO video (study_id, response_id, object_key, frame_id, recorded_at, size_bytes, etag)"
        " WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)"
        " SELECT study_id, id, CAST(:head AS text) || '_' || CAST(n AS text) || '.mp4', '1-frame', created_at, 10, 'e'"
        " FROM numbers, response"
    )
    with site.sessions.begin() as session:
        session.execute(fill, {"head": head, "last": count - 1})
    listing = (Listed(f"{head}_{number}.mp4") for number in range(3, count + 2))
    tracemalloc.start()
    try:
        done = run(site, listing)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (done.listed, done.added, done.changed, done.gone.count) == (count - 1, 2, 0, 3)
    assert peak < 12_000_000  # of 200,000, a list of the names alone would take three times that


def test_each_batch_reads_its_own_rows_and_not_the_table(site: Site, footage: Footage) -> None:
    """PostgreSQL once kept the plan that it had made for a table that was still small."""
    head, count = footage.key(footage.response()).rsplit("_", 1)[0], 30_000
    listing = (Listed(f"{head}_{number}.mp4") for number in range(count))
    with site.sessions.begin() as session:
        now = session.scalar(database_now().select())
        assert update_catalogue(session, listing, now=now).added == count
        if session.get_bind().dialect.name == "postgresql":
            rows_read = text("SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'video'")
            # The first few batches may, while the table is small; and three questions are about the whole table.
            assert session.scalar(rows_read) < 160_000
