"""The review by command line: approve what was read, put back only what is approved, on both databases."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import requests

from domain.models import BuildKind, State
from lookit_ops.deployments.manifest import folder_of, live_deployment
from lookit_ops.deployments.publish import publish
from lookit_ops.server.study_server import StudyServer
from lookit_ops.storage.local.experiments import LocalExperimentBucket
from tests.integration.cli.conftest import Shown
from tests.support.bundles import bundle_of
from tests.support.site import Site

STUDY, ADMIN, REVIEWER = "Apples and oranges", "study_admin@example.org", "site_admin@example.org"
OFFICIAL = "https://github.com/lookit/ember-lookit-frameplayer"
STRANGERS = "https://github.com/stranger/player"
GOOD, EVIL = "a" * 40, "e" * 40
Run = Callable[..., Shown]


def test_an_approval_of_what_was_not_read_is_refused_with_what_has_changed(site: Site, run: Run) -> None:
    site.set_state(State.CREATED)
    run("study", "edit", STUDY, "--sha", GOOD, "--as", ADMIN)
    run("study", "transition", STUDY, "submit", "--as", ADMIN)
    read = json.loads(run("study", "show", STUDY, "--json").out)["revision"]
    assert read == 2
    run("study", "edit", STUDY, "--sha", EVIL, "--as", ADMIN)

    def approve(*options: str) -> Shown:
        return run("study", "transition", STUDY, "approve", "--as", REVIEWER, *options)

    without = approve()
    assert (without.status, without.out) == (1, "")
    assert "names the revision that was read" in " ".join(without.err.split())
    stale = approve("--revision", "2")
    assert (stale.status, stale.out) == (1, "")
    assert f'study_metadata.last_known_player_sha: "{GOOD}" → "{EVIL}"' in stale.err
    assert "Traceback" not in stale.err
    assert site.study().state == State.SUBMITTED
    assert approve("--revision", "3").status == 0
    shown = json.loads(run("study", "show", STUDY, "--json").out)
    assert (shown["approved_revision"], shown["approved_commit"]) == (3, EVIL)
    assert "revision 3" in run("study", "log", STUDY).out
    misplaced = run("study", "transition", STUDY, "reject", "--as", REVIEWER, "--revision", "3")
    assert (misplaced.status, misplaced.out) == (1, "")


def deploy(site: Site, bucket: LocalExperimentBucket, folder: Path, repository: str, sha: str) -> int:
    request = site.ledger.request(site.study_id, site.study_admin, BuildKind.DEPLOYMENT)
    claim = site.ledger.claim(request, "a run", timedelta(minutes=1))
    site.ledger.note_commit(claim, repository=repository, sha=sha, reason="the study names it")
    target = folder_of(claim.kind, claim.study_uuid)
    live = live_deployment(bucket, target)
    publish(
        bucket,
        bundle_of(folder, sha),
        folder=target,
        request_id=str(request),
        fencing_token=claim.fencing_token,
        seen_generation=live.generation if live else 0,
        facts={"repository": repository, "sha": sha},
        before_commit=lambda: None,
    )
    site.ledger.finish(claim, {})
    return request


def test_a_player_that_was_rejected_is_put_back_by_a_reviewer_alone(site: Site, run: Run, tmp_path: Path) -> None:
    bucket = LocalExperimentBucket(tmp_path / "home" / "buckets" / "development")
    strangers = deploy(site, bucket, tmp_path / "one", "stranger/player", EVIL)
    assert run("study", "transition", STUDY, "reject", "--as", REVIEWER).status == 0
    run("study", "edit", STUDY, "--sha", GOOD, "--as", ADMIN)
    run("study", "transition", STUDY, "resubmit", "--as", ADMIN)
    assert run("study", "transition", STUDY, "approve", "--as", REVIEWER, "--revision", "2").status == 0
    official = deploy(site, bucket, tmp_path / "two", "lookit/ember-lookit-frameplayer", GOOD)

    rows = json.loads(run("build", "deployments", STUDY, "--json").out)
    assert [(row["request_id"], row["may_be_restored"]) for row in rows] == [
        (str(official), False),
        (str(strangers), False),
    ]
    assert "has not been approved since" in rows[1]["why_not"]
    assert "not approved" in run("build", "deployments", STUDY).out
    refused = run("build", "rollback", STUDY, "--as", ADMIN, "--comment", "please")
    assert (refused.status, refused.out) == (1, "")
    assert "may not be put back" in " ".join(refused.err.split())
    live = live_deployment(bucket, folder_of("deployment", site.study().uuid))
    assert live is not None
    assert (live.request_id, site.study().state) == (str(official), State.ACTIVE)
    silent = run("build", "rollback", STUDY, "--as", "superuser@example.org")
    assert "--comment" in silent.err
    done = run("build", "rollback", STUDY, "--as", "superuser@example.org", "--comment", "The new one is silent.")
    assert done.status == 0, done.err
    assert "put it back all the same: The new one is silent." in str(site.logs()[-1].extra["sha_reason"])


def test_a_study_is_taken_down_and_put_back_by_its_transitions(site: Site, run: Run, tmp_path: Path) -> None:
    bucket = LocalExperimentBucket(tmp_path / "home" / "buckets" / "development")
    deploy(site, bucket, tmp_path / "one", "lookit/ember-lookit-frameplayer", GOOD)
    page = f"{folder_of('deployment', site.study().uuid)}/index.html"
    own = bucket.read(page)
    with StudyServer(bucket, BuildKind.DEPLOYMENT) as families:
        address = f"{families.url}studies/{site.study().uuid}/"

        def get() -> bytes:
            return requests.get(address, timeout=10).content

        assert get() == own
        down = run("study", "transition", STUDY, "reject", "--as", REVIEWER)
        assert (down.status, "Families get a page that says it is not available." in down.out) == (0, True)
        assert b"This study is not available" in get()
        assert json.loads(run("study", "show", STUDY, "--json").out)["page"] == "withdrawn"
        run("study", "transition", STUDY, "resubmit", "--as", ADMIN)
        run("study", "transition", STUDY, "approve", "--as", REVIEWER, "--revision", "1")
        assert b"This study is not available" in get()
        back = run("study", "transition", STUDY, "activate", "--as", ADMIN)
        assert (back.status, "Families get the study again." in back.out) == (0, True)
        assert get() == own
        assert run("study", "availability").out.strip() == "Every study has the page that its state says."
        site.set_state(State.DEACTIVATED)  # as another program might, past this one
        assert run("study", "availability").out.strip() == f"{STUDY} was taken down."
        assert b"This study is not available" in get()
    assert [log.action for log in site.logs() if log.action in ("taken_down", "put_back")] == [
        "taken_down",
        "put_back",
        "taken_down",
    ]
