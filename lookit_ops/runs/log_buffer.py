"""What a run says, kept in bounded memory: the head and the tail of each stream of lines, secrets redacted."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from domain.studies.log import bounded
from lookit_ops.redaction import Redactor

HEAD_CHARACTERS = 200_000
TAIL_CHARACTERS = 200_000


class Transcript:
    """Lines as they come; when there are too many, the middle is forgotten and counted. Safe between threads."""

    def __init__(self, redact: Redactor, head: int = HEAD_CHARACTERS, tail: int = TAIL_CHARACTERS) -> None:
        self._redact = redact
        self._head_room, self._tail_room = head, tail
        self._longest = tail
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self._forgotten = 0
        self._lock = threading.Lock()

    def add(self, line: str) -> str:
        """Keep a line; returns it as it was kept: redacted, and of one that is too long only head and tail."""
        line = bounded(self._redact(line), self._longest)
        with self._lock:
            if not self._tail and len(line) < self._head_room:
                self._head_room -= len(line) + 1
                self._head.append(line)
            else:
                self._head_room = 0
                self._tail.append(line)
                self._tail_size += len(line) + 1
                while self._tail_size > self._tail_room and len(self._tail) > 1:
                    self._tail_size -= len(self._tail.popleft()) + 1
                    self._forgotten += 1
        return line

    def redacted(self, text: str) -> str:
        """The text without secrets, not kept."""
        return self._redact(text)

    def tail(self, lines: int) -> str:
        """The last lines."""
        with self._lock:
            return "\n".join([*self._head, *self._tail][-lines:])

    def text(self) -> str:
        """All that is kept, with a line that says what is not."""
        with self._lock:
            gap = [f"[… {self._forgotten:,} lines left out …]"] if self._forgotten else []
            return "\n".join([*self._head, *gap, *self._tail])


class TranscriptHandler(logging.Handler):
    """Copies log records into a transcript, and on to wherever else they should be seen."""

    def __init__(self, transcript: Transcript, forward: Callable[[int, str], None]) -> None:
        super().__init__(logging.INFO)
        self._transcript = transcript
        self._forward = forward
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._transcript.add(self.format(record))
            self._forward(record.levelno, self._transcript.redacted(record.getMessage()))
        except Exception:  # the contract of logging.Handler: a log line must never end the work it tells of
            self.handleError(record)
