"""How a deployment becomes live: its page is written once, on a condition, or can never be written any more.

What the page tells, and which came before, is in `deployments.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from lookit_ops.deployments.manifest import (
    FENCED,
    NOTHING_YET,
    PAGE,
    PAGE_TYPE,
    PARALLEL,
    REVALIDATED,
    LiveDeployment,
    Manifest,
    PublishedFile,
    fenced_up_to,
    live_deployment,
    live_of,
    staged_files,
)
from lookit_ops.storage.errors import GenerationMismatch, NoAnswer, StorageError
from lookit_ops.storage.experiments import ExperimentBucket
from lookit_ops.storage.parallel import in_parallel

logger = logging.getLogger(__name__)

FENCE_ATTEMPTS = 5


def fence(bucket: ExperimentBucket, folder: str, request_id: str, fencing_token: int) -> LiveDeployment | None:
    """The live deployment if it is this claim's; if not, None, and from now on it can never become so.

    A worker that was suspended right before it writes its page knows nothing of a lease that ended meanwhile, and a
    request can be on its way for long. Only the page's generation can hold them back: the page is written again as it
    is, or, where none was ever written, as one that says so. The page then tells up to which token it is fenced: who
    comes late to fence the same claim changes nothing, so that a later claim which has seen the generation meanwhile
    loses nothing. Raises StorageError, and then nothing is known.
    """
    for _ in range(FENCE_ATTEMPTS):
        page = bucket.page(f"{folder}/{PAGE}")
        live = live_of(folder, page) if page else None
        if live is not None and (live.request_id, live.fencing_token) == (request_id, fencing_token):
            return live
        if live is not None and live.fencing_token > fencing_token:
            return None  # a later claim has written since
        if page is not None and fenced_up_to(page) >= fencing_token:
            return None  # this claim, or a later one, is fenced already
        with contextlib.suppress(GenerationMismatch):  # somebody wrote just now: look again who it was
            bucket.write_page(
                f"{folder}/{PAGE}",
                page.content if page else NOTHING_YET,
                content_type=PAGE_TYPE,
                cache_control=REVALIDATED,
                metadata={**(page.metadata if page else {}), FENCED: str(fencing_token)},
                if_generation=page.generation if page else 0,
            )
            return None
    raise StorageError(f"{folder}/{PAGE} changes faster than it can be read; try again")


def refuse_stale(
    bucket: ExperimentBucket, folder: str, request_id: str, fencing_token: int, seen_generation: int
) -> LiveDeployment | None:
    """The live deployment. Raises GenerationMismatch if it is one that this worker must not overwrite."""
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
    return live


def make_live(
    bucket: ExperimentBucket,
    content: bytes,
    new: LiveDeployment,
    waiting: list[PublishedFile],
    parallel: int = PARALLEL,
    after_commit: Callable[[], None] = lambda: None,
) -> LiveDeployment:
    """Write index.html, on the condition that its generation is `new.generation`; then the files that waited for it.

    `after_commit` is called between the two: the deployment is live, and its public names are still to be written.

    An error whose write went through all the same (a lost answer) is none. Any other is certain: the page was not
    written, and never will be; but for NoAnswer, when the storage cannot even be asked. After an interruption, too,
    the page either is this deployment's or never will be.
    """
    live = _commit(bucket, content, new)
    after_commit()
    _copy_to_public_names(bucket, live, waiting, parallel)
    return live


def finish_public_files(bucket: ExperimentBucket, live: LiveDeployment, parallel: int = PARALLEL) -> None:
    """Give the live deployment's other files their public names; harmless to repeat, or for a superseded one.

    Raises NoSuchObject if the deployment's own files are gone, StorageError if the storage fails.
    """
    if live.manifest_key:
        manifest = Manifest.from_json(bucket.read(live.manifest_key))
        _copy_to_public_names(bucket, live, staged_files(live.folder, manifest), parallel)


def _commit(bucket: ExperimentBucket, content: bytes, new: LiveDeployment) -> LiveDeployment:
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
            content_type=PAGE_TYPE,
            cache_control=REVALIDATED,
            metadata=metadata,
            if_generation=new.generation,
        )
    except NoAnswer as error:
        logger.warning("%s; fencing it, to be sure", error)
        try:
            live = fence(bucket, new.folder, new.request_id, new.fencing_token)
        except StorageError:
            raise error from None  # the caller must not call this a failure: it may still come
        if live is None:
            raise StorageError(f"{error}; now it is certain that it was not, and never will be") from error
        return live
    except StorageError:
        live = live_deployment(bucket, new.folder)
        if live is None or not _same(live, new):
            raise
        return live
    except BaseException as interruption:  # in the middle of the write, which may still arrive
        try:
            fence(bucket, new.folder, new.request_id, new.fencing_token)
        except StorageError as error:
            raise NoAnswer(f"whether {new.page_key} was written is not known: {error}") from interruption
        raise
    return replace(new, generation=generation)


def _copy_to_public_names(
    bucket: ExperimentBucket, live: LiveDeployment, files: list[PublishedFile], parallel: int
) -> None:
    def copying(file: PublishedFile) -> Callable[[], bool]:
        def copy() -> bool:
            # A worker that slept here must not put its files under a page that is no longer its own.
            now = live_deployment(bucket, live.folder)
            if now is None or not _same(now, live):
                return False
            bucket.copy(file.key, f"{live.folder}/{file.path}")
            return True

        return copy

    if not files:
        return
    copied = [done for _, done in in_parallel([copying(file) for file in files], parallel)]
    # One that slept between its look and its copy may have put an old file over a newer deployment's: put that right.
    now = live_deployment(bucket, live.folder)
    if any(copied) and now is not None and not _same(now, live):
        finish_public_files(bucket, now, parallel)


def _same(one: LiveDeployment, other: LiveDeployment) -> bool:
    return (one.request_id, one.fencing_token) == (other.request_id, other.fencing_token)
