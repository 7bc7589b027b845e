"""The zip format in pieces: members in parts that can be written apart, and the directory that makes a zip of them.

Members are stored, not deflated: video does not get smaller. What a part will hold is known before a byte of it is, to
the byte, so parts can be sent at the same time and joined at the end. The same members give the same bytes: those that
the standard library's `zipfile` writes to a place that cannot be wound back. It makes the headers and the directory;
the contents pass by it, since its CRC-32 would take a sixth of the CPU time (ADR 8).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from struct import Struct
from zipfile import ZIP64_LIMIT, ZIP_STORED, ZipFile, ZipInfo

from zlib_ng import zlib_ng

PART_BYTES = 8 * 2**20
"""A part is closed by the member with which it reaches this, or its share, whichever is more."""
_MEMBER_BYTES = 64 * 2**10
"""What a member counts for beside its bytes: it is a request of its own, and thousands of small ones are to be read
several at a time, too."""
_SHARE, _SMALLEST_SHARE = 14, 45
"""A part's share is a 14th of what is left, so that the last ones are small and end at about the same time; but a 45th
of the whole at least, or they would be too many."""
MOST_PARTS = 31
"""Google joins 32 objects in one request: these, and the directory."""

_EARLIEST, _LATEST = datetime(1980, 1, 1, tzinfo=UTC), datetime(2107, 12, 31, 23, 59, 58, tzinfo=UTC)
"""What a zip can say of times."""
_MODE = 0o100644
_UNIX = 3
_HEADER, _HEADER_ZIP64 = 30, 20
_DESCRIPTOR, _DESCRIPTOR_ZIP64 = Struct("<4L"), Struct("<2L2Q")
"""Behind the contents: a mark, the CRC-32, the length as stored, the length."""
_DESCRIPTOR_MARK = 0x08074B50
_HAS_DESCRIPTOR = 0x08
_ALMOST = 1.05
"""`zipfile` takes Zip64 from this close to the limit: what is compressed may get longer."""


class WrongLength(Exception):
    """A member gave more or fewer bytes than it had been said to have."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive. `name` is ASCII; `modified_at` is kept in UTC, to two seconds."""

    name: str
    size_bytes: int
    modified_at: datetime

    @property
    def needs_zip64(self) -> bool:
        """Whether its length needs more than the 32 bits of the first format."""
        return self.size_bytes * _ALMOST > ZIP64_LIMIT

    @property
    def encoded_bytes(self) -> int:
        """What it takes in a part: header, name, contents, and the descriptor behind them."""
        overhead = _HEADER + _DESCRIPTOR.size
        if self.needs_zip64:
            overhead = _HEADER + _HEADER_ZIP64 + _DESCRIPTOR_ZIP64.size
        return overhead + len(self.name.encode()) + self.size_bytes

    def info(self) -> ZipInfo:
        """What `zipfile` calls it."""
        at = min(max(self.modified_at.astimezone(UTC), _EARLIEST), _LATEST)
        info = ZipInfo(self.name, (at.year, at.month, at.day, at.hour, at.minute, at.second))
        info.compress_type = ZIP_STORED
        info.create_system, info.external_attr = _UNIX, _MODE << 16
        info.flag_bits = _HAS_DESCRIPTOR
        info.file_size = self.size_bytes
        return info


@dataclass(frozen=True, slots=True)
class Written:
    """A member that has gone through, and where in its part it begins."""

    member: Member
    offset: int
    crc32: int


def cut(members: Sequence[Member], part_bytes: int = PART_BYTES) -> list[list[Member]]:
    """The members in at most MOST_PARTS parts, in their order."""
    left = whole = sum(_weight(member) for member in members)
    parts: list[list[Member]] = []
    weight = enough = 0.0
    for member in members:
        if weight >= enough:
            parts.append([])
            weight, enough = 0.0, max(part_bytes, left / _SHARE, whole / _SMALLEST_SHARE)
        parts[-1].append(member)
        weight += _weight(member)
        left -= _weight(member)
    return parts


def _weight(member: Member) -> int:
    """How much work a member is, as if it were bytes."""
    return member.encoded_bytes + _MEMBER_BYTES


def part_blocks(
    members: Sequence[Member], read: Callable[[Member], Generator[bytes]], done: Callable[[Written], None]
) -> Generator[bytes]:
    """The bytes of a part, of exactly the sum of `encoded_bytes`; `done` hears of each member once it is through.

    `read` gives the contents of a member in blocks, and is closed with this. Raises WrongLength, and whatever `read`
    raises.
    """
    offset = 0
    for member in members:
        info, length, crc32 = member.info(), 0, 0
        yield info.FileHeader(member.needs_zip64)
        with closing(read(member)) as contents:
            for block in contents:
                length += len(block)
                if length > member.size_bytes:
                    break
                crc32 = zlib_ng.crc32(block, crc32)
                yield block
        if length != member.size_bytes:
            raise WrongLength(f"{member.name} should have {member.size_bytes} bytes, and it gave {length}")
        descriptor = _DESCRIPTOR_ZIP64 if member.needs_zip64 else _DESCRIPTOR
        yield descriptor.pack(_DESCRIPTOR_MARK, crc32, length, length)
        done(Written(member, offset, crc32))
        offset += member.encoded_bytes


def end_blocks(written: Iterable[tuple[int, Written]], last: Member, contents: bytes) -> bytes:
    """What comes behind all parts: one more member, and the directory of all.

    `written` has each member with the position at which its part begins, in the order of the parts.
    """
    infos, position = [], 0
    for begin, item in written:
        info = item.member.info()
        info.compress_size, info.CRC, info.header_offset = info.file_size, item.crc32, begin + item.offset
        infos.append(info)
        position = info.header_offset + item.member.encoded_bytes
    sink = _Sink(position)
    with ZipFile(sink, "w", ZIP_STORED) as archive:
        archive.filelist.extend(infos)
        archive.writestr(last.info(), contents)
    return b"".join(sink.blocks)


class _Sink:
    """What `zipfile` writes to: it knows where it is and cannot go back."""

    def __init__(self, position: int) -> None:
        self._position = position
        self.blocks: list[bytes] = []

    def write(self, block: bytes, /) -> int:
        self._position += len(block)
        self.blocks.append(block)
        return len(block)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """`zipfile` closes only what it has opened itself."""
