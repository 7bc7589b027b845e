"""Which files of a checkout decide what an installation of its dependencies brings, if they alone decide it.

Where more decides (an install script of the player's own, a yarn that the repository brings along, a setting that we
do not know, an entry that is not pinned by a hash), there is nothing that another build could be given.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ember_build.bounded import read_limited, run_bounded

SETTINGS = (".yarnrc", ".npmrc", ".bowerrc")

_NAMES = ("package.json", "yarn.lock", "bower.json", *SETTINGS)
_DEPENDENCIES = ("dependencies", "devDependencies", "optionalDependencies", "resolutions")
_INSTALL_SCRIPTS = frozenset({"preinstall", "install", "postinstall", "prepare", "prepublish"})
_OWN_FILES = re.compile(r"\b(file|link|portal|workspace|patch):|^([./\\]|~/|[A-Za-z]:[/\\])")
_LINKED = re.compile(r"\b(link|portal|workspace|patch):|^([/\\]|~/|[A-Za-z]:[/\\])")
_OWN_FILES_IN_LOCK = re.compile(r"""@(file|link):|^ +resolved "?(file:|[./])""", re.MULTILINE)
# What is fetched must be an archive over HTTP, named by its hash: git runs a package's `prepare` while it fetches.
_ENTRY = re.compile(r"^(?P<names>\S.*):\n(?P<fields>(?:^[ \t]+\S.*\n?)+)", re.MULTILINE)
_NAME = re.compile(r'"?(?P<name>(?:@[^/@"]+/)?[^@"]+)@')
_OWN_NAME = re.compile(r'^ +name "?(?P<name>[^"\s]+)', re.MULTILINE)
_VERSION = re.compile(r'^ +version "?(?P<version>[^"\s]+)', re.MULTILINE)
_RESOLVED = re.compile(r'^ +resolved "?(?P<where>[^"\s]+)"?$', re.MULTILINE)
_HASH = re.compile(r"#[0-9a-f]{40}$")
_INTEGRITY = re.compile(r"^ +integrity \S", re.MULTILINE)
# GitHub's archive of a commit: its SHA is a hash of all that is in it.
_GITHUB_ARCHIVE = re.compile(
    r"^https://(codeload\.github\.com/[\w.-]+/[\w.-]+/tar\.gz/|github\.com/[\w.-]+/[\w.-]+/(archive|tarball)/)[0-9a-f]{40}"
    r"(\.tar\.gz|\.tgz)?$"
)
_FETCHED_BY_GIT = re.compile(r"^(git[+:@]|ssh:)|\.git(#|$)")
# Settings under which an installation is still what the other inputs say; any other makes it this build's own.
_HARMLESS_SETTING = re.compile(
    r"^(#|;|$)"
    r'|^"?(@[\w.~-]+:)?registry"?[ =]'
    r"|^(network-timeout|network-concurrency|lastUpdateCheck|last-update-check|loglevel|progress|fund|audit"
    r"|save-exact|save-prefix|package-lock|engine-strict|ignore-engines|--install\.ignore-engines)\b"
)
_HARMLESS_IN_BOWERRC = frozenset({"analytics", "registry", "timeout", "color"})
_MOST_BYTES = 50_000_000
_MOST_BYTES_OF_JSON = 5_000_000
_MOST_BYTES_OF_SETTINGS = 100_000


@dataclass(frozen=True, slots=True)
class Inputs:
    """`files` are their names below the checkout; `digest` names their contents, `settings` those that say from where.

    `archives` are the packages, by name and version, that the lock file gives no hash but the full SHA in the address
    of GitHub's archive, with that address. `own_files` says that folders or archives of the repository itself are among
    the files; `own_files_for_bower`, that bower wants some, which are not among them.
    """

    files: tuple[str, ...]
    digest: str
    settings: str
    archives: dict[str, str]
    own_files: bool
    own_files_for_bower: bool


