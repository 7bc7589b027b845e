"""Decides whether a folder of static files counts as a built player, and lists its files.

An exit status of 0 is not enough: a build can end well and leave nothing, half of it, or a script that no browser can
read. What is found missing here would otherwise be found by a family.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit

from ember_build.errors import PlayerBuildFailed

INDEX = PurePosixPath("index.html")

ScriptCheck = Callable[[Path], str | None]
"""Looks at a classic script and returns what keeps a browser from reading it, or None."""

# broccoli-asset-rev names a file by the md5 of its contents: vendor-906bb7b6eb57c4575a880c522ea9ed30.js
_FINGERPRINT = re.compile(r".-([0-9a-f]{32})\.\w+$")
_CODE = frozenset({".js", ".css", ".html"})
_CLASSIC_SCRIPT = frozenset({"", "text/javascript", "application/javascript"})
_PAGE_HOST = "study.invalid"


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


def check_bundle(root: Path, prefix: str, check_script: ScriptCheck | None = None) -> Bundle:
    """Return the bundle in the folder `root`, which is to be served under `prefix` (`/studies/{uuid}/`).

    `check_script`, where there is one, is asked about each classic script that index.html loads from the bundle.

    Raises:
        PlayerBuildFailed: the folder is no complete bundle for this prefix; the message says what is wrong.
    """
    md5_by_path: dict[PurePosixPath, str] = {}
    files: dict[PurePosixPath, BundleFile] = {}
    for path in _walk(root):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        files[relative], md5_by_path[relative] = _read_file(path, relative)
    if not files:
        raise PlayerBuildFailed("The build ended without an error but left no files: its output may say why.")
    if INDEX not in files or files[INDEX].size_bytes == 0:
        raise PlayerBuildFailed("The build left no index.html, or an empty one, so there is no page to show.")

    page = (root / INDEX).read_text(encoding="utf-8", errors="replace")
    if prefix not in page:
        raise PlayerBuildFailed(
            f"The study's prefix {prefix} is not in index.html, so the page would look for its files elsewhere. The "
            "player must use it in `fingerprint.prepend` (or read PREPEND_FINGERPRINT)."
        )
    _check_fingerprints(root, files, md5_by_path)
    _check_references(root, prefix, page, files, check_script)
    return Bundle(root=root, prefix=prefix, files=tuple(files[path] for path in sorted(files)))


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the regular files below `folder`; nothing is followed, and what is neither file nor folder is refused."""
    if folder.is_symlink() or not folder.is_dir():
        raise PlayerBuildFailed("The build ended without an error but left no folder of its own.")
    for path in sorted(folder.iterdir()):
        if not path.name.isprintable():
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
    code_names = [path.name for path in named if path.suffix in _CODE]
    for path in unfit:
        if path.suffix in _CODE:
            text = (root / path).read_text(encoding="utf-8", errors="replace")
            if any(name in text for name in code_names):
                continue
        raise PlayerBuildFailed(
            f"{path} is broken: its name carries the md5 {named[path]}, but its contents have {md5_by_path[path]}. "
            "It was cut off or changed after it was built."
        )


def _check_references(
    root: Path,
    prefix: str,
    page: str,
    files: dict[PurePosixPath, BundleFile],
    check_script: ScriptCheck | None,
) -> None:
    parser = _PageParser()
    parser.feed(page)
    parser.close()
    page_address = f"https://{_PAGE_HOST}{prefix}"
    base = urljoin(page_address, parser.base) if parser.base else page_address
    scripts = 0
    for reference in parser.references:
        try:
            target = urlsplit(urljoin(base, reference.address))
        except ValueError:
            raise PlayerBuildFailed(f"index.html names {reference.address!r}, which is no address.") from None
        if target.scheme != "https" or target.netloc != _PAGE_HOST:
            continue  # somebody else's server, or data in the page itself
        path = unquote(target.path)
        if not path.startswith(prefix):
            if reference.kind == "img":
                continue  # a picture or icon of the platform around the study: the page works without it
            raise PlayerBuildFailed(
                f"index.html names {reference.address}, which is outside the study's prefix {prefix} and will not be "
                "found there. Name the file as the build does the others (in `assets/`, so that it is fingerprinted)."
            )
        relative = PurePosixPath(path.removeprefix(prefix))
        file = files.get(relative)
        if file is None:
            raise PlayerBuildFailed(f"index.html names {reference.address}, but the build did not make it.")
        # An Ember app that imports no foreign stylesheet has an empty vendor.css; that is in order.
        if file.size_bytes == 0 and reference.kind != "style":
            raise PlayerBuildFailed(f"{relative}, which index.html names, is empty.")
        if reference.kind == "script":
            scripts += 1
            if check_script and reference.type in _CLASSIC_SCRIPT and (reason := check_script(root / relative)):
                raise PlayerBuildFailed(f"{relative} is broken, no browser can read it: {reason}")
    if scripts == 0:
        raise PlayerBuildFailed(f"index.html loads no script from under {prefix}, so the page would stay blank.")


class _PageParser(HTMLParser):
    """Collects the addresses of the files that a page cannot do without."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.references: list[_Reference] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "base" and not self.base:
            self.base = values.get("href", "")
        elif tag == "script":
            self._add("script", values.get("src", ""), values.get("type", ""))
        elif tag in {"img", "source", "video", "audio", "embed"}:
            self._add("img", values.get("src", ""))
        elif tag == "link":
            relations = set(values.get("rel", "").lower().split())
            if "stylesheet" in relations:
                self._add("style", values.get("href", ""))
            elif relations & {"icon", "apple-touch-icon", "manifest", "preload", "modulepreload"}:
                self._add("img", values.get("href", ""))

    def _add(self, kind: str, address: str, declared_type: str = "") -> None:
        if address.strip() and not address.startswith("#"):
            self.references.append(_Reference(kind, address.strip(), declared_type.strip().lower()))
