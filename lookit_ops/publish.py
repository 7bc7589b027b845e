"""How a bundle becomes a deployment: the same for every bucket, with `index.html` as the commit point.

Everything that a new page names is in place before the page is, and nothing that the live page names is touched:

1. Fingerprinted files go up under their own names. They are immutable, so old and new ones live side by side.
2. The other files (robots.txt, crossdomain.xml) cannot live side by side, so they wait in
   `{folder}/.deployments/{request}-{token}/files/`, index.html among them, with a manifest that tells all of this
   deployment. A later rollback, or whoever finishes for a worker that died, needs nothing else. A file whose public
   name is still free is put there at once: no live page uses it.
3. The caller makes sure that the claim still holds, and index.html is written on the condition that it is still the
   one seen at the claim. This is the commit.
4. The waiting files are copied to their public names. Anybody may repeat this.
"""

from __future__ import annotations

import contextlib
import json
import mimetypes
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from uuid import UUID

from ember_build.bundle import Bundle, BundleFile
from ember_build.errors import PlayerBuildFailed
from lookit_ops.storage.experiments import (
    ExperimentBucket,
    GenerationMismatch,
    NameTaken,
    NoSuchObject,
    StorageError,
    StoredPage,
)

PAGE = PurePosixPath("index.html")
DEPLOYMENTS = ".deployments"
IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATED = "no-cache"
NOTHING_YET = b"<!doctype html><title>Not available</title><p>This study is not available.</p>\n"
"""What stands in the page's place when a dead worker had to be kept from writing the first one."""
FENCE_ATTEMPTS = 5
NAME_KEPT = (
    "The player's build gave new contents an old name: Ember names a script before it writes the names of other scripts"
    " into it. Change anything in the script itself, and its name changes, too"
)

_FOLDERS = {"preview": "preview_experiments", "deployment": "experiments"}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")

# Spelled out, so that a deployment does not depend on the mime.types of the machine that made it.
_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".map": "application/json; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".ogg": "audio/ogg",
    ".svg": "image/svg+xml; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webm": "video/webm",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xml": "text/xml; charset=utf-8",
}
_OTHER_TYPES = mimetypes.MimeTypes()  # Python's own table only


@dataclass(frozen=True, slots=True)
class Deployment:
    """A published bundle."""

    prefix: str
    """The folder of the bucket."""
    page_key: str
    generation: int
    """Of index.html."""
    file_count: int
    size_bytes: int
    uploaded_count: int
    """Files that were not there already."""
    uploaded_bytes: int
    request_id: str
    fencing_token: int


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
class Manifest:
    """All of one deployment."""

    request_id: str
    fencing_token: int
    facts: Mapping[str, str]
    files: tuple[PublishedFile, ...]

    def to_json(self) -> bytes:
        """As it is stored."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """As it was stored. Raises StorageError."""
        try:
            said = json.loads(content)
            files = tuple(PublishedFile(**file) for file in said.pop("files"))
            return cls(**said, files=files)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageError(f"a deployment's manifest cannot be read ({error}); deploy the study again") from error


def folder_of(kind: str, study_uuid: UUID | str) -> str:
    """The folder of the bucket for a study's preview or deployment."""
    return f"{_FOLDERS[kind]}/{study_uuid}"


def content_type_of(path: PurePosixPath) -> str:
    """The content type that browsers get for a file."""
    known = _CONTENT_TYPES.get(path.suffix.lower())
    if known:
        return known
    guessed, encoding = _OTHER_TYPES.guess_type(path.name)
    return guessed if guessed and not encoding else "application/octet-stream"


