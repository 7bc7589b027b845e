"""Names by which runs are told apart: in Dagster's UI, by its limits on concurrency, and by our sensors."""

from __future__ import annotations

from collections.abc import Mapping

from domain.escaping import one_line
from domain.requests.claims import Claim

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

NAME_TAG, ACT_TAG = "study", "what"
"""For people, who see them in the list of runs: the study's name, and what is done for it."""
_LONGEST_NAME = 60
"""Characters: the list of runs cuts longer tags off."""

OWNERS = ["team:operators"]
"""Who looks after the jobs and assets, as Dagster shows it."""


def tags_of(claim: Claim) -> dict[str, str]:
    """Return the tags of a run that holds this claim."""
    name = one_line(claim.study_name)
    return {
        NAME_TAG: name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…",
        ACT_TAG: f"{claim.act}, request {claim.request_id}",
        STUDY_TAG: str(claim.study_uuid),
        REQUEST_TAG: str(claim.request_id),
    }


_MOST_DIGITS = 18
"""So many always fit a key of the database."""


def number_in(tags: Mapping[str, str], name: str) -> int | None:
    """The number in a tag; None if there is none, or somebody typed what is no id."""
    value = tags.get(name, "")
    return int(value) if value.isdecimal() and len(value) <= _MOST_DIGITS else None
