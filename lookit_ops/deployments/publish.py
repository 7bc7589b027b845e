"""How a bundle becomes a deployment: the same for every bucket, with `index.html` as the commit point.

Everything that a new page names is in place before the page is, and nothing that the live page names is touched:

1. Fingerprinted files go up under their own names, several at once. They are immutable, so old and new ones live side
   by side; those that are there already are not sent again.
2. The other files (robots.txt, crossdomain.xml) cannot live side by side, so they wait in
   `{folder}/.deployments/{request}-{token}/files/`, index.html among them, with a manifest that tells all of this
   deployment. A later rollback, or whoever finishes for a worker that died, needs nothing else. A file whose public
   name is still free is put there at once: no live page uses it.
3. The bucket is listed once more: what the manifest names is there, as it should be.
4. The caller makes sure that the claim still holds, and index.html is written on the condition that it is still the
   one seen at the claim. This is the commit.
5. The waiting files are copied to their public names. Anybody may repeat this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ember_build.bundle import Bundle, BundleFile
from ember_build.errors import PlayerBuildFailed
from lookit_ops.deployments.commit_point import make_live, refuse_stale
from lookit_ops.deployments.manifest import (
    DEPLOYMENTS,
    MANIFEST,
    PAGE,
    PARALLEL,
    REVALIDATED,
    LiveDeployment,
    Manifest,
    PublishedFile,
    missing_files,
    replaced_by,
    staging_of,
)
from lookit_ops.storage.content_types import content_type_of
from lookit_ops.storage.errors import NameTaken, PathTaken, StorageError
from lookit_ops.storage.experiments import ExperimentBucket, StoredFile
from lookit_ops.storage.parallel import in_parallel

IMMUTABLE = "public, max-age=31536000, immutable"
NAME_KEPT = (
    "The player's build gave new contents an old name: Ember names a script before it writes the names of other scripts"
    " into it. Change anything in the script itself, and its name changes, too"
)

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


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
    after_commit: Callable[[], None] = lambda: None,
    after_file: Callable[[BundleFile], None] | None = None,
    parallel: int = PARALLEL,
) -> Deployment:
    """Put the bundle into the folder; the live page stays until all is there, and then changes at once.

    `seen_generation` is that of the live page at the claim, 0 if there was none. `before_commit` is called right before
    the page is written and raises if the claim is lost; `after_commit` once it is live, before the files that waited
    for it are copied. `after_file` is told of each file that is in place, in this thread. At most `parallel` files are
    sent at once; the first error stops the rest.

    Raises:
        GenerationMismatch: a later worker, or somebody else, has written the page. Nothing was replaced.
        NameTaken: a fingerprinted name holds other contents.
        PlayerBuildFailed: the bundle has no index.html, or files where the bucket keeps its own.
        NoAnswer: the page may have been written, or may yet be; `fence` tells, once the storage can be reached.
        StorageError: the storage failed. Unless the page was written, the live deployment is as it was; if it was
            written, `live_deployment` says so, and `finish_public_files` does what is left.
    """
    _check(bundle, request_id)
    replaced = refuse_stale(bucket, folder, request_id, fencing_token, seen_generation)
    upload = _Upload(bucket, bundle, folder, staging_of(folder, request_id, fencing_token))
    manifest_key = f"{upload.staging}/{MANIFEST}"
    manifest = Manifest(
        request_id,
        fencing_token,
        dict(facts),
        tuple(map(upload.described, bundle.files)),
        fencing_token,
        replaced_by(bucket, replaced, manifest_key),
    )
    uploaded = upload.stage(manifest, bundle.files, after_file, parallel)

    before_commit()
    refuse_stale(bucket, folder, request_id, fencing_token, seen_generation)
    live = make_live(
        bucket,
        (bundle.root / PAGE).read_bytes(),
        LiveDeployment(folder, seen_generation, request_id, fencing_token, manifest_key, facts),
        upload.waiting,
        parallel,
        after_commit,
    )
    return _published(live, bundle, uploaded)


def _published(live: LiveDeployment, bundle: Bundle, uploaded: Sequence[BundleFile]) -> Deployment:
    return Deployment(
        prefix=live.folder,
        page_key=live.page_key,
        generation=live.generation,
        file_count=len(bundle.files),
        size_bytes=sum(file.size_bytes for file in bundle.files),
        uploaded_count=len(uploaded),
        uploaded_bytes=sum(file.size_bytes for file in uploaded),
        request_id=live.request_id,
        fencing_token=live.fencing_token,
    )


class _Upload:
    """The files of one deployment on their way into the bucket."""

    def __init__(self, bucket: ExperimentBucket, bundle: Bundle, folder: str, staging: str) -> None:
        self.bucket = bucket
        self.root = bundle.root
        self.folder = folder
        self.staging = staging
        self.listed = self._list()
        self.waiting: list[PublishedFile] = []
        """Files whose public names are in use."""

    def _list(self) -> dict[str, StoredFile]:
        return {file.key: file for file in self.bucket.files(f"{self.folder}/")}

    def stage(
        self,
        manifest: Manifest,
        bundle_files: Sequence[BundleFile],
        after_file: Callable[[BundleFile], None] | None,
        parallel: int,
    ) -> list[BundleFile]:
        """Send the files and their manifest, and make sure of them. Return the files that were not there already."""
        uploaded = self.send(dict(zip(bundle_files, manifest.files, strict=True)), after_file, parallel)
        self.bucket.put(
            f"{self.staging}/{MANIFEST}",
            manifest.to_json(),
            content_type="application/json",
            cache_control=REVALIDATED,
            replace=True,
            listed=self.listed,
        )
        self.make_sure_of(manifest)
        return uploaded

    def described(self, file: BundleFile) -> PublishedFile:
        """What the manifest tells of a file."""
        return PublishedFile(
            path=str(file.path),
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            content_type=content_type_of(file.path),
            cache_control=IMMUTABLE if file.fingerprinted else REVALIDATED,
            key=f"{self.folder}/{file.path}" if file.fingerprinted else f"{self.staging}/files/{file.path}",
        )

    def send(
        self,
        files: Mapping[BundleFile, PublishedFile],
        after_file: Callable[[BundleFile], None] | None,
        parallel: int,
    ) -> list[BundleFile]:
        """Send all files, and tell which were not there already."""
        uploaded: list[BundleFile] = []
        # The small ones that wait come last: while the storage refuses a fingerprinted name, they are not needed.
        for group in (True, False):
            members = [file for file in files if file.fingerprinted is group]
            acts = [self._sending(file, files[file]) for file in members]
            for place, sent in in_parallel(acts, parallel):
                if sent:
                    uploaded.append(members[place])
                if after_file:
                    after_file(members[place])
        return uploaded

    def _sending(self, file: BundleFile, stored: PublishedFile) -> Callable[[], bool]:
        return (lambda: self._send_fingerprinted(stored)) if file.fingerprinted else (lambda: self._send_other(stored))

    def _send_fingerprinted(self, stored: PublishedFile) -> bool:
        try:
            return self._put(stored, stored.key, self.listed)
        except PathTaken:
            raise
        except NameTaken as error:
            raise NameTaken(f"{error}. {NAME_KEPT}") from error

    def _send_other(self, stored: PublishedFile) -> bool:
        sent = self._put(stored, stored.key, self.listed, replace=True)
        if stored.path != str(PAGE):
            try:
                self._put(stored, f"{self.folder}/{stored.path}", self.listed)
            except NameTaken:
                self.waiting.append(stored)
        return sent

    def _put(
        self, stored: PublishedFile, key: str, listed: Mapping[str, StoredFile] | None, *, replace: bool = False
    ) -> bool:
        return self.bucket.put(
            key,
            self.root / stored.path,
            content_type=stored.content_type,
            cache_control=stored.cache_control,
            replace=replace,
            listed=listed,
        )

    def make_sure_of(self, manifest: Manifest) -> None:
        """See that all files are there, and send again what has gone since the first listing. Raises StorageError."""
        gone = missing_files(self._list(), manifest)
        for file in gone:
            self._put(file, file.key, None, replace=file.key.startswith(self.staging))
        if gone:
            gone = missing_files(self._list(), manifest)
        if gone:
            raise StorageError(
                f"{gone[0].key} and {len(gone) - 1} more files were uploaded to {self.bucket.name} and are not there,"
                " or not as they were sent; nothing was deployed"
            )


def _check(bundle: Bundle, request_id: str) -> None:
    if not _NAME.fullmatch(request_id):
        raise ValueError(f"{request_id!r} is no request id for a name in the bucket")
    if all(file.path != PAGE for file in bundle.files):
        raise PlayerBuildFailed(f"the bundle has no {PAGE}, so there is nothing to show")
    reserved = next((file.path for file in bundle.files if file.path.parts[0] == DEPLOYMENTS), None)
    if reserved:
        raise PlayerBuildFailed(f"the bundle has {reserved}, but {DEPLOYMENTS} is the platform's; name it otherwise")
