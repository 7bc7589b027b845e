"""MANIFEST.csv, the list inside an archive: what each member is, and what was left out and why."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Self

from domain.escaping import csv_cell
from domain.videos.selection import SelectedVideo

COLUMNS = (
    "name",
    "object_key",
    "response",
    "frame",
    "recorded_at",
    "bytes",
    "etag",
    "consent_ruling",
    "status",
    "reason",
)


class MemberStatus(StrEnum):
    """Whether a video is in the archive."""

    INCLUDED = "included"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One video; a missing one has neither name nor bytes nor ETag."""

    name: str
    object_key: str
    response: str
    frame: str
    recorded_at: datetime
    size_bytes: int | None
    etag: str
    consent_ruling: str
    status: MemberStatus
    reason: str

    @classmethod
    def included(cls, video: SelectedVideo, *, name: str, size_bytes: int, etag: str) -> Self:
        """A video that the listing has, by its name in the archive."""
        return cls(
            name=name,
            object_key=video.object_key,
            response=str(video.response_uuid),
            frame=video.frame_id,
            recorded_at=video.recorded_at,
            size_bytes=size_bytes,
            etag=etag,
            consent_ruling=video.ruling,
            status=MemberStatus.INCLUDED,
            reason="",
        )

    @classmethod
    def missing(cls, video: SelectedVideo, reason: str) -> Self:
        """A video that should be there and is not."""
        return cls(
            name="",
            object_key=video.object_key,
            response=str(video.response_uuid),
            frame=video.frame_id,
            recorded_at=video.recorded_at,
            size_bytes=None,
            etag="",
            consent_ruling=video.ruling,
            status=MemberStatus.MISSING,
            reason=reason,
        )


def manifest_csv(rows: Iterable[ManifestRow]) -> bytes:
    """The rows by object key as CSV (RFC 4180, UTF-8): the same rows in any order give the same bytes.

    Cells are such that no spreadsheet takes one for a formula: `csv_cell` says how to read them.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows, key=lambda row: (row.object_key, row.status)):
        writer.writerow(
            (
                csv_cell(row.name),
                csv_cell(row.object_key),
                csv_cell(row.response),
                csv_cell(row.frame),
                row.recorded_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "" if row.size_bytes is None else row.size_bytes,
                csv_cell(row.etag),
                csv_cell(row.consent_ruling),
                row.status,
                csv_cell(row.reason),
            )
        )
    return text.getvalue().encode()
