"""Turns the output of a program that may print anything into lines of text, and bounds how many of them are kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_MAX_LINE_BYTES = 4000
_HELD_LINES = 100


class BoundedOutput:
    """Passes lines on until `max_bytes`, then keeps the last hundred for the end: the reason of a failure is there."""

    def __init__(self, on_line: Callable[[str], None], max_bytes: int) -> None:
        self._on_line = on_line
        self._max_bytes = max_bytes
        self._passed_bytes = 0
        self._left_out = 0
        self._held: deque[str] = deque(maxlen=_HELD_LINES)

    def add(self, line: str) -> None:
        size = len(line.encode()) + 1
        if not self._held and self._passed_bytes + size <= self._max_bytes:
            self._passed_bytes += size
            self._on_line(line)
            return
        if len(self._held) == _HELD_LINES:
            self._left_out += 1
        self._held.append(line)

    def close(self) -> None:
        if self._left_out:
            self._on_line(f"[{self._left_out:,} lines left out: the output is longer than {self._max_bytes:,} bytes]")
        while self._held:
            self._on_line(self._held.popleft())


class Lines:
    """Cuts a stream of bytes into lines of text, with a memory that does not grow with what arrives."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""
        self._skipping = False
        self._ended_by_return = False

    def add(self, data: bytes) -> None:
        # A return at the end of one piece and a line feed at the beginning of the next are one line break.
        if self._ended_by_return and data.startswith(b"\n"):
            data = data[1:]
            self._ended_by_return = False
        if data:
            self._ended_by_return = data.endswith(b"\r")
        *lines, rest = (self._rest + data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).split(b"\n")
        for line in lines:
            if not self._skipping:
                self._tell(line)
            self._skipping = False
        self._rest = b"" if self._skipping else rest
        if len(self._rest) > _MAX_LINE_BYTES:
            self._tell(self._rest)
            self._rest, self._skipping = b"", True

    def close(self) -> None:
        if self._rest:
            self._tell(self._rest)
            self._rest = b""

    def _tell(self, line: bytes) -> None:
        text = line[:_MAX_LINE_BYTES].decode("utf-8", "replace").replace("\x00", "\ufffd")
        self._on_line(text + " [cut]" if len(line) > _MAX_LINE_BYTES else text)
