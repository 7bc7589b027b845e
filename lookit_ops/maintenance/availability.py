"""Takes studies down and puts them back: families get the deployment's page, or one that says it is not available.

The page is written as a deployment writes it: whole, on the condition of the generation that was seen. It goes on
naming the deployment, whose files stay, so that a return costs no build.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from domain.models import BuildKind, Study
from domain.models.studies import PageState
from domain.studies.availability import begin_change, end_change, needs_change, out_of_line
from lookit_ops.deployments.manifest import (
    NOT_AVAILABLE,
    PAGE,
    PAGE_TYPE,
    REVALIDATED,
    WITHDRAWN,
    folder_of,
    history,
)
from lookit_ops.deployments.rollback import whole_page
from lookit_ops.services import Services
from lookit_ops.storage.errors import GenerationMismatch, StorageError
from lookit_ops.storage.experiments import ExperimentBucket, StoredPage

logger = logging.getLogger(__name__)

ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Pages:
    """The ids of the studies whose page was to be changed."""

    taken_down: tuple[str, ...] = ()
    put_back: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    """Still to be changed: the log says why, and the next time tries again."""


def bring_pages_into_line(services: Services) -> Pages:
    """Give each study the page that its state says; one that cannot be changed now never stops the others."""
    done: dict[str, list[str]] = {"taken_down": [], "put_back": [], "failed": []}
    with services.sessions.begin() as session:
        ids = out_of_line(session)
    for study_id in ids:
        try:
            changed = bring_page_into_line(services, study_id)
        except Exception:  # its trouble is not the others'
            logger.exception("the page of study %s cannot be changed now", study_id)
            done["failed"].append(str(study_id))
        else:
            if changed is not None:
                done["put_back" if changed is PageState.SERVED else "taken_down"].append(str(study_id))
    return Pages(*(tuple(found) for found in done.values()))


def bring_page_into_line(services: Services, study_id: int) -> PageState | None:
    """Give a study the page that its state says; returns what it is now if that is another one, None if not.

    Raises StorageError: the page is as it was, or may have been written; the database knows that it is to be changed.
    """
    with services.sessions.begin() as session:
        uuid = session.get_one(Study, study_id).uuid
    folder = folder_of(BuildKind.DEPLOYMENT, uuid)
    for _ in range(ATTEMPTS):
        with services.sessions.begin() as session:
            if not needs_change(session, study_id):
                return None
        # Before the state: a worker that is late with a state that has passed finds another generation than this.
        page = services.bucket.page(f"{folder}/{PAGE}")
        with services.sessions.begin() as session:
            change = begin_change(session, study_id)
        if change is None:
            return None
        if page is None or not page.metadata.get("request_id"):
            found, was_changed = PageState.NONE, False
        else:
            found = change.wanted
            was_changed = (WITHDRAWN in page.metadata) == (found is PageState.SERVED)
            try:
                _write(services.bucket, folder, page, found)
            except GenerationMismatch:
                continue  # a deployment, or another worker, has just written it: look again
        with services.sessions.begin() as session:
            if end_change(session, change, found, was_changed=was_changed):
                return found if was_changed else None
    raise StorageError(f"the page of study {study_id} changes faster than it can be written; try again")


def _write(bucket: ExperimentBucket, folder: str, page: StoredPage, wanted: PageState) -> None:
    """Write the page, even if it is what is wanted: a worker that is late then finds another generation than it saw."""
    metadata = {name: value for name, value in page.metadata.items() if name != WITHDRAWN}
    if wanted is PageState.SERVED:
        content = whole_page(bucket, folder, history(bucket, folder)[0]) if WITHDRAWN in page.metadata else page.content
    else:
        content, metadata = NOT_AVAILABLE, {**metadata, WITHDRAWN: "yes"}
    bucket.write_page(
        f"{folder}/{PAGE}",
        content,
        content_type=PAGE_TYPE,
        cache_control=REVALIDATED,
        metadata=metadata,
        if_generation=page.generation,
    )
