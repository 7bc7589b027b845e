"""Which tests go to one process when several share the work: those that want what a machine has one of."""

from __future__ import annotations

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

WITH_S3 = {"test_archive_faults.py", "test_archive_resources.py", "test_video_bucket_contract.py"}
"""The files of the tests that want the real S3 server, whose ports are not all ours to choose."""

WITH_DEMONSTRATION = {"test_demonstration.py", "test_launchpad.py"}
"""The end-to-end files that look at one demonstration, which takes a minute to run."""


class Turns(LoadScopeScheduling):
    """Tests go to whichever process is free, one by one, but for those that take turns.

    Docker tests look at what is left on the engine; those of one end-to-end file share a Dagster.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = PurePosixPath(nodeid.partition("::")[0])
        if path.parent.name == "docker":
            return "docker"
        if path.parent.name == "e2e":
            return "demonstration" if path.name in WITH_DEMONSTRATION else path.name
        return "s3" if path.name in WITH_S3 else nodeid
