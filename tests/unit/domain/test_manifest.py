"""MANIFEST.csv: what a spreadsheet and a script read from it, and that no cell becomes a formula."""

from __future__ import annotations

import csv
import io
import random
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.models.responses import Ruling
from domain.videos.manifest import COLUMNS, ManifestRow, MemberStatus, manifest_csv
from domain.videos.selection import SelectedVideo, Source

RESPONSE = UUID("7e1f2a3b-4c5d-4e6f-8a9b-0c1d2e3f4a5b")
VIDEO = SelectedVideo(
    id=1,
    response_id=1,
    object_key="videoStream.mp4",
    frame_id="4-frame",
    response_uuid=RESPONSE,
    source=Source.FAMILIES,
    recorded_at=datetime(2026, 3, 1, 11, 0, 0, 123_000, tzinfo=timezone(timedelta(hours=1))),
    size_bytes=None,
    etag=None,
    is_consent_footage=False,
    ruling=Ruling.ACCEPTED,
)
ROW = ManifestRow.included(VIDEO, name="videoStream.mp4", size_bytes=42, etag="abc")


def read(manifest: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(manifest.decode(), newline=""), strict=True))


def test_the_manifest_is_csv_as_the_rfc_has_it() -> None:
    missing = ManifestRow.missing(replace(VIDEO, object_key="a,b.mp4"), 'S3 says "gone"')
    assert manifest_csv([ROW, missing]).decode() == (
        "name,object_key,response,frame,recorded_at,bytes,etag,consent_ruling,status,reason\r\n"
        f',"a,b.mp4",{RESPONSE},4-frame,2026-03-01T10:00:00.123Z,,,accepted,missing,"S3 says ""gone"""\r\n'
        f"videoStream.mp4,videoStream.mp4,{RESPONSE},4-frame,2026-03-01T10:00:00.123Z,42,abc,accepted,included,\r\n"
    )


def test_an_archive_without_videos_has_its_heading() -> None:
    assert manifest_csv([]).decode() == ",".join(COLUMNS) + "\r\n"


def test_the_rows_are_frozen_and_say_included_or_missing() -> None:
    assert (ROW.status, ROW.reason) == (MemberStatus.INCLUDED, "")
    with pytest.raises(AttributeError):
        ROW.name = "other"  # ty: ignore[invalid-assignment]


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_is_taken_for_a_formula(begin: str) -> None:
    evil = f'{begin}HYPERLINK("http://evil.test")'
    row = replace(ROW, name=evil, object_key=evil, frame=evil, etag=evil, reason=evil, consent_ruling=evil)
    (cells,) = read(manifest_csv([row]))
    assert [cells[name] for name in ("name", "object_key", "frame", "etag", "reason", "consent_ruling")] == [
        f"'{evil}"
    ] * 6


@pytest.mark.parametrize("separator", [";", ",", "\t", "|", "\n", '"'])
@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\uff1d"])
def test_no_part_of_a_cell_is_taken_for_a_formula_whatever_the_spreadsheet_separates_by(
    begin: str, separator: str
) -> None:
    evil = f"video_1{separator}{begin}cmd|' /C calc'!A0"
    (cells,) = read(manifest_csv([replace(ROW, object_key=evil)]))
    assert f"{separator}'{begin}cmd" in cells["object_key"]
    assert f"{separator}{begin}" not in cells["object_key"]


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"))
rows = st.builds(
    ManifestRow,
    name=texts,
    object_key=texts,
    response=st.uuids().map(str),
    frame=texts,
    recorded_at=st.datetimes(timezones=st.just(UTC)),
    size_bytes=st.none() | st.integers(0, 2**40),
    etag=texts,
    consent_ruling=st.sampled_from(Ruling),
    status=st.sampled_from(MemberStatus),
    reason=texts,
)


def without_mark(cell: str) -> str:
    return re.sub("(^|[;,|\t\r\n\"])'", r"\1", cell)


@given(st.lists(rows, unique_by=lambda row: row.object_key), st.randoms(use_true_random=False))
def test_whatever_the_texts_are_they_are_read_again_and_the_order_counts_for_nothing(
    given_rows: list[ManifestRow], chance: random.Random
) -> None:
    manifest = manifest_csv(given_rows)
    in_order = sorted(given_rows, key=lambda row: row.object_key)
    for cells, row in zip(read(manifest), in_order, strict=True):
        for name in ("name", "object_key", "frame", "etag", "reason"):
            assert without_mark(cells[name]) == getattr(row, name)
            assert not re.search('(^|[;,|\t\r\n"])[=+@\\-]', cells[name])
        assert cells["bytes"] == ("" if row.size_bytes is None else str(row.size_bytes))
    chance.shuffle(given_rows)
    assert manifest_csv(given_rows) == manifest
