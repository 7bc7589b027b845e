"""Decides whether a folder of static files counts as a built player, and lists its files.

An exit status of 0 is not enough: a build can end well and leave nothing, half of it, or a script that no browser can
read. What is found missing here would otherwise be found by a family.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from selectolax.lexbor import LexborHTMLParser

from ember_build.bounded import read_limited, run_bounded
from ember_build.errors import PlayerBuildFailed

INDEX = PurePosixPath("index.html")

ScriptCheck = Callable[[Path], str | None]
"""Looks at a classic script and returns what keeps a browser from reading it, or None."""

MOST_BYTES_OF_A_PAGE = 5_000_000
LONGEST_PATH_BYTES = 900
"""Of a file's path in the bundle, in UTF-8: with the study's folder before it, a bucket takes 1,024 bytes."""
MOST_SCRIPTS = 200
"""That index.html may load: each is parsed by a process."""

# broccoli-asset-rev names a file by the md5 of its contents: vendor-906bb7b6eb57c4575a880c522ea9ed30.js
_FINGERPRINT = re.compile(r".-([0-9a-f]{32})\.\w+$", re.ASCII)
_NAMED_MD5 = re.compile(rb"-([0-9a-f]{32})\.")
_BACKSLASH_OR_DRIVE = re.compile(r"\\|^[A-Za-z]:")
_CODE = frozenset({".js", ".css", ".html"})
_CLASSIC_SCRIPT = frozenset({"", "text/javascript", "application/javascript"})
_PAGE_HOST = "study.invalid"
_NAMING_ELEMENTS = "base, script, link, img, source, video, audio, embed"


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file; `path` is relative to the bundle, `fingerprinted` says that the name follows from the contents."""

    path: PurePosixPath
    size_bytes: int
    sha256: str
    fingerprinted: bool


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked folder of static files, to be served under `prefix`; `files` are ordered by path."""

    root: Path
    prefix: str
    files: tuple[BundleFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def file_count(self) -> int:
        return len(self.files)


@dataclass(frozen=True, slots=True)
class _Reference:
    """An address that index.html names: `kind` is the element's name, `type` its declared type."""

    kind: str
    address: str
    type: str


def check_bundle(
    root: Path,
    prefix: str,
    check_script: ScriptCheck | None = None,
    *,
    deadline: float | None = None,
    cancelled: threading.Event | None = None,
) -> Bundle:
    """Return the bundle in the folder `root`, which is to be served under `prefix` (`/studies/{uuid}/`).

    The files are read in a child process with limits. `check_script`, where there is one, is then asked about each
    classic script that index.html loads from the bundle. `deadline` is the build's, by time.monotonic().

    Raises:
        PlayerBuildFailed: the folder is no complete bundle for this prefix; the message says what is wrong.
        BuildPlatformError: this machine could not read it.
        BuildCancelled: `cancelled` was set.
    """
    found = run_bounded(
        inspect_bundle, str(root.absolute()), prefix, subject="the bundle", deadline=deadline, cancelled=cancelled
    )
    files = tuple(
        BundleFile(PurePosixPath(path), size_bytes, sha256, fingerprinted)
        for path, size_bytes, sha256, fingerprinted in found["files"]
    )
    if check_script is not None:
        for script in found["scripts"]:
            if reason := check_script(root / script):
                raise PlayerBuildFailed(f"{script} is broken, no browser can read it: {reason}")
    return Bundle(root=root, prefix=prefix, files=files)


def inspect_bundle(folder: str, prefix: str) -> dict[str, Any]:
    """Return the files of a complete bundle and its classic scripts; reads a stranger's files in this process.

    Raises:
        PlayerBuildFailed: as `check_bundle` does.
    """
    root = Path(folder)
    md5_by_path: dict[PurePosixPath, str] = {}
    files: dict[PurePosixPath, BundleFile] = {}
    for path in _walk(root):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        if len(str(relative).encode()) > LONGEST_PATH_BYTES:
            raise PlayerBuildFailed(
                f"The bundle has a file whose path is longer than {LONGEST_PATH_BYTES} bytes, more than a bucket"
                f" takes: {str(relative)[:80]!r}…. Give it a shorter one."
            )
        files[relative], md5_by_path[relative] = _read_file(path, relative)
    if not files:
        raise PlayerBuildFailed("The build ended without an error but left no files: its output may say why.")
    if INDEX not in files or files[INDEX].size_bytes == 0:
        raise PlayerBuildFailed("The build left no index.html, or an empty one, so there is no page to show.")

    page = read_limited(root / INDEX, MOST_BYTES_OF_A_PAGE)
    if prefix.encode() not in page:
        raise PlayerBuildFailed(
            f"The study's prefix {prefix} is not in index.html, so the page would look for its files elsewhere. The "
            "player must use it in `fingerprint.prepend` (or read PREPEND_FINGERPRINT)."
        )
    _check_fingerprints(root, files, md5_by_path)
    scripts = _check_references(prefix, page, files)
    listed = [(str(path), *_facts(files[path])) for path in sorted(files)]
    return {"files": listed, "scripts": [str(script) for script in scripts]}


