"""A model of ember-cli and broccoli-asset-rev: a bundle from sources and a prefix, names by md5 in their order."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

from tests.support.bundles import fingerprinted

CODE = (".js", ".css")


def build(sources: Mapping[str, str], prefix: str, *, integrity: bool = False) -> dict[str, bytes]:
    """Return the bundle. In a source, `{root}` is the prefix, and the path of another source names that file."""
    files = {path: text.replace("{root}", prefix).encode() for path, text in sources.items()}
    names: dict[str, str] = {}

    def write_names(paths: list[str]) -> None:
        for path, content in files.items():
            if path.endswith((*CODE, ".html")):
                for other in paths:
                    content = content.replace(other.encode(), (prefix + names[other]).encode())
                files[path] = content

    pictures = [path for path in files if not path.endswith((*CODE, ".html", ".txt"))]
    code = [path for path in files if path.endswith(CODE)]
    for group in (pictures, code):
        names |= {path: fingerprinted(path, files[path]) for path in group}
        write_names(group)
    if integrity:
        for path in code:
            digest = base64.b64encode(hashlib.sha256(files[path]).digest()).decode()
            address = f'"{prefix}{names[path]}"'
            files["index.html"] = files["index.html"].replace(
                address.encode(), f'{address} integrity="sha256-{digest}"'.encode()
            )
    return {names.get(path, path): content for path, content in files.items()}