def publish(
    bucket: ExperimentBucket,
    bundle: Bundle,
    *,
    folder: str,
    request_id: str,
    fencing_token: int,
    seen_generation: int,
    facts: Mapping[str, str],
    before_commit: Callable[[], None],
    after_file: Callable[[BundleFile], None] | None = None,
) -> Deployment:
    """Put the bundle into the folder; the live page stays until all is there, and then changes at once.

    `seen_generation` is that of the live page at the claim, 0 if there was none. `before_commit` is called right before
    the page is written and raises if the claim is lost. `after_file` is told of each file that is in place.

    Raises:
        GenerationMismatch: a later worker, or somebody else, has written the page. Nothing was replaced.
        NameTaken: a fingerprinted name holds other contents.
        PlayerBuildFailed: the bundle has no index.html, or files where the bucket keeps its own.
        StorageError: the storage failed. Unless the page was written, the live deployment is as it was; if it was
            written, `live_deployment` says so, and `finish_public_files` does what is left.
    """
    page = _page_of(bundle)
    if not _NAME.fullmatch(request_id):
        raise ValueError(f"{request_id!r} is no request id for a name in the bucket")
    _refuse_stale(bucket, folder, request_id, fencing_token, seen_generation)
    uploaded: list[BundleFile] = []

    def done(file: BundleFile, *, sent: bool) -> None:
        if sent:
            uploaded.append(file)
        if after_file:
            after_file(file)

    staging = f"{folder}/{DEPLOYMENTS}/{request_id}-{fencing_token}"
    described = {file.path: _described(file, folder, staging) for file in bundle.files}
    for file in (file for file in bundle.files if file.fingerprinted):
        try:
            sent = _put(bucket, bundle, described[file.path])
        except NameTaken as error:
            raise NameTaken(f"{error}. {NAME_KEPT}") from error
        done(file, sent=sent)

    waiting: list[PublishedFile] = []
    for file in (file for file in bundle.files if not file.fingerprinted):
        stored = described[file.path]
        sent = _put(bucket, bundle, stored, replaces=True)
        if file is not page:
            try:
                _put(bucket, bundle, stored, key=f"{folder}/{stored.path}")
            except NameTaken:
                waiting.append(stored)
        done(file, sent=sent)
    manifest = Manifest(request_id, fencing_token, dict(facts), tuple(described.values()))
    manifest_key = f"{staging}/manifest.json"
    bucket.put(
        manifest_key, manifest.to_json(), content_type="application/json", cache_control=REVALIDATED, replace=True
    )

    before_commit()
    _refuse_stale(bucket, folder, request_id, fencing_token, seen_generation)
    live = _commit(
        bucket,
        (bundle.root / PAGE).read_bytes(),
        LiveDeployment(folder, seen_generation, request_id, fencing_token, manifest_key, facts),
    )
    _copy_to_public_names(bucket, live, waiting)
    return Deployment(
        prefix=folder,
        page_key=live.page_key,
        generation=live.generation,
        file_count=len(bundle.files),
        size_bytes=sum(file.size_bytes for file in bundle.files),
        uploaded_count=len(uploaded),
        uploaded_bytes=sum(file.size_bytes for file in uploaded),
        request_id=request_id,
        fencing_token=fencing_token,
    )


def live_deployment(bucket: ExperimentBucket, folder: str) -> LiveDeployment | None:
    """Which deployment the live index.html belongs to; None if there is no page. Raises StorageError."""
    page = bucket.page(f"{folder}/{PAGE}")
    return _live(folder, page) if page else None


def _live(folder: str, page: StoredPage) -> LiveDeployment:
    facts = dict(page.metadata)
    token = facts.pop("fencing_token", "0")
    return LiveDeployment(
        folder=folder,
        generation=page.generation,
        request_id=facts.pop("request_id", ""),
        fencing_token=int(token) if token.isdecimal() else 0,
        manifest_key=facts.pop("manifest", ""),
        facts=facts,
    )


def fence(bucket: ExperimentBucket, folder: str, request_id: str, fencing_token: int) -> LiveDeployment | None:
    """The live deployment if it is this claim's; if not, None, and from now on it can never become so.

    A worker that was suspended right before it writes its page knows nothing of a lease that ended meanwhile. Only the
    page's generation can hold it back: the page is written again as it is, or, where none was ever written, as one that
    says so. Raises StorageError, and then nothing is known.
    """
    for _ in range(FENCE_ATTEMPTS):
        page = bucket.page(f"{folder}/{PAGE}")
        live = _live(folder, page) if page else None
        if live is not None and (live.request_id, live.fencing_token) == (request_id, fencing_token):
            return live
        if live is not None and live.fencing_token > fencing_token:
            return None  # a later claim has written since
        with contextlib.suppress(GenerationMismatch):  # somebody wrote just now: look again who it was
            bucket.write_page(
                f"{folder}/{PAGE}",
                page.content if page else NOTHING_YET,
                content_type=content_type_of(PAGE),
                cache_control=REVALIDATED,
                metadata=page.metadata if page else {},
                if_generation=page.generation if page else 0,
            )
            return None
    raise StorageError(f"{folder}/{PAGE} changes faster than it can be read; try again")


