"""Bundles as a build would make them, in versions that differ in content, and a way to deploy them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ember_build.bundle import Bundle, BundleFile
from lookit_ops.deployments.manifest import folder_of, live_deployment
from lookit_ops.deployments.publish import Deployment, publish
from lookit_ops.storage.experiments import ExperimentBucket

STUDY = "0c5f5dd7-0000-4000-8000-000000000001"
FOLDER = folder_of("deployment", STUDY)
PREFIX = f"/studies/{STUDY}/"


def fingerprinted(path: str, content: bytes) -> str:
    """The name that Ember gives a file."""
    stem, _, suffix = path.rpartition(".")
    return f"{stem}-{hashlib.md5(content, usedforsecurity=False).hexdigest()}.{suffix}"


def bundle_of(root: Path, version: str, extra: Mapping[str, bytes] | None = None, *, assets: int = 0) -> Bundle:
    """A version: two assets of its own, one that all versions share, two files without print, and an `index.html`.

    With `assets`, so many more of its own, all of them named by the page.
    """
    own = {f"assets/{number}.js": f"/* {version} */ part({number})".encode() for number in range(assets)}
    contents = {"robots.txt": f"# {version}".encode(), f"only-{version}.txt": b"", **(extra or {})}
    named = []
    for path, content in {
        "assets/app.js": f"play('{version}')".encode(),
        "assets/app.css": f"/* {version} */".encode(),
        "assets/vendor.js": b"shared",
        **own,
    }.items():
        name = fingerprinted(path, content)
        contents[name] = content
        named.append(f'<script src="{PREFIX}{name}"></script>')
    contents["index.html"] = f"<!-- {version} -->{''.join(named)}".encode()
    files = []
    for path, content in sorted(contents.items()):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        immutable = re.search(r"-[0-9a-f]{32}\.", path) is not None
        files.append(BundleFile(PurePosixPath(path), len(content), hashlib.sha256(content).hexdigest(), immutable))
    return Bundle(root, PREFIX, tuple(files))


def deploy(bucket: ExperimentBucket, bundle: Bundle, token: int, **options: Any) -> Deployment:
    """Publish over whatever is live, as request `r{token}`."""
    live = live_deployment(bucket, FOLDER)
    settings = {
        "folder": FOLDER,
        "request_id": f"r{token}",
        "fencing_token": token,
        "seen_generation": live.generation if live else 0,
        "facts": {"sha": "a" * 40},
        "before_commit": lambda: None,
        **options,
    }
    return publish(bucket, bundle, **settings)


def assert_live(bucket: ExperimentBucket, bundle: Bundle, *, public_files: bool = True) -> None:
    """The live page is this bundle's, and all of its files are there."""
    for file in bundle.files:
        if file.fingerprinted or file.path.name == "index.html" or public_files:
            assert bucket.read(f"{FOLDER}/{file.path}") == (bundle.root / file.path).read_bytes(), file.path
