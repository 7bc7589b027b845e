"""Ways in which a GitHub misbehaves, as hooks for the local one, and archives that nobody should trust."""

from __future__ import annotations

import io
import re
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from lookit_ops.demo.github_server import Answer

Fault = Callable[[Answer], Answer | None]


@dataclass
class Faults:
    """A hook that records every request and spoils the answers to those whose path matches.

    `times=None` means for ever.
    """

    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    _plans: list[tuple[re.Pattern[str], Fault, list[int | None]]] = field(default_factory=list)

    def on(self, path: str, fault: Fault, times: int | None = None) -> Faults:
        self._plans.append((re.compile(path), fault, [times]))
        return self

    def paths(self, pattern: str = "") -> list[str]:
        return [path for path, _ in self.requests if re.search(pattern, path)]

    def __call__(self, path: str, headers: Mapping[str, str], answer: Answer) -> Answer | None:
        self.requests.append((path, headers))
        for pattern, fault, left in self._plans:
            if pattern.search(path) and left[0] != 0:
                left[0] = None if left[0] is None else left[0] - 1
                return fault(answer)
        return answer


def status(code: int, message: str = "Something", **headers: str) -> Fault:
    """Answer this status; header names are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: replace((said := Answer.of_json(code, {"message": message})), headers={**said.headers, **named})


def hang_up(_: Answer) -> None:
    """Close the connection without a word."""


def truncate(answer: Answer) -> Answer:
    """Promise the whole body, send half."""
    return replace(answer, body=answer.body[: len(answer.body) // 2])


def cut_silently(answer: Answer) -> Answer:
    """Send half a body as if it were the whole one."""
    return body(answer.body[: len(answer.body) // 2])(answer)


def body(content: bytes, content_type: str = "application/zip") -> Fault:
    """Answer 200 with this body."""
    return lambda _: Answer.of(200, content, content_type)


def without_length(answer: Answer) -> Answer:
    """Do not say how long the body is."""
    return replace(answer, headers={k: v for k, v in answer.headers.items() if k != "Content-Length"})


def redirect(location: str, code: int = 302) -> Fault:
    return lambda _: Answer.of(code, b"", "text/plain", Location=location)


def archive_of(entries: Mapping[str, bytes] | list[tuple[str | zipfile.ZipInfo, bytes]], comment: bytes = b"") -> bytes:
    """A zip archive of just these entries, whatever their names."""
    listed = list(entries.items()) if isinstance(entries, Mapping) else entries
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.comment = comment
        for entry, content in listed:
            zipped.writestr(entry, content)
    return buffer.getvalue()


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    """A zip entry of any name and Unix mode, file type included."""
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name  # the constructor would cut at a NUL
    info.create_system = 3
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
