"""The public list of studies in the bucket: `discoverable_studies.json`, which the public page reads.

It is written anew after each change of state that matters, by whoever made the change, and a sensor compares it with
the database in case that failed. Two writers at once leave the newer list: each notes the list's generation *before* it
asks the database, and writes only over that generation.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from domain.models import BuildKind
from domain.studies.discoverable import discoverable_studies
from lookit_ops.services import Services
from lookit_ops.storage.errors import GenerationMismatch

KEY = "discoverable_studies.json"
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class PublicList:
    """The list as the bucket has it now."""

    names: tuple[str, ...]
    generation: int
    rewritten: bool
    """False if it was up to date already."""


def wanted_list(services: Services) -> tuple[tuple[str, ...], bytes]:
    """Return the names on the list, and its content, as the database has them now."""
    with services.sessions.begin() as session:
        studies = discoverable_studies(session)
    link = services.links.built
    entries = [
        {**asdict(study), "uuid": str(study.uuid), "url": link(BuildKind.DEPLOYMENT, str(study.uuid))}
        for study in studies
    ]
    content = json.dumps({"studies": entries}, indent=1, ensure_ascii=False).encode()
    return tuple(study.name for study in studies), content


def refresh_public_list(services: Services) -> PublicList:
    """Bring the list in the bucket up to date with the database. Raises StorageError."""
    for attempt in range(1, ATTEMPTS + 1):
        there = services.bucket.page(KEY)
        names, content = wanted_list(services)
        if there is not None and there.content == content:
            return PublicList(names, there.generation, rewritten=False)
        try:
            generation = services.bucket.write_page(
                KEY,
                content,
                content_type="application/json; charset=utf-8",
                cache_control="no-cache",
                metadata={},
                if_generation=there.generation if there else 0,
            )
        except GenerationMismatch:
            if attempt == ATTEMPTS:
                raise
            continue
        return PublicList(names, generation, rewritten=True)
    raise AssertionError("the last attempt returns or raises")
