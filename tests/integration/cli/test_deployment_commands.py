"""`lookit-ops build deployments`, `rollback` and `prune`, on a study with deployments in a bucket that is a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from domain.models import BuildKind, State
from lookit_ops.deployments.manifest import folder_of, live_deployment
from lookit_ops.deployments.publish import publish
from lookit_ops.storage.local.experiments import LocalExperimentBucket
from tests.integration.cli.conftest import Shown
from tests.support.bundles import bundle_of
from tests.support.site import Site
from tests.support.strict_gcs import StrictGcs

ADMIN = "study_admin@example.org"
Run = Callable[..., Shown]


@pytest.fixture
def bucket(tmp_path: Path) -> LocalExperimentBucket:
    """The bucket of the commands' settings."""
    return LocalExperimentBucket(tmp_path / "home" / "buckets" / "development")


@pytest.fixture
def deployed(site: Site, bucket: LocalExperimentBucket, tmp_path: Path) -> Site:
    """The site, whose study was deployed three times."""
    for number in (1, 2, 3):
        request = site.ledger.request(site.study_id, site.study_admin, BuildKind.DEPLOYMENT)
        claim = site.ledger.claim(request, "a run", timedelta(minutes=1))
        sha = str(number) * 40
        site.ledger.note_commit(claim, repository="lookit/player", sha=sha, reason="the study names it")
        folder = folder_of(claim.kind, claim.study_uuid)
        live = live_deployment(bucket, folder)
        publish(
            bucket,
            bundle_of(tmp_path / f"dist-{number}", str(number)),
            folder=folder,
            request_id=str(request),
            fencing_token=claim.fencing_token,
            seen_generation=live.generation if live else 0,
            facts={"repository": "lookit/player", "sha": sha},
            before_commit=lambda: None,
        )
        site.ledger.finish(claim, {})
    return site


def live_request(site: Site, bucket: LocalExperimentBucket) -> str:
    live = live_deployment(bucket, folder_of("deployment", site.study().uuid))
    assert live
    return live.request_id


def test_deployments_shows_the_live_one_and_what_can_be_restored(deployed: Site, run: Run) -> None:
    shown = run("build", "deployments", "Apples and oranges")
    assert shown.status == 0
    assert "3 deployments of Apples and oranges" in shown.out
    rows = json.loads(run("build", "deployments", "Apples and oranges", "--json").out)
    assert [(row["request_id"], row["is_live"]) for row in rows] == [("3", True), ("2", False), ("1", False)]
    assert [row["player_sha"][0] for row in rows] == ["3", "2", "1"]
    assert rows[0]["superseded_at"] is None
    assert rows[0]["live_since"] == rows[1]["superseded_at"]


def test_a_study_that_was_never_deployed_has_none(site: Site, run: Run) -> None:
    assert "0 deployments" in run("build", "deployments", "Apples and oranges").out
    shown = run("build", "rollback", "Apples and oranges", "--as", ADMIN)
    assert shown.status == 1
    assert "no deployment" in shown.err
    assert (site.study().state, site.logs()) == (State.APPROVED, [])


def test_rollback_goes_to_the_build_before_or_to_a_named_one(
    deployed: Site, bucket: LocalExperimentBucket, run: Run
) -> None:
    shown = run("build", "rollback", "Apples and oranges", "--as", ADMIN)
    assert shown.status == 0, shown.err
    assert "what build request 2 had built" in " ".join(shown.out.split())
    assert live_request(deployed, bucket) == "2"
    assert run("build", "rollback", "Apples and oranges", "--to", "3", "--as", ADMIN).status == 0
    assert live_request(deployed, bucket) == "3"
    logs = deployed.logs()[-2:]
    assert [(log.action, log.extra["restores"], log.extra["origin"]) for log in logs] == [
        ("rollback", 2, "through the command line"),
        ("rollback", 3, "through the command line"),
    ]
    listed = run("build", "list")
    assert "rollback to 3" in listed.out
    assert json.loads(run("build", "list", "--json").out)[0]["restores_id"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--as", "designer@example.org"], "lacks studies.change_study_status"),
        (["--as", ADMIN, "--to", "3"], "is what is live"),
        (["--as", ADMIN, "--to", "99"], "keeps no deployment of request 99"),
    ],
)
def test_a_refusal_says_why_and_changes_nothing(
    deployed: Site, bucket: LocalExperimentBucket, run: Run, arguments: list[str], said: str
) -> None:
    logs = len(deployed.logs())
    shown = run("build", "rollback", "Apples and oranges", *arguments)
    assert shown.status == 1
    assert said in " ".join(shown.err.split())
    assert live_request(deployed, bucket) == "3"
    assert (len(deployed.logs()), deployed.study().state) == (logs, State.ACTIVE)


def test_prune_says_what_goes_and_takes_nothing_young(deployed: Site, run: Run) -> None:
    shown = run("build", "prune", "--keep", "1", "--older-than-hours", "1")
    assert shown.status == 0, shown.err
    assert "0 files with 0 bytes removed" in shown.out
    assert "would be removed" in run("build", "prune", "--dry-run").out
    for wrong in (["--older-than-hours", "0.5"], ["--keep", "0"]):
        assert run("build", "prune", *wrong).status == 2


def test_the_public_list_is_kept_in_a_bucket_of_google(site: Site, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with StrictGcs("lookit-studies") as server:
        monkeypatch.setenv("LOOKIT_BUCKET", "gs://lookit-studies")
        monkeypatch.setenv("LOOKIT_GCS_ENDPOINT", server.url)
        assert run("study", "discoverable").status == 0
        assert set(server.objects("lookit-studies")) == {".bucket/environment", "discoverable_studies.json"}
