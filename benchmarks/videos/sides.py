"""The sides of the video benchmarks, each in a process of its own, so that its memory and its CPU time are its alone.

`python -m benchmarks.videos.sides SIDE S3 BUCKET GCS ARCHIVES COUNT` zips the first COUNT videos of a bucket of S3 into
a bucket of Google Cloud Storage, and prints a `Measured` as JSON. The sides:

    ours                as many parts at once as in production
    one_stream          the same, one part at a time
    deflating_stream    the predecessor's second way: each video read to its end, into a deflating zip on its way up
    disk                the predecessor's first way: download everything, zip it on the disk, upload the file
    bare_copy           no zip at all: the same bytes from bucket to bucket by the same clients, as many videos at once
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from pydantic import SecretStr

from domain.models.responses import Ruling
from domain.videos.object_names import Unparsable, VideoKey
from domain.videos.selection import SelectedVideo, Source, basis_of
from lookit_ops.archives.plan import ArchivePlan, PlannedVideo
from lookit_ops.archives.stream import PARTS_AT_ONCE, stream_archive
from lookit_ops.storage.gcs.archives import GcsArchiveBucket
from lookit_ops.storage.gcs.client import GcsAccess
from lookit_ops.storage.parallel import in_parallel
from lookit_ops.storage.s3 import S3VideoBucket
from lookit_ops.storage.videos import ListedVideo, read_video
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY
from tests.support.s3_server import S3Server as Server


@dataclass(frozen=True, slots=True)
class Measured:
    """What one side took. `read_bytes` are those of the videos."""

    seconds: float
    read_bytes: int
    cpu_seconds: float
    peak_rss_bytes: int
    disk_bytes: int

    @property
    def mb_per_second(self) -> float:
        return self.read_bytes / self.seconds / 1e6

    @property
    def cpu_seconds_per_gb(self) -> float:
        return self.cpu_seconds / (self.read_bytes / 1e9)


@dataclass(frozen=True)
class Task:
    """What to zip, from where, to where."""

    s3: str
    bucket: str
    gcs: str
    archives: str
    videos: list[ListedVideo]
    source: S3VideoBucket
    target: GcsArchiveBucket

    @property
    def key(self) -> str:
        return f"{uuid4()}.zip"


def plan_of(videos: list[ListedVideo]) -> ArchivePlan:
    """The plan that the job would have made of these videos."""
    planned = []
    for number, listed in enumerate(videos):
        key = VideoKey.parse(listed.key)
        if isinstance(key, Unparsable):
            raise TypeError(f"{listed.key} is no name of a video")
        selected = SelectedVideo(
            id=number,
            response_id=number,
            object_key=listed.key,
            frame_id=key.frame_id,
            response_uuid=key.response_uuid,
            source=Source.FAMILIES,
            recorded_at=key.recorded_at,
            size_bytes=listed.size_bytes,
            etag=listed.etag,
            is_consent_footage=False,
            ruling=Ruling.ACCEPTED,
        )
        planned.append(PlannedVideo(selected, listed, listed.key))
    basis = basis_of(video.selected for video in planned)
    return ArchivePlan(f"{uuid4()}.zip", tuple(planned), (), 0, 0, basis)


def ours(task: Task, parts_at_once: int = PARTS_AT_ONCE) -> None:
    plan = plan_of(task.videos)
    stream_archive(
        plan,
        task.source,
        task.target,
        f".parts/{uuid4()}",
        report=lambda _progress: None,
        parts_at_once=parts_at_once,
    )


def one_stream(task: Task) -> None:
    ours(task, parts_at_once=1)


def deflating_stream(task: Task) -> None:
    client, blob = task.source._client, task.target._bucket.blob(task.key)
    with blob.open("wb", ignore_flush=True) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for video in task.videos:
            archive.writestr(video.key, client.get_object(Bucket=task.bucket, Key=video.key)["Body"].read())


def disk(task: Task) -> None:
    client, blob = task.source._client, task.target._bucket.blob(task.key)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for video in task.videos:
            client.download_file(task.bucket, video.key, str(folder / video.key))
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:
            for video in task.videos:
                archive.write(folder / video.key, video.key)
        blob.upload_from_filename(str(folder / "all.zip"))


def bare_copy(task: Task) -> None:
    def copy(video: ListedVideo) -> None:
        task.target.put_part(f"{task.key}/{video.key}", read_video(task.source, video), video.size_bytes)

    for _ in in_parallel([lambda video=video: copy(video) for video in task.videos], PARTS_AT_ONCE):
        pass


SIDES: dict[str, Callable[[Task], None]] = {
    side.__name__: side for side in (ours, one_stream, deflating_stream, disk, bare_copy)
}


def measure(side: str, s3: str, bucket: str, gcs: str, archives: str, count: int) -> Measured:
    """Run one side here and now."""
    access = Server(s3, None).access(
        access_key_id=SecretStr(ACCESS_KEY), secret_access_key=SecretStr(SECRET_KEY), read_timeout=60
    )
    source = S3VideoBucket(bucket, access)
    target = GcsArchiveBucket(archives, GcsAccess(endpoint=gcs))
    videos = list(source.videos())[:count]
    if len(videos) != count:
        raise ValueError(f"{bucket} holds {len(videos)} videos, and {count} were to be zipped")
    task = Task(s3, bucket, gcs, archives, videos, source, target)
    target.size_of("connects")
    written, cpu, began = _written(), time.process_time(), time.monotonic()
    SIDES[side](task)
    measured = Measured(
        seconds=time.monotonic() - began,
        read_bytes=sum(video.size_bytes for video in videos),
        cpu_seconds=time.process_time() - cpu,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        disk_bytes=_written() - written,
    )
    source.close()
    target.close()
    return measured


def _written() -> int:
    """What this process has caused to be written to a disk, in bytes (Linux)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


if __name__ == "__main__":
    side, s3, bucket, gcs, archives, count = sys.argv[1:]
    print(json.dumps(asdict(measure(side, s3, bucket, gcs, archives, int(count)))))
