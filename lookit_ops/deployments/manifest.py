"""What a bucket tells of a study's deployments: the live one, those before it, and the files of each.

The live `index.html` names the *manifest* of its deployment, and each manifest names the deployment that it replaced.
So the deployments that were live form a chain, newest first, without any list that would have to be written beside the
page; whatever was uploaded and never became live is in no link of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import PurePosixPath
from uuid import UUID

from lookit_ops.storage.errors import NoSuchObject, StorageError
from lookit_ops.storage.experiments import ExperimentBucket, StoredFile, StoredPage

PAGE = PurePosixPath("index.html")
PAGE_TYPE = "text/html; charset=utf-8"
DEPLOYMENTS = ".deployments"
MANIFEST = "manifest.json"
WITHDRAWN = "withdrawn"
"""The page's metadata where it stands in the place of the deployment's own, whose files stay."""
FENCED = "fenced"
"""The page's metadata that tells up to which fencing token claims can write it no more."""
REVALIDATED = "no-cache"
NOT_AVAILABLE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>This study is not available</title>
<style>
body { font: 1.25rem/1.5 system-ui, sans-serif; max-width: 32em; margin: 4rem auto; padding: 0 1rem; color: #1b2733; }
@media (prefers-color-scheme: dark) { body { background: #10161c; color: #e6ebf0; } }
</style>
</head>
<body>
<main>
<h1>This study is not available</h1>
<p>It has ended, or is taking a break. Thank you for your interest. The page that led you here has other studies.</p>
</main>
</body>
</html>
"""
"""What families get of a study that is taken down."""
NOTHING_YET = b"<!doctype html><title>Not available</title><p>This study is not available.</p>\n"
"""What stands in the page's place when a dead worker had to be kept from writing the first one."""
KEPT = 5
"""How many builds of a study stay restorable, the live one among them."""
PARALLEL = 8
"""Requests to the bucket at once."""

FOLDERS = {"preview": "preview_experiments", "deployment": "experiments"}


@dataclass(frozen=True, slots=True)
class LiveDeployment:
    """What the live index.html tells of itself."""

    folder: str
    generation: int
    request_id: str
    """Empty for a page that was not written by `publish`."""
    fencing_token: int
    """0 for a page that was not written by `publish`."""
    manifest_key: str
    facts: Mapping[str, str]
    since: datetime | None = None
    """When the page was written as it is, by the storage's clock."""

    @property
    def page_key(self) -> str:
        """Where its index.html is."""
        return f"{self.folder}/{PAGE}"


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """One file of a deployment as its manifest tells of it."""

    path: str
    size_bytes: int
    sha256: str
    content_type: str
    cache_control: str
    key: str
    """Where its contents stay as long as the deployment is kept."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """The deployment that another one took the place of."""

    request_id: str
    manifest_key: str
    """Empty for a page that was not written by `publish`."""
    live_since: str
    """ISO 8601, by the storage's clock."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of one deployment."""

    request_id: str
    fencing_token: int
    facts: Mapping[str, str]
    files: tuple[PublishedFile, ...]
    build_token: int = 0
    """The fencing token of the build, which orders the builds of a study; a rollback has another fencing token."""
    replaces: Replaced | None = None
    """None for the first page of a study."""

    def to_json(self) -> bytes:
        """As it is stored."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """As it was stored. Raises StorageError."""
        try:
            said = json.loads(content)
            files = tuple(PublishedFile(**file) for file in said.pop("files"))
            replaces = said.pop("replaces", None)
            manifest = cls(**said, files=files, replaces=Replaced(**replaces) if replaces else None)
            if manifest.replaces and datetime.fromisoformat(manifest.replaces.live_since).tzinfo is None:
                raise ValueError("a time without a zone")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageError(f"a deployment's manifest cannot be read ({error}); deploy the study again") from error
        return manifest if manifest.build_token else replace(manifest, build_token=manifest.fencing_token)


@dataclass(frozen=True, slots=True)
class PastDeployment:
    """A deployment that is or was live."""

    manifest_key: str
    manifest: Manifest
    live_since: datetime
    superseded_at: datetime | None
    """None for the live one."""


def folder_of(kind: str, study_uuid: UUID | str) -> str:
    """The folder of the bucket for a study's preview or deployment."""
    return f"{FOLDERS[kind]}/{study_uuid}"


def staging_of(folder: str, request_id: str, fencing_token: int) -> str:
    """The folder for what a deployment keeps beside its public files."""
    return f"{folder}/{DEPLOYMENTS}/{request_id}-{fencing_token}"


def live_deployment(bucket: ExperimentBucket, folder: str) -> LiveDeployment | None:
    """Which deployment the live index.html belongs to; None if there is no page. Raises StorageError."""
    page = bucket.page(f"{folder}/{PAGE}")
    return live_of(folder, page) if page else None


def history(bucket: ExperimentBucket, folder: str) -> tuple[PastDeployment, ...]:
    """The live deployment and those before it, newest first, as far as their manifests are there.

    Nothing if there is no page, or one that was not written by `publish`. Raises NoSuchObject if the live page's own
    manifest is gone, StorageError if the storage fails or a manifest cannot be read.
    """
    live = live_deployment(bucket, folder)
    if live is None or not live.manifest_key or live.since is None:
        return ()
    found: list[PastDeployment] = []
    key, since, until = live.manifest_key, live.since, None
    known: set[str] = set()
    while key and key not in known:
        known.add(key)
        try:
            manifest = Manifest.from_json(bucket.read(key))
        except NoSuchObject:
            if not found:
                raise
            break  # no longer kept
        found.append(PastDeployment(key, manifest, since, until))
        if manifest.replaces is None:
            break
        key, since, until = manifest.replaces.manifest_key, datetime.fromisoformat(manifest.replaces.live_since), since
    return tuple(found)


def kept_of(past: Sequence[PastDeployment], keep: int = KEPT) -> tuple[PastDeployment, ...]:
    """Of a history, what stays restorable: the newest deployments of so many builds. To and fro counts once."""
    builds: set[str] = set()
    for number, deployment in enumerate(past):
        builds.add(deployment.manifest.request_id)
        if len(builds) > keep:
            return tuple(past[:number])
    return tuple(past)


def replaced_by(bucket: ExperimentBucket, live: LiveDeployment | None, manifest_key: str) -> Replaced | None:
    """What a new manifest says of the deployment before it; if it is live already, what it said then."""
    if live is None or live.since is None:
        return None
    if live.manifest_key == manifest_key:
        return Manifest.from_json(bucket.read(manifest_key)).replaces
    return Replaced(live.request_id, live.manifest_key, live.since.isoformat())


def staged_files(folder: str, manifest: Manifest) -> list[PublishedFile]:
    """The files of a deployment whose public names other deployments use, too; without the page."""
    return [file for file in manifest.files if file.key != f"{folder}/{file.path}" and file.path != str(PAGE)]


def missing_files(files: Mapping[str, StoredFile], manifest: Manifest) -> list[PublishedFile]:
    """Those of the manifest that a listing does not have, or not as they should be."""

    def is_there(file: PublishedFile) -> bool:
        stored = files.get(file.key)
        return stored is not None and stored.size_bytes == file.size_bytes and stored.sha256 in {None, file.sha256}

    return [file for file in manifest.files if not is_there(file)]


def facts_of(bucket: ExperimentBucket, live: LiveDeployment) -> dict[str, int]:
    """How many files the live deployment has and how many bytes; nothing if it has no manifest."""
    if not live.manifest_key:
        return {}
    try:
        files = Manifest.from_json(bucket.read(live.manifest_key)).files
    except NoSuchObject:
        return {}
    return {"files": len(files), "bytes": sum(file.size_bytes for file in files)}


def fenced_up_to(page: StoredPage) -> int:
    """Return the highest fencing token whose claim can write this page no more; 0 if none was ever fenced."""
    token = page.metadata.get(FENCED, "0")
    return int(token) if token.isdecimal() else 0


def live_of(folder: str, page: StoredPage) -> LiveDeployment:
    """What a page tells of its deployment."""
    facts = dict(page.metadata)
    facts.pop(FENCED, None)
    facts.pop(WITHDRAWN, None)
    token = facts.pop("fencing_token", "0")
    return LiveDeployment(
        folder=folder,
        generation=page.generation,
        request_id=facts.pop("request_id", ""),
        fencing_token=int(token) if token.isdecimal() else 0,
        manifest_key=facts.pop("manifest", ""),
        facts=facts,
        since=page.updated_at,
    )
