"""What an archive of videos is called, in the bucket and on a researcher's disk, and what its members are called.

The archive's name tells its contents: whoever finds an object of that name need not build it again. ADR 5 says why the
ETags are part of it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from datetime import date
from uuid import UUID

from domain.models import ArchiveKind
from domain.videos.object_names import bare_etag

MANIFEST_NAME = "MANIFEST.csv"
LONGEST_NAME = 200
"""Characters that a member's name may have: Windows stops at 260 for the whole path."""

_SHORTEST_DIGEST, _LONGEST_DIGEST = 12, 64
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=,@()\[\] -]")
_RESERVED_ON_WINDOWS = re.compile(r"(?i)(con|prn|aux|nul|clock\$|com[0-9]|lpt[0-9]) *(\..*)?")
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n"})


def archive_key(
    study_uuid: UUID, kind: ArchiveKind, videos: Iterable[tuple[str, str]], missing: Iterable[str] = ()
) -> str:
    """The archive's object name: `{study uuid}/{study uuid}_{sha256}_{consent|all}.zip`.

    The digest is taken of lines of object key, tab and ETag, sorted and separated by newlines, in UTF-8. `missing` are
    the keys that the manifest inside will name as left out; they count as lines without an ETag. Order and repetition
    change nothing. Raises ValueError if one key comes with two ETags.
    """
    etags: dict[str, str] = dict.fromkeys(missing, "")
    for key, etag in videos:
        if etags.setdefault(key, bare_etag(etag)) != bare_etag(etag):
            raise ValueError(f"the video {key!r} has two ETags, {etags[key]!r} and {bare_etag(etag)!r}: list it again")
    lines = sorted(f"{_line_part(key)}\t{_line_part(etag)}".encode() for key, etag in etags.items())
    digest = hashlib.sha256(b"\n".join(lines)).hexdigest()
    return f"{study_uuid}/{study_uuid}_{digest}_{kind}.zip"


def study_of(archive_key: str) -> UUID | None:
    """The study whose archive has this object name, if it is one of ours."""
    try:
        return UUID(archive_key.partition("/")[0])
    except ValueError:
        return None


def _line_part(text: str) -> str:
    """The text, without tabs and newlines that could make two lists of videos read as one; real keys have none."""
    return text.translate(_ESCAPES)


def download_name(study_name: str, kind: ArchiveKind, day: date) -> str:
    """The file name that a browser saves the archive under: `Apples_and_oranges_consent_videos_2026-03-01.zip`."""
    words = re.sub(r"[^A-Za-z0-9.-]+", "_", study_name).strip("._-")[:80].rstrip("._-") or "study"
    return f"{words}_{kind}_videos_{day.isoformat()}.zip"


def member_names(keys: Iterable[str]) -> dict[str, str]:
    """A name inside the archive for each object key: safe on every system and unique without regard to case.

    Flat, as researchers' scripts know it from the predecessor: the key itself, which already names study, frame and
    response, and stays itself where it is cited. ASCII only, because systems disagree on which other letters are the
    same; the manifest holds the key in full. A name that several would share gets a digest of its key, all of them, so
    that the names do not depend on the order of the keys.
    """
    wanted = {key: _safe(key) for key in keys}
    names, marked, digest_length = dict(wanted), set[str](), _SHORTEST_DIGEST
    while clashing := _clashing(names):
        if clashing <= marked:  # somebody made two keys whose digests begin alike
            digest_length = _LONGEST_DIGEST
        marked |= clashing
        names |= {key: _marked(wanted[key], key, digest_length) for key in marked}
    return names


def _clashing(names: dict[str, str]) -> set[str]:
    counts = Counter(name.lower() for name in names.values())
    counts[MANIFEST_NAME.lower()] += 1
    return {key for key, name in names.items() if counts[name.lower()] > 1}


def _safe(key: str) -> str:
    name = _UNSAFE.sub("_", key).rstrip(". ")
    if not name or name[0] in ".- " or _RESERVED_ON_WINDOWS.fullmatch(name):
        name = f"_{name.lstrip('.- ')}"
    return name if len(name) <= LONGEST_NAME else _marked(name, key, _SHORTEST_DIGEST)


def _marked(name: str, key: str, digest_length: int) -> str:
    """The name with a digest of its key before the extension, cut to its longest length."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:digest_length]
    stem, dot, extension = name.rpartition(".")
    if not dot or not stem or len(extension) > 10:
        stem, dot, extension = name, "", ""
    tail = f"_{digest}{dot}{extension}"
    return f"{stem[: LONGEST_NAME - len(tail)]}{tail}"
