"""Brings the table `video` up to date from a listing of its buckets; the rules are in `domain/videos/catalogue.py`."""

from __future__ import annotations

from sqlalchemy import select

from domain.db import database_now
from domain.models import Study
from domain.videos.catalogue import CatalogueReport, Finding, update_catalogue
from domain.videos.object_names import prefixes_of
from lookit_ops.services import Services

PLAUSIBLE_SHARE = 0.2
"""Of the rows that may be marked as gone at once; more looks like another bucket, or like a part of the right one."""

TO_REPORT = tuple(finding for finding in Finding if finding is not Finding.DISREGARDED)
"""Why an object without a row is worth a warning; frames that a researcher tried out alone are not."""


def refresh_catalogue(
    services: Services, study: Study | None = None, *, plausible_share: float = PLAUSIBLE_SHARE
) -> CatalogueReport:
    """List the buckets, or the videos of one study in them, and write what is new, changed, gone or back.

    Raises StorageError, and InvalidRequest, with nothing changed, if an implausible share would be marked as gone.
    """
    prefixes = prefixes_of(study.uuid) if study else ("",)
    with services.sessions.begin() as session:
        now = session.scalars(select(database_now())).one()
    listing = [video for prefix in prefixes for video in services.videos.videos(prefix)]
    with services.sessions.begin() as session:
        return update_catalogue(
            session,
            listing,
            now=now,
            buckets=services.videos.names,
            study=study,
            plausible_share=plausible_share,
        )


def without_row(report: CatalogueReport) -> int:
    """How many objects look like somebody's videos and have no row."""
    return sum(report.without_row[finding].count for finding in TO_REPORT if finding in report.without_row)
