"""Zips in parts: exact lengths, the same bytes each time, any number of members, and nothing that is too short."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Generator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookit_ops.archives.stream import PARTS_AT_ONCE
from lookit_ops.archives.zip_format import (
    MOST_PARTS,
    PART_BYTES,
    Member,
    Written,
    WrongLength,
    cut,
    end_blocks,
    part_blocks,
)

DAY = datetime(2026, 3, 1, 10, 30, 42, tzinfo=UTC)
LAST = Member("MANIFEST.csv", 4, DAY)


def contents_of(member: Member) -> bytes:
    return (member.name.encode() * (member.size_bytes // len(member.name) + 1))[: member.size_bytes]


def read(member: Member) -> Generator[bytes]:
    contents = contents_of(member)
    yield from (contents[begin : begin + 1000] for begin in range(0, len(contents), 1000))


def zipped(parts: list[list[Member]]) -> bytes:
    """All parts, made apart from each other, and the end."""
    made, written, position = [], [], 0
    for members in parts:
        done: list[Written] = []
        part = b"".join(part_blocks(members, read, done.append))
        assert len(part) == sum(member.encoded_bytes for member in members), "the length is known before"
        written += [(position, item) for item in done]
        position += len(part)
        made.append(part)
    return b"".join([*made, end_blocks(written, LAST, b"last")])


class Pipe(io.BytesIO):
    """What cannot be wound back."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError("not in a pipe")


def by_the_library(files: list[Member]) -> bytes:
    """The same archive, as `zipfile` writes all of it."""
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for member in files:
            with archive.open(member.info(), "w") as file:
                file.write(contents_of(member))
        archive.writestr(LAST.info(), b"last")
    return pipe.getvalue()


members = st.lists(
    st.builds(
        Member,
        name=st.text("abcdefgh_-.", min_size=1, max_size=200),
        size_bytes=st.integers(0, 5000),
        modified_at=st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    ),
    max_size=30,
    unique_by=lambda member: member.name,
)


@given(members, st.integers(1, 20_000))
@settings(deadline=None, max_examples=100)
def test_whatever_the_parts_are_the_zip_is_one_and_the_same(files: list[Member], part_bytes: int) -> None:
    archive = zipped(cut(files, part_bytes))
    assert archive == zipped([files] if files else [])
    assert archive == by_the_library(files)
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == [*(file.name for file in files), "MANIFEST.csv"]
        assert all(opened.read(file.name) == contents_of(file) for file in files)
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}


def test_checksums_and_times_are_the_members() -> None:
    done: list[Written] = []
    member = Member("a.mp4", 1234, DAY + timedelta(hours=1))
    b"".join(part_blocks([member], read, done.append))
    assert done[0].crc32 == zlib.crc32(contents_of(member))
    with zipfile.ZipFile(io.BytesIO(zipped([[member]]))) as opened:
        assert opened.getinfo("a.mp4").date_time == (2026, 3, 1, 11, 30, 42)
        assert opened.getinfo("a.mp4").external_attr >> 16 == 0o100644


@pytest.mark.parametrize(("count", "size"), [(1, 10**12), (70_000, 3), (5000, 50_000_000), (31, PART_BYTES), (500, 0)])
def test_the_parts_are_never_more_than_can_be_joined_at_once(count: int, size: int) -> None:
    files = [Member(f"{number}.mp4", size, DAY) for number in range(count)]
    parts = cut(files)
    assert len(parts) <= MOST_PARTS
    assert [file for part in parts for file in part] == files
    assert all(parts)


def test_the_last_parts_are_small_so_that_no_connection_waits_long_for_another() -> None:
    sizes = [
        sum(file.size_bytes for file in part) for part in cut([Member(f"{n}.mp4", 10**7, DAY) for n in range(500)])
    ]
    free_at = [0] * PARTS_AT_ONCE  # each part goes to the connection that is free first
    for size in sizes:
        free_at.sort()
        free_at[0] += size
    assert max(free_at) < 1.2 * sum(sizes) / PARTS_AT_ONCE
    assert sizes == sorted(sizes, reverse=True)


def test_more_members_than_sixteen_bits_can_count() -> None:
    files = [Member(f"{number:05}.mp4", number % 7, DAY) for number in range(66_000)]
    with zipfile.ZipFile(io.BytesIO(zipped(cut(files)))) as opened:
        assert len(opened.namelist()) == 66_001
        assert opened.read("65999.mp4") == contents_of(files[-1])


def test_a_member_beyond_32_bits_gets_the_longer_header_and_its_length_is_still_known() -> None:
    """Its contents are four gigabytes of the same block, of which only the lengths are looked at."""
    size = 4 * 2**30 + 5
    block = bytes(2**20)

    def zeros(_member: Member) -> Generator[bytes]:
        for _ in range(size // len(block)):
            yield block
        yield block[: size % len(block)]

    member = Member("long.mp4", size, DAY)
    done: list[Written] = []
    assert sum(map(len, part_blocks([member], zeros, done.append))) == member.encoded_bytes
    end = end_blocks([(0, done[0])], LAST, b"last")
    assert b"PK\x06\x06" in end, "the end says Zip64"


@pytest.mark.parametrize("given", [0, 99, 101, 5000])
def test_a_member_of_another_length_stops_its_part(given: int) -> None:
    done: list[Written] = []
    with pytest.raises(WrongLength, match=r"a\.mp4 should have 100 bytes"):
        list(part_blocks([Member("a.mp4", 100, DAY)], lambda _: (block for block in [bytes(given)]), done.append))
    assert done == []


def test_who_gives_a_part_up_closes_what_it_reads() -> None:
    closed: list[str] = []

    def opened(member: Member) -> Generator[bytes]:
        try:
            yield from read(member)
        finally:
            closed.append(member.name)

    blocks = part_blocks([Member("a.mp4", 5000, DAY)], opened, [].append)
    header, first = next(blocks), next(blocks)
    assert (header[:4], len(first)) == (b"PK\x03\x04", 1000)
    blocks.close()
    assert closed == ["a.mp4"]