@dataclass(frozen=True, slots=True)
class NotShared:
    """Why an installation is this build's own: something else decides about it, too.

    `is_hashed` says that each entry of the lock file has a hash all the same, so that downloads can be shared.
    """

    reason: str
    is_hashed: bool = False


class _SomethingElseDecides(Exception):
    """Why the inputs alone do not say what an installation brings."""


def inputs_of(
    checkout: Path, *, deadline: float | None = None, cancelled: threading.Event | None = None
) -> Inputs | NotShared:
    """Return the files that alone decide about the dependencies of a checkout, or what else does.

    They are read in a child process with limits. `deadline` is the build's, by time.monotonic().

    Raises:
        PlayerBuildFailed: they are too large or too complicated to be read.
        BuildPlatformError: this machine could not read them.
        BuildCancelled: `cancelled` was set meanwhile.
    """
    subject = "what the player declares of its dependencies"
    found = run_bounded(read_inputs, str(checkout.absolute()), subject=subject, deadline=deadline, cancelled=cancelled)
    if "reason" in found:
        return NotShared(**found)
    inputs = Inputs(**found)
    return replace(inputs, files=tuple(inputs.files))


def read_inputs(checkout: str) -> dict[str, Any]:
    """Return the fields of `Inputs` or of `NotShared`; reads a stranger's files in this process."""
    try:
        return asdict(_inputs(Path(checkout)))
    except _SomethingElseDecides as error:
        return asdict(NotShared(str(error), _is_hashed(Path(checkout))))
    except (OSError, ValueError, TypeError, AttributeError) as error:  # yarn will say what is wrong with it
        return asdict(NotShared(f"its package.json, yarn.lock or settings cannot be read ({type(error).__name__})"))


def _inputs(checkout: Path) -> Inputs:
    names = [name for name in _NAMES if (checkout / name).is_file()]
    if "yarn.lock" not in names or "package.json" not in names:
        raise _SomethingElseDecides("it has no yarn.lock, or no package.json")
    if any((checkout / name).is_symlink() for name in names):
        raise _SomethingElseDecides("its lock file or a setting is a symbolic link")
    package: dict[str, Any] = _json_of(checkout / "package.json")
    # Without an own script, yarn compiles what binding.gyp describes.
    if scripts := _INSTALL_SCRIPTS & set(package.get("scripts", {})):
        raise _SomethingElseDecides(f"its package.json has an install script ({', '.join(sorted(scripts))})")
    if (checkout / "binding.gyp").exists():
        raise _SomethingElseDecides("it has a binding.gyp, which yarn compiles")
    if "workspaces" in package or (checkout / "node_modules").exists() or (checkout / "bower_components").exists():
        raise _SomethingElseDecides("it has workspaces, or brings node_modules or bower_components along")
    lock = read_limited(checkout / "yarn.lock", _MOST_BYTES).decode()
    archives = _archives_without_hash(lock)
    if not _settings_are_harmless(checkout):
        raise _SomethingElseDecides("its .yarnrc, .npmrc or .bowerrc sets more than where packages come from")
    own = list(_own_files(checkout, package))
    if None in own or (_OWN_FILES_IN_LOCK.search(lock) and not own):
        raise _SomethingElseDecides("it has dependencies of its own that lead elsewhere")
    files = (*names, *sorted({name for name in own if name is not None}))
    return Inputs(
        files=files,
        digest=_digest(checkout, files),
        settings=_digest(checkout, [name for name in SETTINGS if name in names]),
        archives=archives,
        own_files=bool(own),
        own_files_for_bower="bower.json" in names and not _bower_is_remote(checkout),
    )


def _json_of(file: Path) -> Any:
    return json.loads(read_limited(file, _MOST_BYTES_OF_JSON))


def _digest(checkout: Path, names: tuple[str, ...] | list[str]) -> str:
    digest, size_bytes = hashlib.sha256(), 0
    for name in names:
        file = checkout / name
        size_bytes += file.stat().st_size
        if size_bytes > _MOST_BYTES:
            raise ValueError("more than a lock file and a few packages")
        contents = file.read_bytes()
        executable = bool(file.stat().st_mode & 0o100)
        digest.update(f"\n{name} {executable} {len(contents)}\n".encode() + contents)
    return digest.hexdigest()


