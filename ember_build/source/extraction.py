"""Unpack one source archive into a fresh folder.

An archive is a stranger's file. Nothing of it is trusted: not its names, not its modes, not the sizes that it states.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import threading
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath

from ember_build.errors import BuildCancelled, InvalidPlayer
from ember_build.source.repository import ResolvedCommit

_CHUNK_BYTES = 2**18
# A tiny archive of one repetitive file reaches any ratio honestly; below this size a bomb does no harm.
_RATIO_COUNTS_FROM_BYTES = 2**20
_LONGEST_PATH_BYTES = 1024
_LONGEST_NAME_BYTES = 255
# A central directory's entry takes 46 bytes and its names; the average is far below this.
_DIRECTORY_BYTES_PER_ENTRY = 256
_CONTROL_OR_BACKSLASH = re.compile(r"[\x00-\x1f\x7f\\]")
_UTF_8 = 0x800
"""The flag of an entry whose name is in UTF-8. Git sets it wherever that is so and matters."""
_DRIVE = re.compile(r"[A-Za-z]:")
_SHA_COMMENT = re.compile(rb"[0-9a-f]{40}")

# All that zipfile lets through when the bytes are not what they say.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True)
class ArchiveLimits:
    """The most that an archive may be or become. Beyond 65,535 entries or 4 GiB (ZIP64) it is refused in any case."""

    archive_bytes: int = 200 * 2**20
    """Bytes of the zip file itself."""
    extracted_bytes: int = 2 * 2**30
    """Bytes of all extracted files together."""
    entries: int = 50_000
    """Files and folders."""
    ratio: float = 100
    """Extracted bytes for each byte of the archive."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What was unpacked: files, and their bytes."""

    file_count: int
    size_bytes: int


class BrokenArchive(Exception):
    """The bytes are no readable zip archive."""


