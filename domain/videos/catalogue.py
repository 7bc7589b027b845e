"""The video catalogue: brings the table `video` up to date from a listing of the buckets of videos.

Rows come from object names that say what they are; whatever else is found is reported, never guessed. A row whose
object is not in the listing is marked as gone, not deleted, unless so many would be marked that the listing is not to
be believed. Each bucket is judged by itself, and a video that only another bucket has is found there from then on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import groupby, islice
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import ColumnElement, any_, case, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute, Session

from domain.errors import InvalidRequest
from domain.models import Response, Study, StudyLog, Video
from domain.videos.consent_marks import MARKED
from domain.videos.object_names import Reason, Unparsable, VideoKey, bare_etag, prefixes_of

BATCH = 1000
EXAMPLES = 10
ALWAYS_PLAUSIBLE = 5
"""So many rows may be marked as gone at once whatever their share, but for the last of several."""

_LONGEST_KEY, _LONGEST_ETAG = 1024, 128
_INSERTS = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


class ListedVideo(Protocol):
    """An object as a bucket's listing tells of it."""

    @property
    def key(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def etag(self) -> str: ...
    @property
    def bucket(self) -> str: ...


class Finding(StrEnum):
    """Why an object got no row."""

    DISREGARDED = "disregarded"
    MALFORMED = "malformed"
    UNKNOWN_STUDY = "unknown_study"
    UNKNOWN_RESPONSE = "unknown_response"
    RESPONSE_OF_ANOTHER_STUDY = "response_of_another_study"


_FINDINGS = {Reason.DISREGARDED: Finding.DISREGARDED, Reason.MALFORMED: Finding.MALFORMED}


@dataclass(frozen=True, slots=True)
class Found:
    """How many there are, and the first of them by name."""

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CatalogueReport:
    """What one update did, in numbers of videos. `gone` names rows, `without_row` objects.

    `moved` were found in another bucket than their row's; `not_read` counts the rows of buckets that were not listed.
    `unmarked` names studies that have videos and no consent footage among them.
    """

    listed: int
    added: int
    changed: int
    returned: int
    moved: int
    gone: Found
    without_row: Mapping[Finding, Found]
    not_read: Mapping[str, int]
    unmarked: Found


class _Tally:
    """Counts names and keeps the first few."""

    def __init__(self) -> None:
        self.count = 0
        self.examples: list[str] = []

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(name)

    def found(self) -> Found:
        return Found(self.count, tuple(self.examples))


def update_catalogue(
    session: Session,
    listing: Iterable[ListedVideo],
    *,
    now: datetime,
    buckets: Mapping[str, str] | None = None,
    study: Study | None = None,
    plausible_share: float = 0.2,
) -> CatalogueReport:
    """Bring the table up to date: new rows, new sizes and ETags, rows whose object is gone or has come back.

    `listing` is complete: all of `buckets`, or with `study` all in them under `prefixes_of` its UUID; only rows of such
    names can be found to be gone then. `buckets` are names by address, as rows have it; by default the first bucket is
    the only one. `now` is when the listing began, by the database's clock or earlier: rows that were
    written after that are never found to be gone. The transaction is open while the listing is read, so a listing that
    comes over the network is better read before.

    Raises InvalidRequest, with nothing changed, when more than `plausible_share` of a bucket's rows would be marked
    as gone and these are more than ALWAYS_PLAUSIBLE, or when the last of several would; a share of 1 allows everything.
    """
    with session.begin_nested():
        return _Update(session, now, study, buckets or {"": "the bucket of videos"}).run(listing, plausible_share)


class _Update:
    """One update, in batches.

    The memory that it takes grows only by a bit for each row of the table, and by the videos in other buckets than
    their rows'.
    """

    def __init__(self, session: Session, now: datetime, study: Study | None, buckets: Mapping[str, str]) -> None:
        self.session = session
        self.now = now
        self.study = study
        self.buckets = buckets
        self.added = self.changed = self.returned = 0
        self.elsewhere: dict[int, ListedVideo] = {}
        self.without_row = {finding: _Tally() for finding in Finding}
        self.highest_id = session.scalar(select(func.max(Video.id))) or 0
        self.seen = bytearray(self.highest_id // 8 + 1)

    def run(self, listing: Iterable[ListedVideo], plausible_share: float) -> CatalogueReport:
        listed = 0
        for bucket, videos in groupby(listing, key=lambda video: video.bucket):
            for batch in _batches(videos):
                listed += len(batch)
                self._take_in(bucket, {video.key: video for video in batch})
        moved = self._move()
        return CatalogueReport(
            listed=listed,
            added=self.added,
            changed=self.changed,
            returned=self.returned,
            moved=moved,
            gone=self._mark_gone(plausible_share),
            without_row={finding: tally.found() for finding, tally in self.without_row.items() if tally.count},
            not_read=self._not_read(),
            unmarked=self._unmarked(),
        )

    def _take_in(self, bucket: str, batch: dict[str, ListedVideo]) -> None:
        columns = (Video.id, Video.object_key, Video.bucket, Video.size_bytes, Video.etag, Video.gone_at)
        # A name that no row could hold is not asked for either: PostgreSQL refuses NUL and halves of characters.
        keys = [key for key in batch if _can_be_stored(key)]
        changes, unknown = [], dict(batch)
        for row in self.session.execute(select(*columns).where(self._is_among(Video.object_key, keys))):
            video = unknown.pop(row.object_key)
            if row.bucket != bucket:
                if row.id <= self.highest_id:
                    self.elsewhere.setdefault(row.id, video)
                continue
            self._see(row.id)
            now_known = {"size_bytes": video.size_bytes, "etag": _etag(video)}
            is_changed = now_known != {"size_bytes": row.size_bytes, "etag": row.etag}
            if is_changed or row.gone_at is not None:
                changes.append({"id": row.id, **now_known, "gone_at": None})
                self.changed += is_changed
                self.returned += row.gone_at is not None
        if changes:
            self.session.execute(update(Video), changes)
        self._add(list(unknown.values()))

    def _move(self) -> int:
        """Name another bucket in the rows whose own does not have the video, or was not listed."""
        moved = {video_id: video for video_id, video in self.elsewhere.items() if not self._is_seen(video_id)}
        rows = []
        for video_id, video in moved.items():
            self._see(video_id)
            known = {"bucket": video.bucket, "size_bytes": video.size_bytes, "etag": _etag(video)}
            rows.append({"id": video_id, **known, "gone_at": None})
        if rows:
            self.session.execute(update(Video), rows)
        return len(rows)

    def _present(self, *more: ColumnElement[bool]) -> list[ColumnElement[bool]]:
        """The conditions of rows that are not marked as gone, of the study if only one is compared."""
        study = [Video.study_id == self.study.id] if self.study is not None else []
        return [Video.gone_at.is_(None), *study, *more]

    def _not_read(self) -> dict[str, int]:
        rows = self._present(Video.bucket.not_in(self.buckets))
        counts = select(Video.bucket, func.count()).where(*rows).group_by(Video.bucket).order_by(Video.bucket)
        return dict(row for row in self.session.execute(counts))

    def _unmarked(self) -> Found:
        marked = func.sum(case((Video.is_consent_footage.is_(True), 1), else_=0))
        studies = select(Study.name).join(Video, Video.study_id == Study.id).where(*self._present())
        tally = _Tally()
        for name in self.session.scalars(studies.group_by(Study.id, Study.name).having(marked == 0).order_by(Study.id)):
            tally.add(name)
        return tally.found()

    def _see(self, video_id: int) -> None:
        if video_id <= self.highest_id:  # else the row is younger than this update
            self.seen[video_id // 8] |= 1 << video_id % 8

    def _is_seen(self, video_id: int) -> bool:
        return bool(self.seen[video_id // 8] & 1 << video_id % 8)

    def _add(self, videos: Sequence[ListedVideo]) -> None:
        parsed: list[tuple[ListedVideo, VideoKey]] = []
        for video in videos:
            key = VideoKey.parse(video.key)
            if isinstance(key, Unparsable):
                self.without_row[_FINDINGS[key.reason]].add(video.key)
            elif len(video.key) > _LONGEST_KEY:
                self.without_row[Finding.MALFORMED].add(video.key)
            else:
                parsed.append((video, key))
        studies = self._ids({key.study_uuid for _, key in parsed}, Study.uuid, Study.id)
        responses = self._ids({key.response_uuid for _, key in parsed}, Response.uuid, Response.id, Response.study_id)
        rows: list[dict[str, Any]] = []
        for video, key in parsed:
            study, response = studies.get(key.study_uuid), responses.get(key.response_uuid)
            if study is None:
                self.without_row[Finding.UNKNOWN_STUDY].add(video.key)
            elif response is None:
                self.without_row[Finding.UNKNOWN_RESPONSE].add(video.key)
            elif response.study_id != study.id:
                self.without_row[Finding.RESPONSE_OF_ANOTHER_STUDY].add(video.key)
            else:
                rows.append(
                    {
                        "study_id": study.id,
                        "response_id": response.id,
                        "object_key": video.key,
                        "bucket": video.bucket,
                        "frame_id": key.frame_id,
                        "recorded_at": key.recorded_at,
                        "size_bytes": video.size_bytes,
                        "etag": _etag(video),
                        "is_consent_footage": key.is_consent_footage,
                    }
                )
        if rows:
            marked = self._marked_frames(rows)
            for row in rows:
                row["is_consent_footage"] |= (row["study_id"], row["frame_id"]) in marked
            # The web application may have written the same row a moment ago: then it is its.
            insert = _INSERTS[self.session.get_bind().dialect.name](Video).on_conflict_do_nothing()
            self.added += len(self.session.scalars(insert.returning(Video.id), rows).all())

    def _marked_frames(self, rows: Sequence[dict[str, Any]]) -> set[tuple[int, str]]:
        """Which of these studies' frames film consent under any name, as a site admin has said.

        The studies' logs tell, not other videos: a name marks one video, and consent footage is given out unruled.
        """
        logs = select(StudyLog.study_id, StudyLog.extra).where(
            StudyLog.action == MARKED,
            self._is_among(StudyLog.study_id, sorted({row["study_id"] for row in rows})),
        )
        return {(study_id, extra["frame"]) for study_id, extra in self.session.execute(logs)}

    def _ids(
        self, uuids: set[UUID], column: InstrumentedAttribute[UUID], *columns: InstrumentedAttribute[Any]
    ) -> dict[UUID, Any]:
        if not uuids:
            return {}
        rows = self.session.execute(select(column.label("uuid"), *columns).where(self._is_among(column, list(uuids))))
        return {row.uuid: row for row in rows}

    def _is_among(self, column: InstrumentedAttribute[Any], values: list[Any]) -> ColumnElement[bool]:
        """One array as the only parameter: for a thousand of them PostgreSQL keeps the plan of a still empty table."""
        if self.session.get_bind().dialect.name != "postgresql":
            return column.in_(values)
        return column == any_(literal(values, postgresql.ARRAY(column.type)))

    def _mark_gone(self, plausible_share: float) -> Found:
        """Mark the rows whose object was not seen, unless they are too many to be believed."""
        here, missing_from, gone = Counter[str](), Counter[str](), _Tally()
        for page in self._rows_here():
            here.update(row.bucket for row in page)
            missing = {row.id: row for row in page if not self._is_seen(row.id)}
            for row in missing.values():
                missing_from[row.bucket] += 1
                gone.add(row.object_key)
            if missing:
                marked = update(Video).where(Video.id.in_(missing)).values(gone_at=self.now)
                self.session.execute(marked.execution_options(synchronize_session=False))
        for bucket, count in missing_from.items():
            is_too_many = count > max(ALWAYS_PLAUSIBLE, plausible_share * here[bucket]) or 1 < here[bucket] == count
            if is_too_many and plausible_share < 1:
                whose = f"of the study {self.study.name!r}" if self.study else "of the catalogue"
                raise InvalidRequest(
                    f"{count} of {here[bucket]} videos {whose} are not in the listing of {self.buckets[bucket]}, more"
                    " than is plausible: nothing was changed; check that this is the right bucket, whole and readable,"
                    f" and if they really are gone, say a larger plausible share than {plausible_share:g}"
                )
        return gone.found()

    def _rows_here(self) -> Iterator[list[Any]]:
        """The rows of which the listing can tell that their object is gone, in pages by id."""
        conditions = self._present(
            Video.id <= self.highest_id, Video.created_at <= self.now, Video.bucket.in_(self.buckets)
        )
        prefixes = prefixes_of(self.study.uuid) if self.study is not None else ("",)
        rows_by_id = select(Video.id, Video.object_key, Video.bucket).where(*conditions).order_by(Video.id).limit(BATCH)
        last = 0
        while rows := self.session.execute(rows_by_id.where(Video.id > last)).all():
            last = rows[-1].id
            yield [row for row in rows if row.object_key.startswith(prefixes)]


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    source = iter(items)
    while batch := list(islice(source, BATCH)):
        yield batch


def _etag(video: ListedVideo) -> str:
    return bare_etag(video.etag)[:_LONGEST_ETAG]


def _can_be_stored(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in key
