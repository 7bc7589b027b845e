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
from lookit_ops.storage.archives import ArchiveBucket, StoredPart
from lookit_ops.storage.errors import StorageError, UploadForgotten
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
    work = _Work(plan, videos, archives, scratch, stop or threading.Event())
    try:
        sent = work.send_parts(cut([video.member for video in plan.videos], part_bytes), parts_at_once, report)
        everything = [*(part for part, _ in sent), work.send_end(sent)]
        before_commit()
        work.answer(lambda: archives.compose(plan.archive_key, everything, scratch), "the parts were joined")
        return sum(part.size_bytes for part in everything)
    except BaseException as error:
        if not isinstance(error, Exception):
            work.stop.set()  # an interruption: what removes the parts must not wait for long
        raise
    finally:
        _remove_parts(archives, scratch, work.answer)


SentPart = tuple[StoredPart, list[Written]]


class _Work:
    """The parts of one archive on their way from one bucket into the other."""

    def __init__(
        self, plan: ArchivePlan, videos: VideoBucket, archives: ArchiveBucket, scratch: str, stop: threading.Event
    ) -> None:
        self.plan, self.videos, self.archives, self.scratch, self.stop = plan, videos, archives, scratch, stop
        self.listed = {video.name: video.listed for video in plan.videos}
        self.progress = Progress(len(plan.videos), plan.video_bytes)
        self._grace = Grace(stop)
        self._halted = threading.Event()

    def answer(self, ask: Callable[[], Answer], what: str) -> Answer:
        """Return what `ask` returns; once the worker is told to stop, wait for a moment only."""
        try:
            return answer_of(ask, self._grace, what)
        except BuildCancelled:
            raise StorageError(GIVEN_UP) from None

    def send_parts(
        self, parts: Sequence[Sequence[Member]], at_once: int, report: Callable[[Progress], None]
    ) -> list[SentPart]:
        """Send the parts, several at once, in the order of the archive. Raises the first error of one."""
        with ThreadPoolExecutor(at_once, thread_name_prefix="archive") as pool:
            futures = [pool.submit(self._send, place, members) for place, members in enumerate(parts)]
            try:
                _wait_for(futures, self.progress, report, self.stop)
            except BaseException as error:
                if not isinstance(error, Exception):
                    self.stop.set()  # an interruption: the threads end at once, too
                raise
            finally:
                self._halted.set()
                pool.shutdown(wait=True, cancel_futures=True)
        return [future.result() for future in futures]

    def send_end(self, sent: Sequence[SentPart]) -> StoredPart:
        """Send the last part: the manifest, and the directory of all that was sent."""
        begins = itertools.accumulate((part.size_bytes for part, _ in sent), initial=0)
        written = [(begin, item) for begin, (_, items) in zip(begins, sent, strict=False) for item in items]
        end = end_blocks(written, *self.plan.manifest())
        key = f"{self.scratch}/end"
        return self.answer(lambda: self.archives.put_part(key, iter([end]), len(end)), "the last part was sent")

    def _send(self, place: int, members: Sequence[Member]) -> SentPart:
        self._check()
        return self.answer(lambda: self._read_and_put(place, members), "a part was sent")

    def _read_and_put(self, place: int, members: Sequence[Member]) -> SentPart:
        size = sum(member.encoded_bytes for member in members)
        for attempt in range(1, UPLOADS + 1):
            written: list[Written] = []
            # Closed here: a connection that an error keeps alive in its traceback would stay open for long.
            with closing(part_blocks(members, self._read, written.append)) as blocks:
                try:
                    return self.archives.put_part(f"{self.scratch}/{place:06}", blocks, size), written
                except UploadForgotten as error:
                    if attempt == UPLOADS:
                        raise
                    logger.warning("%s; sending it again", error)
            self._check()
        raise AssertionError("the last attempt returns or raises")

    def _read(self, member: Member) -> Generator[bytes]:
        with closing(read_video(self.videos, self.listed[member.name], check=self._check)) as blocks:
            for block in blocks:
                yield block
                self.progress.add(size_bytes=len(block))
        self.progress.add(files=1)

    def _check(self) -> None:
        if self._halted.is_set() or self.stop.is_set():
            raise Halted


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
    futures: Sequence[Future[SentPart]],
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