class Extraction:
    """One archive on its way into a fresh folder."""

    def __init__(
        self,
        commit: ResolvedCommit,
        archive: Path,
        archive_bytes: int,
        destination: Path,
        limits: ArchiveLimits,
        cancelled: threading.Event | None,
    ) -> None:
        self.commit = commit
        self.cancelled = cancelled
        self.made: set[Path] = {destination}
        self.archive = archive
        self.destination = destination
        self.limits = limits
        by_ratio = max(int(limits.ratio * archive_bytes), _RATIO_COUNTS_FROM_BYTES)
        self.most_bytes = min(limits.extracted_bytes, by_ratio)
        self.size_bytes = 0
        self.file_count = 0

    def run(self) -> Contents:
        """Unpack all entries.

        Raises:
            BrokenArchive: the bytes are no readable zip archive.
            InvalidPlayer: the archive is too big or hostile.
            BuildCancelled: the build was cancelled meanwhile.
        """
        self.destination.mkdir()
        self.destination.chmod(0o755)  # the umask must not decide this
        try:
            self._refuse_huge_directory()
            with zipfile.ZipFile(self.archive) as zipped:
                self._check_comment(zipped.comment)
                entries = self._accepted(zipped.infolist())
                for path, entry in entries.items():
                    self._extract(zipped, entry, self.destination / path)
        except _UNREADABLE as error:
            raise BrokenArchive(f"{type(error).__name__}: {error}") from error
        except OSError as error:
            if error.errno == errno.EINVAL:  # zipfile followed an offset to a place before the file's beginning
                raise BrokenArchive(f"an offset that leads nowhere: {error}") from error
            raise
        if not self.file_count:
            raise self._hostile("it holds no file")
        return Contents(self.file_count, self.size_bytes)

    def _refuse_huge_directory(self) -> None:
        """Refuse before zipfile reads the whole list of entries into memory."""
        allowed = self.limits.entries * _DIRECTORY_BYTES_PER_ENTRY + 2**16
        stated = _central_directory_bytes(self.archive)
        if stated is None:
            raise self._hostile("it has more than 65,535 entries or 4 GiB (ZIP64)")
        if stated > allowed:
            raise self._hostile(f"its list of entries takes {stated:,} bytes, {allowed:,} are allowed")

    def _check_comment(self, comment: bytes) -> None:
        # Git writes the commit's SHA here: a proxy that mixes up its answers is found out.
        if _SHA_COMMENT.fullmatch(comment) and comment != self.commit.sha.encode():
            raise BrokenArchive(f"it is the archive of commit {comment.decode()}")

    def _accepted(self, entries: list[zipfile.ZipInfo]) -> dict[PurePosixPath, zipfile.ZipInfo]:
        """Every entry's path below the top folder. All are checked before the first is written."""
        if len(entries) > self.limits.entries:
            raise self._too_many(len(entries))
        accepted: dict[PurePosixPath, zipfile.ZipInfo] = {}
        spellings: dict[PurePosixPath, PurePosixPath] = {}
        files: set[PurePosixPath] = set()
        folders: set[PurePosixPath] = set()
        tops: set[str] = set()
        for entry in entries:
            parts = self._parts(entry)
            tops.add(parts[0])
            if len(tops) > 1:
                raise self._hostile(f"it has more than one top folder: {', '.join(map(repr, sorted(tops)))}")
            if len(parts) == 1:
                if not entry.is_dir():
                    raise self._hostile(f"{parts[0]!r} lies outside of a top folder")
                continue
            path = PurePosixPath(*parts[1:])
            if path in accepted:
                raise self._hostile(f"it has two entries named {str(path)!r}")
            accepted[path] = entry
            # Each folder is looked at once: thousands of files may lie in one that is hundreds of folders deep.
            parents = list(takewhile(lambda parent: parent not in folders and parent.name, path.parents))
            (folders if entry.is_dir() else files).add(path)
            folders.update(parents)
            # A file's name implies the folders above it, so a few names can make many of them.
            if len(files) + len(folders) > self.limits.entries:
                raise self._too_many(len(files) + len(folders))
            for one in (path, *parents):
                # On a file system that ignores case or composes letters, one of two would overwrite the other.
                folded = PurePosixPath(unicodedata.normalize("NFC", str(one)).casefold())
                if spellings.setdefault(folded, one) != one:
                    raise self._hostile(
                        f"{str(one)!r} and {str(spellings[folded])!r} differ in upper and lower case only"
                    )
        if both := files & folders:
            raise self._hostile(f"{str(min(both))!r} is both a file and a folder")
        return accepted

    def _parts(self, entry: zipfile.ZipInfo) -> list[str]:
        """The entry's path, split; refused unless it is plain, relative, and of a file or folder."""
        # zipfile cuts a name at a NUL; the name as it stands in the archive is the one to judge.
        for name in (entry.orig_filename, entry.filename):
            if _CONTROL_OR_BACKSLASH.search(name):
                raise self._hostile(f"control characters or a backslash in the name {name!r}")
        if not entry.orig_filename.isascii() and not entry.flag_bits & _UTF_8:
            raise self._hostile(
                f"the name {entry.orig_filename.encode('cp437', 'replace')!r} is not in UTF-8, so nobody can tell how"
                " it reads; rename the file"
            )
        name = entry.filename
        parts = name.removesuffix("/").split("/")
        if name.startswith("/"):
            raise self._hostile(f"the name {name!r} is absolute")
        if any(_DRIVE.match(part) for part in parts):
            raise self._hostile(f"the name {name!r} begins with a drive letter, which is another disk on some systems")
        if any(part in {"", ".", ".."} for part in parts):
            raise self._hostile(f"the name {name!r} leads out of its folder or nowhere")
        if len(os.fsencode(name)) > _LONGEST_PATH_BYTES or any(
            len(os.fsencode(part)) > _LONGEST_NAME_BYTES for part in parts
        ):
            raise self._hostile(f"the name {name[:80]!r}… is too long")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in {0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG}:
            raise self._hostile(
                f"{name!r} is a symbolic link or a special file; only plain files and folders are allowed"
            )
        if entry.flag_bits & 0x1:
            raise self._hostile(f"{name!r} is encrypted")
        if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise self._hostile(f"{name!r} is compressed in a way that Git does not use")
        return parts

    def _extract(self, zipped: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
        if entry.is_dir():
            self._folder(target)
            return
        self._folder(target.parent)
        with zipped.open(entry) as source, target.open("xb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                if self.cancelled is not None and self.cancelled.is_set():
                    raise BuildCancelled("The build was cancelled while the player's archive was unpacked.")
                self.size_bytes += len(chunk)
                if self.size_bytes > self.most_bytes:
                    raise self._hostile(f"it grows to more than the {self.most_bytes:,} bytes that are allowed")
                file.write(chunk)
            # The builder is another user and must read the file under any umask. No setuid or sticky bit is kept.
            os.fchmod(file.fileno(), 0o755 if entry.external_attr >> 16 & stat.S_IXUSR else 0o644)
        self.file_count += 1

    def _folder(self, path: Path) -> None:
        missing = list(takewhile(lambda folder: folder not in self.made, (path, *path.parents)))
        for folder in reversed(missing):
            folder.mkdir()
            folder.chmod(0o755)
        self.made.update(missing)

    def _too_many(self, count: int) -> InvalidPlayer:
        return self._hostile(
            f"it has {count:,} files and folders or more (the folders that a name implies count, too),"
            f" {self.limits.entries:,} are allowed"
        )

    def _hostile(self, what: str) -> InvalidPlayer:
        return InvalidPlayer(
            f"the archive of {self.commit.repository.full_name} at {self.commit.sha} is refused: {what}; "
            "mend the repository and name its new commit"
        )


def _central_directory_bytes(archive: Path) -> int | None:
    """The size of the list of entries as the archive's last record states it; None for a ZIP64 archive.

    Reads just what zipfile would go by: the last end record, and a ZIP64 locator right before it.
    """
    with archive.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - (20 + 22 + 2**16)))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if not 0 <= at <= len(tail) - 22:
        raise BrokenArchive("it has no end record, so it is no zip archive or was cut off")
    if tail[max(0, at - 20) : at].startswith(b"PK\x06\x07"):
        return None
    stated = struct.unpack_from("<L", tail, at + 12)[0]
    if stated > end:
        raise BrokenArchive("it is shorter than its list of entries")
    return stated
