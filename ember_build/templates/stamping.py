"""Turns the bundle that was built for one study into the bundle that a build for another study would make.

All that a build knows of a study is its prefix, `/studies/{uuid}/`. Stamping replaces the prefix, and derives again
what the tool chain derives from contents: the md5 in file names, and integrity attributes. It follows references from
file to file. What it cannot explain it refuses: a guess would reach families.

No library does this: it depends on how broccoli-asset-rev names files. That one hashes a script or style after it has
written the names of pictures and fonts into it, and before it writes those of scripts and styles.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from ember_build.errors import NotStampable

T = TypeVar("T")
_PREFIX = re.compile(r"/studies/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})/")
_HEX = re.compile(rb"(?<![0-9a-fA-F])[0-9a-f]{32}(?![0-9a-fA-F])")
_SRI = re.compile(rb"(sha256|sha384|sha512)-([A-Za-z0-9+/]{43,86}={0,2})")
_OBJECT_KEY = re.compile(rb"""^(["'`]\s*:|%22%3A|%27%3A)""")
_CODE = (".js", ".css")
_COMPRESSED = frozenset({".gz", ".br", ".zst"})
_PIECE, _STEP = 8, 4
"""Any piece of 11 characters of a UUID is found; shorter ones show when a template is proved."""


def stamp(files: Mapping[str, bytes], prefix: str, wanted: str) -> dict[str, bytes]:
    """Return the bundle for the prefix `wanted`, given one that was built for `prefix`; both by path.

    Raises NotStampable. What is returned has been stamped back and found equal to what was given.
    """
    stamped = _stamped(files, prefix, wanted)
    back = _stamped(stamped, wanted, prefix)
    if different := first_difference(back, files):
        raise NotStampable(f"{different} does not come back as it was when the bundle is stamped back")
    return stamped


def first_difference(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> str | None:
    """Return the first path that only one of them has, or that has other contents; None if they are equal."""
    return next((path for path in sorted({*one, *other}) if one.get(path) != other.get(path)), None)


def read_folder(root: Path) -> dict[str, bytes]:
    """Return the files below a folder that holds plain files alone, by path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _stamped(files: Mapping[str, bytes], prefix: str, wanted: str) -> dict[str, bytes]:
    stamping = _Stamping(files, _study_of(prefix), _study_of(wanted))
    stamped: dict[str, bytes] = {}
    for path in files:
        new_path = stamping.path(path)
        if new_path in stamped:
            raise NotStampable(f"{path} gets the name of another file, {new_path}")
        stamped[new_path] = stamping.content(path)
    for path in files:
        plain, _, suffix = path.rpartition(".")
        if f".{suffix}" in _COMPRESSED and plain in files and stamping.content(plain) != files[plain]:
            raise NotStampable(f"{path} is a compressed copy of {plain}, which holds the study's prefix")
    return stamped


def _study_of(prefix: str) -> str:
    match = _PREFIX.fullmatch(prefix)
    if match is None:
        raise ValueError(f"{prefix!r} is not the prefix of a study, /studies/{{uuid}}/")
    return match[1]


@dataclass
class _Stamping:
    """One bundle on its way from one study to another. What depends on another file asks for it, each file once."""

    files: Mapping[str, bytes]
    study: str
    wanted: str
    _contents: dict[str, bytes] = field(default_factory=dict)
    _digests: dict[str, bytes | None] = field(default_factory=dict)
    _asked: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        old, new = f"/studies/{self.study}/", f"/studies/{self.wanted}/"
        self.forms = [(old.encode(), new.encode()), (quote(old, safe="").encode(), quote(new, safe="").encode())]
        pieces = [self.study[at : at + _PIECE] for at in range(0, len(self.study) - _PIECE + 1, _STEP)]
        self.traces = [piece.encode() for piece in pieces] + [piece[::-1].encode() for piece in pieces]
        self.encoded = [_base64_piece(self.study, shift) for shift in range(3)]
        for path, content in self.files.items():
            self._require_plain(path, content)

    def _require_plain(self, path: str, content: bytes) -> None:
        """Refuse a file that shows the study otherwise than by its whole prefix."""
        if self.study in path.lower():
            raise NotStampable(f"{path} has the study's UUID in its name")
        rest = content
        for old, _ in self.forms:
            for place in _places(content, old):
                if _OBJECT_KEY.match(content[place + len(old) : place + len(old) + 8]):
                    raise NotStampable(
                        f"{path} has the study's prefix as the key of an object, whose order may follow it"
                    )
            rest = rest.replace(old, b"\0")
        if len(rest) != len(content):
            try:
                content.decode()
            except UnicodeDecodeError:
                raise NotStampable(f"{path} holds the study's prefix and is not text in UTF-8") from None
        folded = rest.lower()
        if any(trace in folded for trace in self.traces):
            raise NotStampable(f"{path} holds a part of the study's UUID outside its prefix")
        if any(piece in rest for piece in self.encoded):
            raise NotStampable(f"{path} holds the study's UUID in base64")

    @cached_property
    def named(self) -> dict[bytes, list[str]]:
        """The files whose name carries a digest, by the digest: several, where contents are equal."""
        found: dict[bytes, list[str]] = {}
        for path in self.files:
            digests = _digests_in_name(path)
            if len(digests) == 1:
                found.setdefault(digests[0], []).append(path)
        return found

    @cached_property
    def by_md5(self) -> dict[bytes, str]:
        """The file that has these contents, by their md5: what a list of files to cache tells."""
        return {_md5(content): path for path, content in self.files.items()}

    @cached_property
    def by_integrity(self) -> dict[tuple[bytes, bytes], str]:
        """The file that has these contents, by algorithm and digest."""
        kinds = (b"sha256", b"sha384", b"sha512")
        return {(kind, _integrity(kind, content)): path for path, content in self.files.items() for kind in kinds}

    def path(self, path: str) -> str:
        """Return the file's path in the new bundle."""
        digest = self.digest_in_name(path)
        return path if digest is None else _HEX.sub(digest, path.encode()).decode()

    def content(self, path: str) -> bytes:
        """Return the file's contents in the new bundle."""
        if path not in self._contents:
            self._contents[path] = self._ask("contents", path, lambda: self._rewritten(self.files[path]))
        return self._contents[path]

    def digest_in_name(self, path: str) -> bytes | None:
        """Return the digest in the file's new name; None where the name stays."""
        if path not in self._digests:
            self._digests[path] = self._ask("name", path, lambda: self._new_digest(path))
        return self._digests[path]

    def _new_digest(self, path: str) -> bytes | None:
        digests = _digests_in_name(path)
        if not digests:
            return None
        content = self.files[path]
        for source in self._hashed(path, content):
            if digests == [_md5(source)]:
                changed = self._rewritten(source)
                return None if changed == source else _md5(changed)
        if self.content(path) == content:
            return None
        raise NotStampable(f"{path} changes with the study, and its name is not the md5 of its contents")

    def _hashed(self, path: str, content: bytes) -> Iterator[bytes]:
        """Yield what the tool chain may have hashed for the file's name: it, or it without the names of code."""
        yield content
        if not path.endswith(_CODE):
            return
        for slash in (b"", b"/"):
            yield self._without_names_of_code(content, slash)

    def _without_names_of_code(self, content: bytes, slash: bytes) -> bytes:
        prefix = self.forms[0][0]
        for digest in sorted(set(_HEX.findall(content)) & self.named.keys()):
            for path in self.named[digest]:
                if not path.endswith(_CODE):
                    continue
                plain = path.replace(f"-{digest.decode()}", "").encode()
                content = content.replace(prefix + path.encode(), slash + plain).replace(path.encode(), plain)
        return content

    def _rewritten(self, text: bytes) -> bytes:
        for old, new in self.forms:
            text = text.replace(old, new)
        text = _HEX.sub(lambda match: self._mapped(match[0]), text)
        return _SRI.sub(self._mapped_integrity, text)

    def _mapped(self, digest: bytes) -> bytes:
        """Return what stands in the place of a digest: that of the file that it names, or of the contents it tells."""
        if paths := self.named.get(digest):
            digests = {self.digest_in_name(path) or digest for path in paths}
            if len(digests) > 1:
                raise NotStampable(f"{paths[0]} and {paths[1]} have one digest in their names, and get two")
            return digests.pop()
        if path := self.by_md5.get(digest):
            return _md5(self.content(path))
        return digest

    def _mapped_integrity(self, match: re.Match[bytes]) -> bytes:
        path = self.by_integrity.get((match[1], match[2]))
        return match[0] if path is None else match[1] + b"-" + _integrity(match[1], self.content(path))

    def _ask(self, what: str, path: str, answer: Callable[[], T]) -> T:
        if (what, path) in self._asked:
            raise NotStampable(f"the {what} of {path} would follow from itself, by way of {self._asked[-1][1]}")
        self._asked.append((what, path))
        try:
            return answer()
        finally:
            self._asked.pop()


def _places(content: bytes, wanted: bytes) -> Iterator[int]:
    place = content.find(wanted)
    while place >= 0:
        yield place
        place = content.find(wanted, place + 1)


def _digests_in_name(path: str) -> list[bytes]:
    return _HEX.findall(path.rpartition("/")[2].encode())


def _base64_piece(text: str, shift: int) -> bytes:
    """Return what base64 makes of the middle of the text, if `shift` bytes stand before it."""
    encoded = base64.b64encode(b"\0" * shift + text.encode())
    return encoded[4 if shift else 0 : 24]


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).hexdigest().encode()


def _integrity(kind: bytes, content: bytes) -> bytes:
    return base64.b64encode(hashlib.new(kind.decode(), content).digest())
