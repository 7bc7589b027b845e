"""Names by which runs are told apart: in Dagster's UI, by its limits on concurrency, and by our sensors."""

from __future__ import annotations

from collections.abc import Mapping

BUILD_JOB, ARCHIVE_JOB = "build_experiment", "build_zipfile_of_videos"
"""The jobs whose runs work on requests."""

KIND_TAG = "lookit/kind"
"""What the run is for: `build`, `archive`, `mails` or `reconcile`; Dagster's limits count these."""

LOCK_TAG = "lookit/locks"
"""The UUID of the study that the run locks: Dagster runs one of them at a time."""

STUDY_TAG = "lookit/study"
"""The study's UUID."""

REQUEST_TAG = "lookit/request"
"""The id of the request that the run works on."""

SUBMISSION_TAG = "lookit/submission"
"""How many runs were asked for on behalf of that request, this one included."""

_MOST_DIGITS = 18
"""So many always fit a key of the database."""


def number_in(tags: Mapping[str, str], name: str) -> int | None:
    """The number in a tag; None if there is none, or somebody typed what is no id."""
    value = tags.get(name, "")
    return int(value) if value.isdecimal() and len(value) <= _MOST_DIGITS else None
