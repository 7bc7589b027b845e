"""Which videos a person may download: consent footage or all, of families and of previews, by their permissions.

Two statements for any number of videos, after the questions for permissions: what there is, in numbers, and the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Boolean, ColumnElement, Row, Text, and_, case, func, literal, not_, select, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

from domain.errors import DomainError, InvalidRequest, PermissionDenied
from domain.models import ArchiveContent, ArchiveKind, ArchiveRequest, ConsentRuling, Response, Study, User, Video
from domain.models.responses import Ruling
from domain.permissions.checks import describe, has_permission, who_grants
from domain.permissions.codes import Permission
from domain.videos.consent_marks import unmarked_frames
from domain.videos.object_names import DISREGARD

LONGEST_NAME_PART = 255
"""Characters of `archive_request.name_contains`."""


class Source(StrEnum):
    """Who was recorded: families, or a researcher who tried the study out."""

    FAMILIES = "families"
    PREVIEWS = "previews"


WHO_GETS: dict[ArchiveKind, dict[Source, tuple[Permission, ...]]] = {
    ArchiveKind.ALL: {
        Source.FAMILIES: (Permission.VIEW_STUDY_RESPONSES,),
        Source.PREVIEWS: (Permission.VIEW_STUDY_PREVIEW_DATA,),
    },
    ArchiveKind.CONSENT: {
        Source.FAMILIES: (Permission.VIEW_STUDY_RESPONSES, Permission.CODE_STUDY_CONSENT),
        Source.PREVIEWS: (Permission.VIEW_STUDY_PREVIEW_DATA, Permission.CODE_STUDY_PREVIEW_CONSENT),
    },
}
"""The permissions of which any one opens these videos: who must rule on consent must see its footage."""


@dataclass(frozen=True, slots=True)
class SelectedVideo:
    """A video that the person may download, as the database knows it; size and ETag until S3 was asked."""

    id: int
    response_id: int
    object_key: str
    frame_id: str
    response_uuid: UUID
    source: Source
    recorded_at: datetime
    size_bytes: int | None
    etag: str | None
    is_consent_footage: bool
    ruling: Ruling
    bucket: str = ""


@dataclass(frozen=True, slots=True)
class HeldVideo:
    """A video that an archive holds, by all that tells it from any other."""

    id: int
    response_id: int
    object_key: str


@dataclass(frozen=True, slots=True)
class Basis:
    """What an archive rests on, so that it can be asked again whether it may still be given out."""

    sources: frozenset[Source]
    videos: tuple[HeldVideo, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """The videos by object key, and those by object key that are gone from S3.

    `without_permission` and `without_consent` count what the study has besides and this archive leaves out.
    """

    study_uuid: UUID
    kind: ArchiveKind
    name_contains: str
    videos: tuple[SelectedVideo, ...]
    gone: tuple[SelectedVideo, ...]
    without_permission: int
    without_consent: int


def basis_of(included: Iterable[SelectedVideo]) -> Basis:
    """What an archive of these videos rests on."""
    videos = tuple(included)
    return Basis(
        frozenset(video.source for video in videos),
        tuple(HeldVideo(video.id, video.response_id, video.object_key) for video in videos),
    )


class _Fate(StrEnum):
    """What has become of a video since it went into an archive."""

    GIVEN_OUT = "may be given out"
    DELETED = "deleted or moved"
    GONE = "gone from the bucket of videos"
    WITHOUT_CONSENT = "without a consent that is 'accepted' by its newest ruling"


@dataclass(frozen=True, slots=True)
class _Census:
    """How many videos there are: by whether the person may see them, consent lets them out, and S3 still has them."""

    numbers: dict[tuple[bool, bool, bool], int]

    def count(self, *, is_open: bool, is_let_out: bool, is_gone: bool) -> int:
        return self.numbers.get((is_open, is_let_out, is_gone), 0)


def select_videos(session: Session, user: User, study: Study, kind: ArchiveKind, name_contains: str = "") -> Selection:
    """The videos of the study that the person may have in an archive of this kind, by object key.

    Consent footage whatever the ruling; of all videos those whose response's newest ruling is `accepted`. Raises
    PermissionDenied or InvalidRequest when nothing is left, saying which it is.
    """
    sources, census = _look(session, user, study, kind, name_contains)
    rows = session.execute(
        select(
            Video.id,
            Video.response_id,
            Video.object_key,
            Video.bucket,
            Video.frame_id,
            Response.uuid.label("response_uuid"),
            Response.is_preview,
            Video.recorded_at,
            Video.size_bytes,
            Video.etag,
            Video.is_consent_footage,
            _newest_ruling().label("ruling"),
            Video.gone_at,
        )
        .join(Response, Response.id == Video.response_id)
        .where(*_asked_for(study, kind, name_contains), _of(sources), _let_out(kind))
    ).all()
    # Sorted here, by code points: PostgreSQL would sort as its locale does.
    rows = sorted(rows, key=lambda row: row.object_key)
    videos = tuple(_video(row) for row in rows if row.gone_at is None)
    if not videos:
        raise _nothing_left(session, user, study, kind, name_contains, sources, census)
    return Selection(
        study_uuid=study.uuid,
        kind=kind,
        name_contains=name_contains,
        videos=videos,
        gone=tuple(_video(row) for row in rows if row.gone_at is not None),
        without_permission=census.count(is_open=False, is_let_out=True, is_gone=False),
        without_consent=census.count(is_open=True, is_let_out=False, is_gone=False),
    )


def require_videos(session: Session, user: User, study: Study, kind: ArchiveKind, name_contains: str = "") -> None:
    """Raises what `select_videos` would raise, without reading the rows."""
    sources, census = _look(session, user, study, kind, name_contains)
    if not census.count(is_open=True, is_let_out=True, is_gone=False):
        raise _nothing_left(session, user, study, kind, name_contains, sources, census)


def require_basis(session: Session, user: User, study: Study, request: ArchiveRequest) -> None:
    """Whether this person may have the archive that the request made, now.

    Raises PermissionDenied, naming the permission, or InvalidRequest when a video in the archive would not be given
    out any more: its row is gone or no longer the one that it was, its object is gone, or the newest ruling on its
    response is not `accepted`. The permission comes first: who lacks it learns nothing of the videos.
    """
    kind = ArchiveKind(request.kind)
    fates = _fates(session, study, kind, request.id)
    held = {Source.FAMILIES: request.holds_families, Source.PREVIEWS: request.holds_previews}
    sources = {source for source, is_held in held.items() if is_held} | {source for _, source in fates if source}
    closed = sources - open_sources(session, user, study, kind)
    if closed:
        raise _denied(user, study, kind, frozenset(closed))
    counts = Counter[_Fate]()
    for (fate, _), count in fates.items():
        counts[fate] += count
    if not request.video_count or counts.total() != request.video_count:
        raise InvalidRequest(
            f"what the archive of request {request.id} holds is not on record, or no longer, so nobody can say whether"
            " all of it may still be given out; ask for the archive again"
        )
    changed = [f"{fate}: {counts[fate]}" for fate in _Fate if fate is not _Fate.GIVEN_OUT and counts[fate]]
    if changed:
        raise InvalidRequest(
            f"since this archive of {study.name!r} was made, something has changed for some of its {counts.total()}"
            f" videos ({'; '.join(changed)}), and it may no longer be given out; ask for the archive again, without"
            " them"
        )


def open_sources(session: Session, user: User, study: Study, kind: ArchiveKind) -> frozenset[Source]:
    """Whose videos of this kind the person may download."""
    return frozenset(
        source
        for source, permissions in WHO_GETS[kind].items()
        if any(has_permission(session, user, permission, study) for permission in permissions)
    )


class _holds(FunctionElement[bool]):  # noqa: N801 - reads as the SQL function that it is
    """Whether a text holds another, letter by letter: SQLite's LIKE would not tell upper from lower case."""

    type = Boolean()
    inherit_cache = True
    name = "holds"


