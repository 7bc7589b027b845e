"""What goes into an archive: the person's videos as the bucket has them now, what is missing, and its name."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from domain.errors import InvalidRequest
from domain.escaping import one_line
from domain.models import Study, User
from domain.requests.archives import ArchiveClaim, ArchiveFacts, MissingVideo
from domain.videos.archive_names import MANIFEST_NAME, archive_key, member_names
from domain.videos.manifest import ManifestRow, manifest_csv
from domain.videos.object_names import prefixes_of
from domain.videos.selection import Basis, SelectedVideo, basis_of, select_videos
from lookit_ops.archives.zip_format import Member
from lookit_ops.services import Services
from lookit_ops.storage.errors import StorageError, VideoUnreadable
from lookit_ops.storage.parallel import in_parallel
from lookit_ops.storage.video_buckets import VideoBuckets
from lookit_ops.storage.videos import COLD, ListedVideo, VideoBucket

logger = logging.getLogger(__name__)

GIVEN_UP = "the archive was given up: its worker was told to stop"
NOT_LISTED = "the bucket of videos did not have it when the archive was made"
NOT_READ = "its bucket, {bucket}, is not among those that this platform reads"
GONE_BEFORE = "the catalogue had found it gone from the bucket of videos before"
LOOKS_AT_ONCE = 16
_MANIFEST_TIME = datetime(2000, 1, 1, tzinfo=UTC)
"""Always the same: two archives of the same videos are the same bytes."""


@dataclass(frozen=True, slots=True)
class PlannedVideo:
    """A video that goes in: as the database and as the bucket knows it, and its name in the archive."""

    selected: SelectedVideo
    listed: ListedVideo
    name: str

    @property
    def member(self) -> Member:
        """What the zip is told of it."""
        return Member(self.name, self.listed.size_bytes, self.selected.recorded_at)


@dataclass(frozen=True, slots=True)
class ArchivePlan:
    """One archive, by its name: the videos by the time of their recording, and those that should be there and are not.

    New recordings come last, so that an archive of more videos begins like that of fewer.
    """

    archive_key: str
    videos: tuple[PlannedVideo, ...]
    missing: tuple[tuple[SelectedVideo, str], ...]
    without_permission: int
    without_consent: int
    basis: Basis

    @property
    def video_bytes(self) -> int:
        """What is to be read."""
        return sum(video.listed.size_bytes for video in self.videos)

    def manifest(self) -> tuple[Member, bytes]:
        """The list inside, as a file of the archive, and its bytes."""
        rows = [
            ManifestRow.included(
                video.selected,
                name=video.name,
                size_bytes=video.listed.size_bytes,
                etag=video.listed.etag,
            )
            for video in self.videos
        ]
        contents = manifest_csv([*rows, *(ManifestRow.missing(video, reason) for video, reason in self.missing)])
        return Member(MANIFEST_NAME, len(contents), _MANIFEST_TIME), contents

    def facts(self, archive_bytes: int, *, was_there: bool) -> ArchiveFacts:
        """What the ledger is told once the archive is there."""
        return ArchiveFacts(
            archive_key=self.archive_key,
            archive_bytes=archive_bytes,
            missing=tuple(MissingVideo(video.object_key, reason) for video, reason in self.missing),
            without_permission=self.without_permission,
            without_consent=self.without_consent,
            basis=self.basis,
            was_there=was_there,
        )


def _list(
    buckets: VideoBucket, study_uuid: UUID, videos: Sequence[SelectedVideo], stop: threading.Event
) -> dict[str, ListedVideo]:
    """What the buckets have of the videos, by key: also those whose names are not as the recorder gives them.

    A video that several buckets have is taken from the one that its row names.
    """
    prefixes = prefixes_of(study_uuid)
    places = {video.object_key: video.bucket for video in videos}
    listed: dict[str, ListedVideo] = {}

    def take(video: ListedVideo) -> None:
        if video.key not in listed or video.bucket == places.get(video.key):
            listed[video.key] = video

    def look(key: str) -> list[ListedVideo]:
        require_wanted(stop)
        return [video for video in buckets.videos(key) if video.key == key]

    for prefix in prefixes:
        for video in buckets.videos(prefix):
            take(video)
    elsewhere = [key for key in places if not key.startswith(tuple(prefixes))]
    for _, found in in_parallel([partial(look, key) for key in elsewhere], LOOKS_AT_ONCE):
        for video in found:
            take(video)
    return listed


def _why_not_listed(video: SelectedVideo, buckets: VideoBuckets) -> str:
    return NOT_LISTED if video.bucket in buckets.names else NOT_READ.format(bucket=one_line(video.bucket))


def require_wanted(stop: threading.Event) -> None:
    """Raise StorageError when the worker was told to stop."""
    if stop.is_set():
        raise StorageError(GIVEN_UP)


def probe(services: Services, plan: ArchivePlan, stop: threading.Event | None = None) -> dict[str, str]:
    """Ask for the beginning of each video; returns those that cannot be read, by key, with the reason.

    What else is the matter with a video shows when it is read. Raises StorageError if all are refused, since then it is
    not the videos, or once `stop` is set.
    """
    stop = stop or threading.Event()

    def refused(video: PlannedVideo) -> VideoUnreadable | None:
        require_wanted(stop)
        try:
            with closing(services.videos.blocks(video.listed, 0)) as blocks:
                next(blocks, b"")
        except VideoUnreadable as error:
            return error
        except StorageError as error:  # gone, replaced, or a connection that breaks: reading it says so, or does not
            logger.info("%s", error)
        return None

    acts = [partial(refused, video) for video in plan.videos]
    errors = {plan.videos[place].listed.key: error for place, error in in_parallel(acts, LOOKS_AT_ONCE) if error}
    if len(errors) == len(plan.videos):
        raise next(iter(errors.values()))
    return {key: error.reason for key, error in errors.items()}


def plan_archive(
    services: Services,
    claim: ArchiveClaim,
    unreadable: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
) -> ArchivePlan:
    """Select the person's videos and list the bucket.

    `unreadable` are objects, by key, that could not be read, with the reason: they count as missing. Raises
    InvalidRequest or PermissionDenied if nothing is left, StorageError once `stop` is set.
    """
    with services.sessions.begin() as session:
        study, user = session.get_one(Study, claim.study_id), session.get_one(User, claim.requested_by_id)
        selection = select_videos(session, user, study, claim.kind, claim.name_contains)
    listed = _list(services.videos, claim.study_uuid, selection.videos, stop or threading.Event())
    why = {key: COLD for key, video in listed.items() if video.is_cold} | dict(unreadable or {})
    found = [video for video in selection.videos if video.object_key in listed and video.object_key not in why]
    absent = [
        (video, why.get(video.object_key) or _why_not_listed(video, services.videos))
        for video in selection.videos
        if video.object_key not in listed or video.object_key in why
    ]
    gone = [(video, GONE_BEFORE) for video in selection.gone]
    if not found and why:
        reasons = Counter(reason for video, reason in absent)
        told = "; ".join(f"of {count}: {reason}" for reason, count in reasons.most_common())
        raise InvalidRequest(
            f"none of the {len(selection.videos)} videos of {claim.study_name!r} in {services.videos.name} can be read"
            f" now ({told})"
        )
    if not found:
        raise InvalidRequest(
            f"none of the {len(selection.videos)} videos that the catalogue has of {claim.study_name!r} is in"
            f" {services.videos.name}; the operator should look at the bucket, and run `lookit-ops videos catalogue`"
        )
    names = member_names(video.object_key for video in found)
    videos = [PlannedVideo(video, listed[video.object_key], names[video.object_key]) for video in found]
    videos.sort(key=lambda video: (video.selected.recorded_at, video.selected.object_key))
    missing = tuple(sorted([*absent, *gone], key=lambda pair: pair[0].object_key))
    return ArchivePlan(
        archive_key=archive_key(
            claim.study_uuid,
            claim.kind,
            [(video.listed.key, video.listed.etag) for video in videos],
            [video.object_key for video, _ in missing],
        ),
        videos=tuple(videos),
        missing=missing,
        without_permission=selection.without_permission,
        without_consent=selection.without_consent,
        basis=basis_of(found),
    )
