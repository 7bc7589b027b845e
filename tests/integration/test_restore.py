"""The guide's SQL for a database that is older than its bucket, executed on both databases."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from domain.models import ArchiveKind, ArchiveRequest, BuildKind, State
from lookit_ops.deployments.commit_point import refuse_stale
from lookit_ops.storage.errors import GenerationMismatch
from lookit_ops.storage.local.experiments import LocalExperimentBucket
from tests.support.site import Site

GUIDE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
ON_POSTGRESQL, ON_SQLITE = re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL)
MINUTE = timedelta(minutes=1)
FOLDER = "experiments/of-a-study"
BEHIND_THE_BACKUP = 50
"""The token of the page that is live, which the restored database knows nothing of."""


def execute(engine: Engine) -> None:
    """Execute the guide's statements by the driver alone, as `psql` and `sqlite3` do."""
    url = make_url(engine.url)
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(url.database), isolation_level=None)) as bare:
            bare.executescript(ON_SQLITE)
        return
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as bare:
        bare.execute(ON_POSTGRESQL)


@pytest.fixture
def bucket(tmp_path: Path) -> LocalExperimentBucket:
    """A bucket in which a page is live that was written after the backup."""
    bucket = LocalExperimentBucket(tmp_path / "bucket")
    bucket.write_page(
        f"{FOLDER}/index.html",
        b"newer",
        content_type="text/html",
        cache_control="no-cache",
        metadata={"request_id": "9", "fencing_token": str(BEHIND_THE_BACKUP)},
        if_generation=0,
    )
    return bucket


def test_builds_after_a_restore_come_too_late_until_the_tokens_are_raised(
    engine: Engine, site: Site, bucket: LocalExperimentBucket
) -> None:
    ledger = site.ledger
    page = bucket.page(f"{FOLDER}/index.html")
    assert page

    def token_of_a_build() -> int:
        request_id = ledger.request(site.study_id, site.study_admin, BuildKind.DEPLOYMENT)
        claim = ledger.claim(request_id, f"run-{request_id}", MINUTE)
        ledger.cancelled(claim, "nobody", {})
        return claim.fencing_token

    with pytest.raises(GenerationMismatch, match="comes too late"):
        refuse_stale(bucket, FOLDER, "10", token_of_a_build(), page.generation)
    execute(engine)
    assert refuse_stale(bucket, FOLDER, "10", token_of_a_build(), page.generation)


def test_ids_after_a_restore_go_on_above_those_that_others_have_used(engine: Engine, site: Site) -> None:
    def ids(text: str) -> tuple[int, int]:
        """Of a new request of each kind."""
        archive = ArchiveRequest(
            study_id=site.study_id, requested_by_id=site.study_admin, kind=ArchiveKind.ALL.value, name_contains=text
        )
        with site.sessions.begin() as session:
            session.add(archive)
        return site.ledger.request(site.study_id, site.study_admin, BuildKind.PREVIEW), archive.id

    before = ids("before")
    execute(engine)
    once = ids("once")
    execute(engine)  # a second restore
    twice = ids("twice")
    assert all(after - earlier > 999_999 for earlier, after in zip(before + once, once + twice, strict=True))


def test_a_study_that_is_being_built_keeps_its_token_so_that_its_build_can_end(engine: Engine, site: Site) -> None:
    request_id = site.ledger.request(site.study_id, site.study_admin, BuildKind.DEPLOYMENT)
    claim = site.ledger.claim(request_id, "run-1", MINUTE)
    execute(engine)
    assert site.study().fencing_token == claim.fencing_token
    site.ledger.finish(claim, {})
    assert site.study().state == State.ACTIVE