def finish_public_files(bucket: ExperimentBucket, live: LiveDeployment) -> None:
    """Give the live deployment's other files their public names; harmless to repeat, or for a superseded one.

    Raises NoSuchObject if the deployment's own files are gone, StorageError if the storage fails.
    """
    if live.manifest_key:
        manifest = Manifest.from_json(bucket.read(live.manifest_key))
        staged = [file for file in manifest.files if file.key != f"{live.folder}/{file.path}"]
        _copy_to_public_names(bucket, live, [file for file in staged if file.path != str(PAGE)])


def facts_of(bucket: ExperimentBucket, live: LiveDeployment) -> dict[str, int]:
    """How many files the live deployment has and how many bytes; nothing if it has no manifest."""
    if not live.manifest_key:
        return {}
    try:
        files = Manifest.from_json(bucket.read(live.manifest_key)).files
    except NoSuchObject:
        return {}
    return {"files": len(files), "bytes": sum(file.size_bytes for file in files)}


def _page_of(bundle: Bundle) -> BundleFile:
    page = next((file for file in bundle.files if file.path == PAGE), None)
    if page is None:
        raise PlayerBuildFailed(f"the bundle has no {PAGE}, so there is nothing to show")
    reserved = next((file.path for file in bundle.files if file.path.parts[0] == DEPLOYMENTS), None)
    if reserved:
        raise PlayerBuildFailed(f"the bundle has {reserved}, but {DEPLOYMENTS} is the platform's; name it otherwise")
    return page


def _refuse_stale(
    bucket: ExperimentBucket, folder: str, request_id: str, fencing_token: int, seen_generation: int
) -> None:
    """Raise GenerationMismatch if a page is live that this worker must not overwrite."""
    live = live_deployment(bucket, folder)
    if live is not None and live.fencing_token > fencing_token:
        raise GenerationMismatch(
            f"{folder} was deployed by request {live.request_id} with the later fencing token {live.fencing_token}; "
            f"request {request_id} with token {fencing_token} comes too late"
        )
    generation = live.generation if live else 0
    ours = live is not None and (live.request_id, live.fencing_token) == (request_id, fencing_token)
    if generation != seen_generation and not ours:
        raise GenerationMismatch(
            f"somebody else wrote {folder}/{PAGE} meanwhile: generation {seen_generation} was seen, "
            f"now it is {generation}; ask for the build again if it is still wanted"
        )


def _described(file: BundleFile, folder: str, staging: str) -> PublishedFile:
    return PublishedFile(
        path=str(file.path),
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        content_type=content_type_of(file.path),
        cache_control=IMMUTABLE if file.fingerprinted else REVALIDATED,
        key=f"{folder}/{file.path}" if file.fingerprinted else f"{staging}/files/{file.path}",
    )


def _put(
    bucket: ExperimentBucket, bundle: Bundle, file: PublishedFile, *, key: str = "", replaces: bool = False
) -> bool:
    return bucket.put(
        key or file.key,
        bundle.root / file.path,
        content_type=file.content_type,
        cache_control=file.cache_control,
        replace=replaces,
    )


def _commit(bucket: ExperimentBucket, content: bytes, new: LiveDeployment) -> LiveDeployment:
    """Write index.html. An error whose write went through all the same (a lost answer) is none."""
    metadata = {
        **new.facts,
        "request_id": new.request_id,
        "fencing_token": str(new.fencing_token),
        "manifest": new.manifest_key,
    }
    try:
        generation = bucket.write_page(
            new.page_key,
            content,
            content_type=content_type_of(PAGE),
            cache_control=REVALIDATED,
            metadata=metadata,
            if_generation=new.generation,
        )
    except StorageError:
        live = live_deployment(bucket, new.folder)
        if live is None or not _same(live, new):
            raise
        return live
    return replace(new, generation=generation)


def _copy_to_public_names(bucket: ExperimentBucket, live: LiveDeployment, files: list[PublishedFile]) -> None:
    for file in files:
        # A worker that slept here must not put its files under a page that is no longer its own.
        now = live_deployment(bucket, live.folder)
        if now is None or not _same(now, live):
            return
        bucket.copy(file.key, f"{live.folder}/{file.path}")


def _same(one: LiveDeployment, other: LiveDeployment) -> bool:
    return (one.request_id, one.fencing_token) == (other.request_id, other.fencing_token)