def _facts(file: BundleFile) -> tuple[int, str, bool]:
    return file.size_bytes, file.sha256, file.fingerprinted


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the regular files below `folder`; nothing is followed, and what is neither file nor folder is refused."""
    if folder.is_symlink() or not folder.is_dir():
        raise PlayerBuildFailed("The build ended without an error but left no folder of its own.")
    for path in sorted(folder.iterdir()):
        if not path.name.isprintable() or _BACKSLASH_OR_DRIVE.search(path.name):
            raise PlayerBuildFailed(f"The bundle has a file whose name cannot be served: {path.name!r}.")
        if path.is_symlink():
            raise PlayerBuildFailed(f"The bundle has a symbolic link, {path.name!r}: only plain files can be served.")
        if path.is_dir():
            yield from _walk(path)
        elif path.is_file():
            yield path
        else:
            raise PlayerBuildFailed(
                f"The bundle has {path.name!r}, which is neither a file nor a folder: only plain files can be served."
            )


def _read_file(path: Path, relative: PurePosixPath) -> tuple[BundleFile, str]:
    sha256, md5, size_bytes = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            md5.update(chunk)
            size_bytes += len(chunk)
    file = BundleFile(
        path=relative,
        size_bytes=size_bytes,
        sha256=sha256.hexdigest(),
        fingerprinted=_FINGERPRINT.search(relative.name) is not None,
    )
    return file, md5.hexdigest()


def _check_fingerprints(
    root: Path, files: dict[PurePosixPath, BundleFile], md5_by_path: dict[PurePosixPath, str]
) -> None:
    """Refuse a file whose name promises other contents: half written, or changed after it was named.

    Two kinds of players are left alone: those that name files by something else than md5 (then no name fits), and
    code that names other fingerprinted code, since ember-cli writes those names into it after it got its own.
    """
    named = {path: match[1] for path in files if (match := _FINGERPRINT.search(path.name))}
    unfit = [path for path, md5 in named.items() if md5_by_path[path] != md5]
    if len(unfit) == len(named):
        return
    code_md5s = {md5.encode() for path, md5 in named.items() if path.suffix in _CODE}
    for path in unfit:
        if path.suffix in _CODE:
            contents = (root / path).read_bytes()
            if any(match[1] in code_md5s for match in _NAMED_MD5.finditer(contents)):
                continue
        raise PlayerBuildFailed(
            f"{path} is broken: its name carries the md5 {named[path]}, but its contents have {md5_by_path[path]}. "
            "It was cut off or changed after it was built."
        )


def _check_references(prefix: str, page: bytes, files: dict[PurePosixPath, BundleFile]) -> list[PurePosixPath]:
    """Return the classic scripts that the page loads from the bundle, each once, in their order."""
    base_address, references = _references_of(page)
    page_address = f"https://{_PAGE_HOST}{prefix}"
    scripts: dict[PurePosixPath, bool] = {}
    for reference in references:
        try:
            base = urljoin(page_address, base_address) if base_address else page_address
            target = urlsplit(urljoin(base, reference.address))
        except ValueError:
            raise PlayerBuildFailed(f"index.html names {_cut(reference.address)!r}, which is no address.") from None
        if target.scheme != "https" or target.netloc != _PAGE_HOST:
            continue  # another server, or data in the page itself
        path = unquote(target.path)
        if not path.startswith(prefix):
            if reference.kind == "img":
                continue  # a picture or icon of the platform around the study: the page works without it
            raise PlayerBuildFailed(
                f"index.html names {_cut(reference.address)}, which is outside the study's prefix {prefix} and will not"
                " be found there. Name the file as the build does the others (in `assets/`, so that it is"
                " fingerprinted)."
            )
        relative = PurePosixPath(path.removeprefix(prefix))
        file = files.get(relative)
        if file is None:
            raise PlayerBuildFailed(f"index.html names {_cut(reference.address)}, but the build did not make it.")
        # An Ember app that imports no foreign stylesheet has an empty vendor.css; that is in order.
        if file.size_bytes == 0 and reference.kind != "style":
            raise PlayerBuildFailed(f"{relative}, which index.html names, is empty.")
        if reference.kind == "script":
            scripts[relative] = scripts.get(relative, False) or reference.type in _CLASSIC_SCRIPT
    if not scripts:
        raise PlayerBuildFailed(f"index.html loads no script from under {prefix}, so the page would stay blank.")
    classic = [script for script, is_classic in scripts.items() if is_classic]
    if len(classic) > MOST_SCRIPTS:
        raise PlayerBuildFailed(
            f"index.html loads {len(classic):,} scripts; at most {MOST_SCRIPTS} are checked. Let the build bundle them."
        )
    return classic


def _references_of(page: bytes) -> tuple[str, list[_Reference]]:
    """Return the address in the page's first `base` element, and the files that the page cannot do without."""
    base = ""
    references: list[_Reference] = []

    def add(kind: str, address: str | None, declared_type: str = "") -> None:
        if address and address.strip() and not address.startswith("#"):
            references.append(_Reference(kind, address.strip(), declared_type.strip().lower()))

    for node in LexborHTMLParser(page.decode("utf-8", "replace")).css(_NAMING_ELEMENTS):
        values = {name: value or "" for name, value in node.attributes.items()}
        if node.tag == "base":
            base = base or values.get("href", "")
        elif node.tag == "script":
            add("script", values.get("src"), values.get("type", ""))
        elif node.tag == "link":
            relations = set(values.get("rel", "").lower().split())
            if "stylesheet" in relations:
                add("style", values.get("href"))
            elif relations & {"icon", "apple-touch-icon", "manifest", "preload", "modulepreload"}:
                add("img", values.get("href"))
        else:
            add("img", values.get("src"))
    return base, references


def _cut(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[:length] + "…"
