"""Decides whether a folder of static files counts as a built player, and lists its files.

An exit status of 0 is not enough: a build can end well and leave nothing, half of it, or a script that no browser can
read. What is found missing here would otherwise be found by a family.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from selectolax.lexbor import LexborHTMLParser

from ember_build.bounded import read_limited, run_bounded
from ember_build.errors import PlayerBuildFailed
from ember_build.source.completeness import is_lfs_pointer, names_of

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
# What storages refuse, or what is another place for some systems.
_UNSERVABLE = re.compile(r"\\|^[A-Za-z]:")
_SRI = re.compile(r"(sha256|sha384|sha512)-([A-Za-z0-9+/]+={0,2})(?:\?\S*)?", re.ASCII)
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
    integrity: str


def check_bundle(
    root: Path,
    prefix: str,
    check_script: ScriptCheck | None = None,
    *,
    checkout: Path | None = None,
    deadline: float | None = None,
    cancelled: threading.Event | None = None,
) -> Bundle:
    """Return the bundle in the folder `root`, which is to be served under `prefix` (`/studies/{uuid}/`).

    The files are read in a child process with limits. `checkout` is the source that they were built from; with it, more
    names of files are held against their contents. `check_script`, where there is one, is then asked about each
    classic script that index.html loads from the bundle. `deadline` is the build's, by time.monotonic().

    Raises:
        PlayerBuildFailed: the folder is no complete bundle for this prefix; the message says what is wrong.
        BuildPlatformError: this machine could not read it.
        BuildCancelled: `cancelled` was set.
    """
    folders = [str(root.absolute()), prefix, str(checkout.absolute()) if checkout else ""]
    found = run_bounded(inspect_bundle, *folders, subject="the bundle", deadline=deadline, cancelled=cancelled)
    files = tuple(
        BundleFile(PurePosixPath(path), size_bytes, sha256, fingerprinted)
        for path, size_bytes, sha256, fingerprinted in found["files"]
    )
    if check_script is not None:
        for script in found["scripts"]:
            if reason := check_script(root / script):
                raise PlayerBuildFailed(f"{script} is broken, no browser can read it: {reason}")
    return Bundle(root=root, prefix=prefix, files=files)


def inspect_bundle(folder: str, prefix: str, checkout: str = "") -> dict[str, Any]:
    """Return the files of a complete bundle and its classic scripts; reads a stranger's files in this process.

    `checkout` is the source that it was built from; without one, fewer names of files tell what they promise.

    Raises:
        PlayerBuildFailed: as `check_bundle` does.
    """
    root = Path(folder)
    source = {name for _, _, names in os.walk(checkout) for name in names} if checkout else set()
    md5_by_path: dict[PurePosixPath, str] = {}
    pointers: list[str] = []
    files: dict[PurePosixPath, BundleFile] = {}
    for path in _walk(root):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        if len(str(relative).encode()) > LONGEST_PATH_BYTES:
            raise PlayerBuildFailed(
                f"The bundle has a file whose path is longer than {LONGEST_PATH_BYTES} bytes, more than a bucket"
                f" takes: {str(relative)[:80]!r}…. Give it a shorter one."
            )
        files[relative], md5_by_path[relative] = _read_file(path, relative)
        if is_lfs_pointer(path):
            pointers.append(str(relative))
    if not files:
        raise PlayerBuildFailed("The build ended without an error but left no files: its output may say why.")
    _check_spellings(files)
    if INDEX not in files or files[INDEX].size_bytes == 0:
        raise PlayerBuildFailed("The build left no index.html, or an empty one, so there is no page to show.")

    if pointers:
        raise PlayerBuildFailed(
            f"The bundle holds Git LFS pointers in place of {names_of(pointers)}: families would get the text of a"
            " pointer. GitHub's archives have no files of Git LFS: put the files themselves into the repository."
        )
    page = read_limited(root / INDEX, MOST_BYTES_OF_A_PAGE)
    if prefix.encode() not in page:
        raise PlayerBuildFailed(
            f"The study's prefix {prefix} is not in index.html, so the page would look for its files elsewhere. The "
            "player must use it in `fingerprint.prepend` (or read PREPEND_FINGERPRINT)."
        )
    scripts, named = _check_references(root, prefix, page, files)
    _check_fingerprints(root, files, md5_by_path, named, source)
    listed = [(str(path), *_facts(files[path])) for path in sorted(files)]
    return {"files": listed, "scripts": [str(script) for script in scripts]}


def _facts(file: BundleFile) -> tuple[int, str, bool]:
    return file.size_bytes, file.sha256, file.fingerprinted


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the regular files below `folder`; nothing is followed, and what is neither file nor folder is refused."""
    if folder.is_symlink() or not folder.is_dir():
        raise PlayerBuildFailed("The build ended without an error but left no folder of its own.")
    for path in sorted(folder.iterdir()):
        if _UNSERVABLE.search(path.name) or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in path.name):
            raise PlayerBuildFailed(
                f"The bundle has a file whose name cannot be served: {path.name!r} holds a control character, a"
                " backslash or a drive letter, or is not in UTF-8. Give it another name."
            )
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
    root: Path,
    files: dict[PurePosixPath, BundleFile],
    md5_by_path: dict[PurePosixPath, str],
    named_by_page: set[PurePosixPath],
    source: set[str],
) -> None:
    """Refuse a file whose name promises other contents: half written, or changed after it was named.

    Only names that the build itself has made promise anything. Those are the scripts and styles that the page names;
    and another file, if the source has its name without the fingerprint, and not with it. Left alone are players that
    name files by something else than md5 (then no script or style fits), and code that names other fingerprinted code,
    since ember-cli writes those names into it after it got its own.
    """
    named = {path: match[1] for path in files if (match := _FINGERPRINT.search(path.name))}
    by_build = {path for path in named if path in named_by_page}
    if not any(md5_by_path[path] == named[path] for path in by_build):
        return
    by_build |= {path for path in named if path.name not in source and _without_fingerprint(path.name) in source}
    code_md5s = {md5.encode() for path, md5 in named.items() if path.suffix in _CODE}
    for path in sorted(by_build):
        if md5_by_path[path] == named[path]:
            continue
        if path.suffix in _CODE:
            contents = (root / path).read_bytes()
            if any(match[1] in code_md5s for match in _NAMED_MD5.finditer(contents)):
                continue
        raise PlayerBuildFailed(
            f"{path} is broken: its name carries the md5 {named[path]}, but its contents have {md5_by_path[path]}. "
            "It was cut off or changed after it was built."
        )


