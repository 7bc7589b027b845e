"""Makes the archive of a plan: parts read and sent several at a time, then joined in one step. Nothing on disk.

A part's videos are read one after the other while it is sent, so what is in memory is a few megabytes for each part
under way. Whatever happens, the parts are removed; what a killed process leaves is removed by `runs/archive_parts.py`.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

from ember_build.errors import BuildCancelled
from ember_build.waiting import Grace, answer_of
from lookit_ops.archives.plan import GIVEN_UP, ArchivePlan, require_wanted
from lookit_ops.archives.zip_format import PART_BYTES, Member, Written, cut, end_blocks, part_blocks
from lookit_ops.storage.archives import ArchiveBucket, StoredPart, UploadForgotten
from lookit_ops.storage.experiments import StorageError
from lookit_ops.storage.parallel import in_parallel
from lookit_ops.storage.videos import VideoBucket, read_video

logger = logging.getLogger(__name__)

PARTS_AT_ONCE = 12
REPORT_SECONDS = 5.0
"""Between two lines of progress."""
LOOK_SECONDS = 0.5
"""How often the thread that waits for the parts looks whether to go on."""
DELETES_AT_ONCE = 16
UPLOADS = 3
"""How often a part is sent whose upload the storage forgets."""
Answer = TypeVar("Answer")


class Halted(Exception):
    """A part was given up because another one failed; never seen outside."""


@dataclass
class Progress:
    """What has gone through so far; the threads that read add to it."""

    total_files: int
    total_bytes: int
    files: int = 0
    bytes: int = 0
    began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, files: int = 0, size_bytes: int = 0) -> None:
        """Count."""
        with self._lock:
            self.files += files
            self.bytes += size_bytes

    @property
    def bytes_per_second(self) -> float:
        """The rate since the beginning."""
        return self.bytes / max(time.monotonic() - self.began, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None before there is one."""
        return (self.total_bytes - self.bytes) / self.bytes_per_second if self.bytes else None

    def __str__(self) -> str:
        """One line for people."""
        left = self.seconds_left
        return (
            f"{self.files:,} of {self.total_files:,} videos, {self.bytes / 1e6:,.0f} of"
            f" {self.total_bytes / 1e6:,.0f} MB, {self.bytes_per_second / 1e6:,.1f} MB/s"
            + (f", {_duration(left)} left" if left is not None else "")
        )


def stream_archive(
    plan: ArchivePlan,
    videos: VideoBucket,
    archives: ArchiveBucket,
    scratch: str,
    *,
    stop: threading.Event | None = None,
    before_commit: Callable[[], None] = lambda: None,
    report: Callable[[Progress], None] = lambda progress: logger.info("%s", progress),
    part_bytes: int = PART_BYTES,
    parts_at_once: int = PARTS_AT_ONCE,
) -> int:
    """Put the archive into the bucket, whole or not at all; returns its size in bytes.

    `scratch` is a folder of the bucket that is this worker's alone; it is empty afterwards. `stop` ends the work from
    outside with StorageError; `before_commit` is asked when nothing is left to do but to join the parts, and may raise.
    Raises VideoChanged when the plan no longer fits the bucket, StorageError when one of the buckets fails.
    """
    listed = {video.name: video.listed for video in plan.videos}
    parts = cut([video.member for video in plan.videos], part_bytes)
    progress = Progress(len(plan.videos), plan.video_bytes)
    stop = stop or threading.Event()
    grace = Grace(stop)
    halted = threading.Event()

    def answer(ask: Callable[[], Answer], what: str) -> Answer:
        try:
            return answer_of(ask, grace, what)
        except BuildCancelled:
            raise StorageError(GIVEN_UP) from None

    def check() -> None:
        if halted.is_set() or stop.is_set():
            raise Halted

    def read(member: Member) -> Generator[bytes]:
        with closing(read_video(videos, listed[member.name], check=check)) as blocks:
            for block in blocks:
                yield block
                progress.add(size_bytes=len(block))
        progress.add(files=1)

    def send(place: int, members: Sequence[Member]) -> tuple[StoredPart, list[Written]]:
        check()
        return answer(lambda: read_and_put(place, members), "a part was sent")

    def read_and_put(place: int, members: Sequence[Member]) -> tuple[StoredPart, list[Written]]:
        size = sum(member.encoded_bytes for member in members)
        for attempt in range(1, UPLOADS + 1):
            written: list[Written] = []
            # Closed here: a connection that an error keeps alive in its traceback would stay open for long.
            with closing(part_blocks(members, read, written.append)) as blocks:
                try:
                    return archives.put_part(f"{scratch}/{place:06}", blocks, size), written
                except UploadForgotten as error:
                    if attempt == UPLOADS:
                        raise
                    logger.warning("%s; sending it again", error)
            check()
        raise AssertionError("the last attempt returns or raises")

    try:
        with ThreadPoolExecutor(parts_at_once, thread_name_prefix="archive") as pool:
            futures = [pool.submit(send, place, members) for place, members in enumerate(parts)]
            try:
                _wait_for(futures, progress, report, stop)
            except BaseException as error:
                if not isinstance(error, Exception):
                    stop.set()  # an interruption: the threads end at once, too
                raise
            finally:
                halted.set()
                pool.shutdown(wait=True, cancel_futures=True)
        sent = [future.result() for future in futures]
        begins = itertools.accumulate((part.size_bytes for part, _ in sent), initial=0)
        written = [(begin, item) for begin, (_, items) in zip(begins, sent, strict=False) for item in items]
        manifest, contents = plan.manifest()
        end = end_blocks(written, manifest, contents)
        last = answer(lambda: archives.put_part(f"{scratch}/end", iter([end]), len(end)), "the last part was sent")
        everything = [*(part for part, _ in sent), last]
        before_commit()
        answer(lambda: archives.compose(plan.archive_key, everything, scratch), "the parts were joined")
        return sum(part.size_bytes for part in everything)
    except BaseException as error:
        if not isinstance(error, Exception):
            stop.set()  # an interruption: what removes the parts must not wait for long
        raise
    finally:
        _remove_parts(archives, scratch, answer)


def _remove_parts(archives: ArchiveBucket, scratch: str, answer: Callable[[Callable[[], None], str], None]) -> None:
    """Empty a folder of parts. What cannot be removed now is left to the reconciler, and the log says so."""

    def remove() -> None:
        keys = [file.key for file in archives.files(f"{scratch}/")]
        for _ in in_parallel([lambda key=key: archives.delete(key) for key in keys], DELETES_AT_ONCE):
            pass

    try:
        answer(remove, "its parts were removed")
    except StorageError as error:
        logger.warning("parts of an archive stay in %s until the next clean-up: %s", scratch, error)


def _wait_for(
    futures: Sequence[Future[tuple[StoredPart, list[Written]]]],
    progress: Progress,
    report: Callable[[Progress], None],
    stop: threading.Event,
) -> None:
    """Wait for all, telling how far they are. Raises the first error that one of them ended with."""
    waiting = set(futures)
    reported = time.monotonic()
    while waiting:
        done, waiting = wait(waiting, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
        require_wanted(stop)
        for future in done:
            future.result()
        if time.monotonic() - reported > REPORT_SECONDS:
            report(progress)
            reported = time.monotonic()
    report(progress)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
