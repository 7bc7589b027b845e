"""Folders to and from a container as tar streams; what comes back was made by a stranger and is checked before use."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from ember_build.errors import PlayerBuildFailed

_CHUNK = 1 << 20
_LONGEST_NAME = 1000
_DEEPEST = 64


def pack(folder: Path, names: Iterable[str] | None = None) -> Generator[bytes]:
    """Yield `folder` as a tar, everything owned by root and readable by all; with `names`, only those files of it.

    Symbolic links travel as they are, nothing is followed; what is neither file, folder nor link is left out.
    """
    sink = _Sink()
    with tarfile.open(fileobj=cast(BinaryIO, sink), mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK) as tar:
        chosen = _below(folder) if names is None else (folder / name for name in names)
        for path in chosen:
            status = path.lstat()
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.mtime = int(status.st_mtime)
            if stat.S_ISLNK(status.st_mode):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
                tar.addfile(info)
            elif stat.S_ISDIR(status.st_mode):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            elif stat.S_ISREG(status.st_mode):
                with path.open("rb") as file:
                    info.size = os.fstat(file.fileno()).st_size
                    info.mode = 0o755 if status.st_mode & 0o100 else 0o644
                    yield from sink.empty()
                    tar.addfile(info, file)
            yield from sink.empty()
    yield from sink.empty()


def own_folder(name: str, user: int) -> Iterator[bytes]:
    """Yield a tar with one empty folder that belongs to a user."""
    sink = _Sink()
    with tarfile.open(fileobj=cast(BinaryIO, sink), mode="w|", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, 0o755, user, user
        tar.addfile(info)
    yield from sink.empty()


def _below(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        yield path
        if entry.is_dir(follow_symlinks=False):
            yield from _below(path)


class _Sink:
    """A file that only grows until it is emptied."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def empty(self) -> Iterator[bytes]:
        parts, self._parts = self._parts, []
        yield from parts


def unpack(stream: Iterable[bytes], folder: Path, *, max_bytes: int, max_files: int) -> None:
    """Write the members of a tar into the new `folder`, without the name of their common first folder.

    Only plain files and folders are taken, at names that stay below `folder`. Nothing that was written is kept
    executable or anybody else's.

    Raises:
        PlayerBuildFailed: the tar holds something else, or more than may be.
    """
    folder.mkdir(mode=0o755)
    size_bytes = count = 0
    source = cast(Any, _Source(stream, max_bytes + 2 * (max_files + 64) * 1024 + (1 << 20)))
    try:
        with tarfile.open(fileobj=source, mode="r|", bufsize=_CHUNK) as tar:
            for member in tar:
                parts = _parts_of(member.name)[1:]
                if not parts:
                    if not member.isdir():
                        raise PlayerBuildFailed("The build ended without an error but left no folder of its own.")
                    continue
                count += 1
                size_bytes += member.size
                if count > max_files or size_bytes > max_bytes:
                    raise PlayerBuildFailed(
                        f"The bundle is larger than may be: {max_bytes:,} bytes in {max_files:,} files."
                    )
                target = folder.joinpath(*parts)
                if member.isdir():
                    target.mkdir(mode=0o755, exist_ok=True)
                elif member.issym() or member.islnk():
                    raise PlayerBuildFailed(
                        f"The bundle has a symbolic or hard link, {'/'.join(parts)!r}: only plain files can be served."
                    )
                elif member.isreg():
                    _write(tar, member, target)
                else:
                    raise PlayerBuildFailed(
                        f"The bundle has {'/'.join(parts)!r}, which is neither a file nor a folder: only plain files "
                        "can be served."
                    )
    except (tarfile.TarError, FileExistsError, NotADirectoryError, FileNotFoundError, UnicodeError) as error:
        raise PlayerBuildFailed(f"The bundle could not be read from the container: {error}") from error


def _parts_of(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    parts = path.parts
    if path.is_absolute() or ".." in parts or "\0" in name or len(name) > _LONGEST_NAME or len(parts) > _DEEPEST:
        raise PlayerBuildFailed(f"The bundle has a file whose name cannot be served: {name[:200]!r}.")
    return parts or (".",)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    content = tar.extractfile(member)
    if content is None:
        raise PlayerBuildFailed(f"The bundle has {member.name!r} without contents.")
    # New, and not through a link: the folder is ours alone, but the names are not.
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        while chunk := content.read(_CHUNK):
            file.write(chunk)


class _Source:
    """Reads from chunks, and no more than may be: a tar's headers can be endless too."""

    def __init__(self, chunks: Iterable[bytes], most: int) -> None:
        self._chunks = iter(chunks)
        self._rest = b""
        self._left = most

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._left -= len(chunk)
            if self._left < 0:
                raise PlayerBuildFailed("The bundle is larger than may be.")
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
