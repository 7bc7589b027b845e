"""The names of video objects in S3, read and written.

`videoStream_{study uuid}_{frame id}_{response uuid}_{unix time in ms}_{random digits}.mp4` (or `.webm`), for consent
footage perhaps with `consent-` before it. The recorder gives these names; what deviates is reported, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Self
from uuid import UUID

CONSENT_PREFIX = "consent-"
DISREGARD = "PREVIEW_DATA_DISREGARD"
"""Keys that hold this text come from frames that a researcher tried out alone; they belong to nobody's response."""

LONGEST_FRAME_ID = 255
"""Characters of `video.frame_id`."""

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_FORM = re.compile(
    rf"(?P<prefix>{CONSENT_PREFIX})?videoStream_(?P<study>{_UUID})_(?P<frame>[^_/\\]+)_(?P<response>{_UUID})"
    r"_(?P<ms>[0-9]{13})_(?P<digits>[0-9]+)\.(?P<container>mp4|webm)"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Reason(StrEnum):
    """Why a name is not taken for a video of a response."""

    DISREGARDED = "disregarded"
    MALFORMED = "malformed"


class Container(StrEnum):
    """The format of the file."""

    MP4 = "mp4"
    WEBM = "webm"


@dataclass(frozen=True, slots=True)
class Unparsable:
    """An object name that says nothing certain, and why."""

    object_key: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class VideoKey:
    """What an object's name says of its video. Thirteen digits of milliseconds reach from 2001 to 2286.

    `object_key` gives the name back, character by character.
    """

    study_uuid: UUID
    frame_id: str
    response_uuid: UUID
    unix_ms: int
    digits: str
    container: Container = Container.MP4
    has_consent_prefix: bool = False

    @classmethod
    def parse(cls, object_key: str) -> Self | Unparsable:
        """The parts of the name, or why it is none. A time in seconds, say, is malformed: it would read as 1970."""
        if DISREGARD in object_key:
            return Unparsable(object_key, Reason.DISREGARDED)
        form = _FORM.fullmatch(object_key)
        if form is None or len(form["frame"]) > LONGEST_FRAME_ID or not form["frame"].isprintable():
            return Unparsable(object_key, Reason.MALFORMED)
        return cls(
            study_uuid=UUID(form["study"]),
            frame_id=form["frame"],
            response_uuid=UUID(form["response"]),
            unix_ms=int(form["ms"]),
            digits=form["digits"],
            container=Container(form["container"]),
            has_consent_prefix=form["prefix"] is not None,
        )

    @property
    def object_key(self) -> str:
        """The name of the object."""
        prefix = CONSENT_PREFIX if self.has_consent_prefix else ""
        return (
            f"{prefix}videoStream_{self.study_uuid}_{self.frame_id}_{self.response_uuid}"
            f"_{self.unix_ms:013d}_{self.digits}.{self.container}"
        )

    @property
    def recorded_at(self) -> datetime:
        """When the recording began, in UTC."""
        return _EPOCH + timedelta(milliseconds=self.unix_ms)

    @property
    def is_consent_footage(self) -> bool:
        """Whether the name or its frame id marks footage of a parent who gives consent."""
        return self.has_consent_prefix or self.frame_id.startswith(CONSENT_PREFIX)


def prefixes_of(study_uuid: UUID) -> tuple[str, str]:
    """The prefixes under which a listing of the bucket finds all of a study's videos, in the order of names."""
    return f"{CONSENT_PREFIX}videoStream_{study_uuid}_", f"videoStream_{study_uuid}_"


def bare_etag(etag: str) -> str:
    """The ETag without the quotation marks in which S3 sends it."""
    return etag.removeprefix('"').removesuffix('"')
