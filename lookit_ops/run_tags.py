"""The tags by which runs are told apart: in Dagster's UI, by its limits on concurrency, and by our sensors."""

KIND_TAG = "lookit/kind"
"""What the run is for: `build`, `archive` or `mails`; Dagster's limits count these."""

LOCK_TAG = "lookit/locks"
"""The UUID of the study that the run locks: Dagster runs one of them at a time."""

STUDY_TAG = "lookit/study"
"""The study's UUID."""

REQUEST_TAG = "lookit/request"
"""The id of the request that the run works on."""

SUBMISSION_TAG = "lookit/submission"
"""How many runs were asked for on behalf of that request, this one included."""
