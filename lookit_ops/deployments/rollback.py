"""Puts an earlier deployment of a study back: the same write of `index.html`, with the earlier page.

No file is sent: what a kept deployment names is still in the bucket, and that is made sure of before the page is
written. The rollback becomes a deployment of its own, with the earlier build's request id and facts, a new fencing
token, and a manifest that names the earlier files; so it can be rolled back from, and rolled back to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lookit_ops.deployments.commit_point import make_live, refuse_stale
from lookit_ops.deployments.manifest import (
    KEPT,
    MANIFEST,
    PAGE,
    PARALLEL,
    REVALIDATED,
    LiveDeployment,
    PastDeployment,
    history,
    kept_of,
    missing_files,
    replaced_by,
    staged_files,
    staging_of,
)
from lookit_ops.storage.errors import NoSuchObject, StorageError
from lookit_ops.storage.experiments import ExperimentBucket


class NotRestorable(StorageError):
    """There is no such earlier deployment, or not all of it is there any more. Another try will not help."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """An earlier deployment that is live again."""

    prefix: str
    """The folder of the bucket."""
    page_key: str
    generation: int
    """Of index.html."""
    request_id: str
    """Of the build that is live again."""
    fencing_token: int
    facts: Mapping[str, str]
    replaced_request_id: str
    """Of the build that was live until now."""
    file_count: int
    size_bytes: int


def restorable(bucket: ExperimentBucket, folder: str, keep: int = KEPT) -> tuple[PastDeployment, ...]:
    """What can be rolled back to: one deployment for each kept build that is not live, newest build first.

    Raises StorageError. Whether all of its files are there is not asked; `rollback` does.
    """
    return _others(history(bucket, folder), keep)


def choose(bucket: ExperimentBucket, folder: str, request_id: str | None = None, keep: int = KEPT) -> PastDeployment:
    """The deployment to put back: that of the build, or of the one that was built before the live one.

    Raises NotRestorable with what there is to choose from, StorageError.
    """
    past = history(bucket, folder)
    if not past:
        raise NotRestorable(f"{folder} has no deployment of this platform that is live, so there is none before it")
    live = past[0].manifest
    others = _others(past, keep)
    there = ", ".join(
        f"{found.manifest.request_id} (live since {found.live_since:%Y-%m-%d %H:%M} UTC)" for found in others
    )
    if request_id is not None:
        if request_id == live.request_id:
            raise NotRestorable(f"request {request_id} is what is live in {folder}; name another: {there or 'none'}")
        chosen = next((found for found in others if found.manifest.request_id == request_id), None)
        if chosen is None:
            raise NotRestorable(f"{folder} keeps no deployment of request {request_id}; there are: {there or 'none'}")
        return chosen
    chosen = next((found for found in others if found.manifest.build_token < live.build_token), None)
    if chosen is None:
        newer = f"; newer ones can be named: {there}" if there else ""
        raise NotRestorable(f"{folder} keeps nothing older than request {live.request_id}, which is live{newer}")
    return chosen


def choose_whole(
    bucket: ExperimentBucket, folder: str, request_id: str | None = None, keep: int = KEPT
) -> PastDeployment:
    """As `choose`, and all of its files are there, now. Raises NotRestorable, StorageError."""
    chosen = choose(bucket, folder, request_id, keep)
    whole_page(bucket, folder, chosen)
    return chosen


def rollback(
    bucket: ExperimentBucket,
    folder: str,
    *,
    request_id: str | None,
    fencing_token: int,
    seen_generation: int,
    before_commit: Callable[[], None],
    after_commit: Callable[[], None] = lambda: None,
    keep: int = KEPT,
    parallel: int = PARALLEL,
) -> Rollback:
    """Make an earlier deployment live again: `request_id`'s, or the one built before the live one.

    `fencing_token` is a new one of the study's, `seen_generation` that of the live page when it was given out, and
    `before_commit` is called right before the page is written and raises if the caller may not go on; `after_commit`
    is called once it is live, as in `publish`.

    Raises:
        NotRestorable: there is no such deployment, or not all of its files are there. Nothing was changed.
        GenerationMismatch: somebody else has written the page. Nothing was replaced.
        NoAnswer: the page may have been written, or may yet be; `fence` tells, once the storage can be reached.
        StorageError: the storage failed.
    """
    earlier = choose(bucket, folder, request_id, keep)
    target = earlier.manifest.request_id
    live = refuse_stale(bucket, folder, target, fencing_token, seen_generation)
    content = whole_page(bucket, folder, earlier)
    manifest_key = f"{staging_of(folder, target, fencing_token)}/{MANIFEST}"
    manifest = replace(earlier.manifest, fencing_token=fencing_token, replaces=replaced_by(bucket, live, manifest_key))
    bucket.put(
        manifest_key, manifest.to_json(), content_type="application/json", cache_control=REVALIDATED, replace=True
    )
    before_commit()
    refuse_stale(bucket, folder, target, fencing_token, seen_generation)
    now = make_live(
        bucket,
        content,
        LiveDeployment(folder, seen_generation, target, fencing_token, manifest_key, manifest.facts),
        staged_files(folder, manifest),
        parallel,
        after_commit,
    )
    return Rollback(
        prefix=folder,
        page_key=now.page_key,
        generation=now.generation,
        request_id=target,
        fencing_token=fencing_token,
        facts=manifest.facts,
        replaced_request_id=live.request_id if live else "",
        file_count=len(manifest.files),
        size_bytes=sum(file.size_bytes for file in manifest.files),
    )


def _others(past: tuple[PastDeployment, ...], keep: int) -> tuple[PastDeployment, ...]:
    newest: dict[str, PastDeployment] = {}
    for deployment in kept_of(past, keep):
        newest.setdefault(deployment.manifest.request_id, deployment)
    others = [found for found in newest.values() if found.superseded_at is not None]
    return tuple(sorted(others, key=lambda found: found.manifest.build_token, reverse=True))


def whole_page(bucket: ExperimentBucket, folder: str, earlier: PastDeployment) -> bytes:
    """Return the deployment's own page, if all that it names is there. Raises NotRestorable."""
    name = f"the deployment of request {earlier.manifest.request_id} in {folder}"
    page = next((file for file in earlier.manifest.files if file.path == str(PAGE)), None)
    if page is None:
        raise NotRestorable(f"{name} has no {PAGE} in its manifest")
    gone = missing_files({file.key: file for file in bucket.files(f"{folder}/")}, earlier.manifest)
    if gone:
        names = ", ".join(file.key for file in gone[:3]) + (", …" if len(gone) > 3 else "")
        raise NotRestorable(
            f"{name} is no longer whole: {len(gone)} of its {len(earlier.manifest.files)} files are missing or changed"
            f" ({names}); choose another, or build that commit again"
        )
    try:
        content = bucket.read(page.key)
    except NoSuchObject as error:
        raise NotRestorable(f"{name} is no longer whole: {error}") from error
    if hashlib.sha256(content).hexdigest() != page.sha256:
        raise NotRestorable(f"{name} is no longer whole: {page.key} has other contents than were deployed")
    return content