@compiles(_holds, "postgresql")
def _holds_on_postgresql(element: _holds, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(strpos({compiler.process(element.clauses, **kw)}) > 0)"


@compiles(_holds, "sqlite")
def _holds_on_sqlite(element: _holds, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(instr({compiler.process(element.clauses, **kw)}) > 0)"


def _newest_ruling() -> ColumnElement[str]:
    newest = (
        select(ConsentRuling.ruling)
        .where(ConsentRuling.response_id == Response.id)
        .order_by(ConsentRuling.created_at.desc(), ConsentRuling.id.desc())  # imported ones may come in any order
        .limit(1)
        .scalar_subquery()
    )
    return func.coalesce(newest, Ruling.PENDING.value)


def _asked_for(study: Study, kind: ArchiveKind, name_contains: str) -> list[ColumnElement[bool]]:
    """What was asked for, whoever asks. A row that ties a video to another study's response belongs to neither."""
    conditions: list[ColumnElement[bool]] = [
        Video.study_id == study.id,
        Response.study_id == study.id,
        ~_holds(Video.object_key, literal(DISREGARD, Text)),
    ]
    if kind is ArchiveKind.CONSENT:
        conditions.append(Video.is_consent_footage == true())
    if name_contains:
        conditions.append(_holds(Video.object_key, literal(name_contains, Text)))
    return conditions


def _of(sources: frozenset[Source]) -> ColumnElement[bool]:
    return Response.is_preview.in_([source is Source.PREVIEWS for source in sources])


def _let_out(kind: ArchiveKind) -> ColumnElement[bool]:
    """Whether the family's consent lets the video out. Consent footage is what one looks at in order to rule."""
    return true() if kind is ArchiveKind.CONSENT else _newest_ruling() == Ruling.ACCEPTED.value


def _look(
    session: Session, user: User, study: Study, kind: ArchiveKind, name_contains: str
) -> tuple[frozenset[Source], _Census]:
    """Whose videos the person may see, and what there is in numbers. Raises where nothing may be seen at all."""
    if not name_part_can_be_asked_for(name_contains):
        raise InvalidRequest(
            f"no object name can hold {name_contains[:80]!r}: give at most {LONGEST_NAME_PART} characters of text"
        )
    sources = open_sources(session, user, study, kind)
    if not sources:
        raise _denied(user, study, kind, frozenset(Source))
    is_open = case((_of(sources), True), else_=False)
    is_let_out = case((_let_out(kind), True), else_=False)
    is_gone = case((Video.gone_at.is_not(None), True), else_=False)
    each = (
        select(is_open.label("is_open"), is_let_out.label("is_let_out"), is_gone.label("is_gone"))
        .select_from(Video)
        .join(Response, Response.id == Video.response_id)
        .where(*_asked_for(study, kind, name_contains))
        .subquery()
    )
    census = select(each, func.count()).group_by(*each.columns)
    numbers: dict[Any, Any] = {}
    for *which, count in session.execute(census):
        numbers[tuple(map(bool, which))] = count
    return sources, _Census(numbers)


def name_part_can_be_asked_for(name_contains: str) -> bool:
    """Whether the text fits the request's column on both databases."""
    try:
        name_contains.encode()
    except UnicodeEncodeError:
        return False
    return len(name_contains) <= LONGEST_NAME_PART and "\x00" not in name_contains


def _video(row: Row[*tuple[Any, ...]]) -> SelectedVideo:
    return SelectedVideo(
        id=row.id,
        response_id=row.response_id,
        object_key=row.object_key,
        frame_id=row.frame_id,
        response_uuid=row.response_uuid,
        source=Source.PREVIEWS if row.is_preview else Source.FAMILIES,
        recorded_at=row.recorded_at,
        size_bytes=row.size_bytes,
        etag=row.etag,
        is_consent_footage=row.is_consent_footage,
        ruling=Ruling(row.ruling),
        bucket=row.bucket,
    )


def _fates(
    session: Session, study: Study, kind: ArchiveKind, request_id: int
) -> dict[tuple[_Fate, Source | None], int]:
    """How many videos of the request's archive fared how; whose they are, where they still have a row."""
    fate = case(
        (Response.id.is_(None), _Fate.DELETED.name),
        (Video.gone_at.is_not(None), _Fate.GONE.name),
        (not_(_let_out(kind)), _Fate.WITHOUT_CONSENT.name),
        else_=_Fate.GIVEN_OUT.name,
    )
    is_the_same = and_(
        Video.id == ArchiveContent.video_id,
        Video.response_id == ArchiveContent.response_id,
        Video.object_key == ArchiveContent.object_key,
    )
    each = (
        select(fate.label("fate"), Response.is_preview.label("is_preview"))
        .select_from(ArchiveContent)
        .outerjoin(Video, is_the_same)
        .outerjoin(Response, and_(Response.id == Video.response_id, *_asked_for(study, kind, "")))
        .where(ArchiveContent.archive_request_id == request_id)
        .subquery()
    )
    counts = select(each.c.fate, each.c.is_preview, func.count()).group_by(each.c.fate, each.c.is_preview)
    whose = {None: None, False: Source.FAMILIES, True: Source.PREVIEWS}
    return {(_Fate[fate], whose[is_preview]): count for fate, is_preview, count in session.execute(counts)}


def _nothing_left(
    session: Session,
    user: User,
    study: Study,
    kind: ArchiveKind,
    name_contains: str,
    sources: frozenset[Source],
    census: _Census,
) -> DomainError:
    """Why there is nothing: permission that lacks comes first, since it is what somebody can do something about."""
    if census.count(is_open=False, is_let_out=True, is_gone=False):
        return _denied(user, study, kind, frozenset(Source) - sources)
    what = "consent videos" if kind is ArchiveKind.CONSENT else "videos"
    what += f" of {next(iter(sources))}" if len(sources) == 1 else ""
    what += f" whose name contains {name_contains!r}" if name_contains else ""
    the_study = f"the study {study.name!r}"
    if count := census.count(is_open=True, is_let_out=True, is_gone=True):
        return InvalidRequest(
            f"{the_study} has no {what} any more: all {count} are gone from the bucket; ask the operator why"
        )
    if count := census.count(is_open=True, is_let_out=False, is_gone=False):
        return InvalidRequest(
            f"{the_study} has no {what} to give out: there are {count}, but none is of a response whose newest consent"
            " ruling is 'accepted'; rule on consent first"
        )
    unmarked, frames = unmarked_frames(session, study)
    if kind is ArchiveKind.CONSENT and unmarked:
        return InvalidRequest(
            f"{the_study} has no {what}: {unmarked} of its videos carry no mark of consent footage, those of the frames"
            f" {frames}. If one of these films consent, have a site admin mark it: `lookit-ops videos mark-consent"
            f" {study.uuid} FRAME`"
        )
    return InvalidRequest(f"{the_study} has no {what}")


def _denied(user: User, study: Study, kind: ArchiveKind, closed: frozenset[Source]) -> PermissionDenied:
    if not user.is_active:
        return PermissionDenied(f"the account of {user.email} is inactive: it holds no permission at all")
    lacking = ", and ".join(
        f"{' or '.join(WHO_GETS[kind][source])} (videos of {source})" for source in Source if source in closed
    )
    return PermissionDenied(f"{user.email} lacks {lacking} {describe(study)}; {who_grants(study)}")