def _is_hashed(checkout: Path) -> bool:
    try:
        return not _archives_without_hash(read_limited(checkout / "yarn.lock", _MOST_BYTES).decode())
    except (_SomethingElseDecides, OSError, ValueError):
        return False


def _archives_without_hash(lock: str) -> dict[str, str]:
    """Return GitHub's archives of full SHAs that have no other hash; another entry without one decides by itself.

    The keys are what yarn names a download of such a package after: its name and version.
    """
    archives: dict[str, str] = {}
    for entry in _ENTRY.finditer(lock):
        if _OWN_FILES_IN_LOCK.search(entry["names"]):
            continue
        resolved = _RESOLVED.search(entry["fields"])
        where = resolved["where"] if resolved else ""
        has_hash = _INTEGRITY.search(entry["fields"]) or _HASH.search(where)
        if _FETCHED_BY_GIT.search(where) or not (has_hash or _GITHUB_ARCHIVE.search(where)):
            unpinned = entry["names"].split(",")[0].strip('"')[:100]
            raise _SomethingElseDecides(f"yarn.lock does not pin {unpinned} by a hash")
        if not has_hash:
            # An entry has a name of its own where it differs from the one that the dependency is known by.
            name = _OWN_NAME.search(entry["fields"]) or _NAME.match(entry["names"])
            version = _VERSION.search(entry["fields"])
            package = f"{name['name'] if name else ''} {version['version'] if version else ''}"
            if archives.setdefault(package, where) != where:
                raise _SomethingElseDecides(f"yarn.lock has two archives without a hash of {package[:100]}")
    return archives


def _settings_are_harmless(checkout: Path) -> bool:
    for name in (".yarnrc", ".npmrc"):
        text = read_limited(checkout / name, _MOST_BYTES_OF_SETTINGS).decode() if (checkout / name).is_file() else ""
        if not all(_HARMLESS_SETTING.search(line.strip()) for line in text.splitlines()):
            return False
    if not ((checkout / "bower.json").is_file() and (checkout / ".bowerrc").is_file()):
        return True  # bower does not run, or as it likes
    bower = _json_of(checkout / ".bowerrc")
    return all(
        name in _HARMLESS_IN_BOWERRC or (name == "directory" and str(value).strip("./") == "bower_components")
        for name, value in bower.items()
    )


def _bower_is_remote(checkout: Path) -> bool:
    bower = _json_of(checkout / "bower.json")
    wanted = [str(where) for field in _DEPENDENCIES for where in bower.get(field, {}).values()]
    return not any(_OWN_FILES.search(where.strip()) or "\\" in where for where in wanted)


def _own_files(checkout: Path, package: dict[str, Any]) -> Iterator[str | None]:
    """The names of the repository's own files that are dependencies; None among them where something else decides."""
    for field in _DEPENDENCIES:
        for value in package.get(field, {}).values():
            where = str(value).strip()
            if not _OWN_FILES.search(where):
                continue
            path = PurePosixPath(where.removeprefix("file:"))
            if _LINKED.search(where) or path.is_absolute() or ".." in path.parts or not path.parts:
                yield None
                continue
            yield from _below(checkout, checkout / path)


def _below(checkout: Path, path: Path) -> Iterator[str | None]:
    for step in [path, *path.relative_to(checkout).parents]:
        if (checkout / step).is_symlink():
            yield None
            return
    if path.is_file():
        yield path.relative_to(checkout).as_posix()
        return
    nested: dict[str, Any] = _json_of(path / "package.json")
    if any(
        _OWN_FILES.search(str(where).strip()) for field in _DEPENDENCIES for where in nested.get(field, {}).values()
    ):
        yield None
    for file in sorted(path.rglob("*")):
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            yield None
        elif file.is_file():
            yield file.relative_to(checkout).as_posix()