def _without_fingerprint(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"{stem[: -len('-') - 32]}.{suffix}"


def _check_references(
    root: Path, prefix: str, page: bytes, files: dict[PurePosixPath, BundleFile]
) -> tuple[list[PurePosixPath], set[PurePosixPath]]:
    """Return the classic scripts that the page loads from the bundle, and all scripts and styles of it, each once."""
    base_address, references = _references_of(page)
    page_address = f"https://{_PAGE_HOST}{prefix}"
    scripts: dict[PurePosixPath, bool] = {}
    named: set[PurePosixPath] = set()
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
        if reference.kind in ("script", "style"):
            named.add(relative)
            _check_integrity(root, relative, reference.integrity)
        if reference.kind == "script":
            scripts[relative] = scripts.get(relative, False) or reference.type in _CLASSIC_SCRIPT
    if not scripts:
        raise PlayerBuildFailed(f"index.html loads no script from under {prefix}, so the page would stay blank.")
    classic = [script for script, is_classic in scripts.items() if is_classic]
    if len(classic) > MOST_SCRIPTS:
        raise PlayerBuildFailed(
            f"index.html loads {len(classic):,} scripts; at most {MOST_SCRIPTS} are checked. Let the build bundle them."
        )
    return classic, named


def _check_integrity(root: Path, path: PurePosixPath, integrity: str) -> None:
    """Refuse a file that browsers would not run: the page says what its contents are, and they are others.

    As the standard has it, the strongest algorithm counts, and any of its digests will do. https://www.w3.org/TR/SRI/
    """
    digests: dict[str, list[str]] = {}
    for token in integrity.split():
        if match := _SRI.fullmatch(token):
            digests.setdefault(match[1], []).append(match[2])
    if not digests:
        return
    strongest = max(digests)
    actual = base64.b64encode(hashlib.new(strongest, (root / path).read_bytes()).digest()).decode()
    if actual not in digests[strongest]:
        raise PlayerBuildFailed(
            f"{path} is not what index.html says: its integrity attribute wants {strongest}-{digests[strongest][0]},"
            f" and the file has {strongest}-{actual}. Browsers would refuse it. Something changed the file after the"
            " build had computed the attribute."
        )


def _check_spellings(files: Iterable[PurePosixPath]) -> None:
    """Refuse two files, or folders, whose names differ in case or composition only: some systems keep one of them."""
    spellings: dict[str, PurePosixPath] = {}
    for path in files:
        for one in (path, *path.parents):
            folded = unicodedata.normalize("NFC", str(one)).casefold()
            if spellings.setdefault(folded, one) != one:
                raise PlayerBuildFailed(
                    f"The bundle has {str(one)!a} and {str(spellings[folded])!a}, which some systems take for one name:"
                    " they differ in upper and lower case only, or in how a letter is composed. Rename one."
                )


def _references_of(page: bytes) -> tuple[str, list[_Reference]]:
    """Return the address in the page's first `base` element, and the files that the page cannot do without."""
    base = ""
    references: list[_Reference] = []

    def add(kind: str, address: str | None, declared_type: str = "", integrity: str = "") -> None:
        if address and address.strip() and not address.startswith("#"):
            references.append(_Reference(kind, address.strip(), declared_type.strip().lower(), integrity))

    for node in LexborHTMLParser(page.decode("utf-8", "replace")).css(_NAMING_ELEMENTS):
        values = {name: value or "" for name, value in node.attributes.items()}
        if node.tag == "base":
            base = base or values.get("href", "")
        elif node.tag == "script":
            add("script", values.get("src"), values.get("type", ""), values.get("integrity", ""))
        elif node.tag == "link":
            relations = set(values.get("rel", "").lower().split())
            if "stylesheet" in relations:
                add("style", values.get("href"), integrity=values.get("integrity", ""))
            elif relations & {"icon", "apple-touch-icon", "manifest", "preload", "modulepreload"}:
                add("img", values.get("href"))
        else:
            add("img", values.get("src"))
    return base, references


def _cut(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[:length] + "…"
