"""`lookit-ops demo` on an empty home, with a real Ember build: what a newcomer sees, and what a family would meet."""

from __future__ import annotations

import json
import re

import pytest
import requests
from playwright.sync_api import Browser
from sqlalchemy import select

from domain.models import BuildKind, OutboxMail, State, Study, StudyLog
from lookit_ops.demo.example import example_commits
from lookit_ops.demo.footage import FAMILIES, FRAMES
from lookit_ops.demo.people import STUDY
from lookit_ops.deployments.manifest import folder_of
from lookit_ops.server.archive_server import ArchiveServer
from lookit_ops.server.study_server import StudyServer
from lookit_ops.storage.local.archives import LocalArchiveBucket
from lookit_ops.storage.local.experiments import LocalExperimentBucket
from tests.e2e.conftest import Demonstration
from tests.support.reels import opened

pytestmark = pytest.mark.ember


def study_of(demonstration: Demonstration) -> Study:
    with demonstration.sessions().begin() as session:
        return session.scalars(select(Study).where(Study.name == STUDY)).one()


def test_it_ends_well_and_says_where_to_look(demonstration: Demonstration) -> None:
    assert demonstration.status == 0, demonstration.said
    uuid = study_of(demonstration).uuid
    for kind in BuildKind:
        assert f"{folder_of(kind, uuid)}/index.html" in demonstration.said
    assert "approved → active" in demonstration.said
    assert "Warning" not in demonstration.said


@pytest.mark.parametrize("kind", BuildKind)
def test_page_and_assets_are_in_the_bucket_with_the_studys_prefix_in_them(
    demonstration: Demonstration, kind: BuildKind
) -> None:
    uuid = study_of(demonstration).uuid
    folder = demonstration.services.settings.local_bucket / folder_of(kind, uuid)
    page = (folder / "index.html").read_text()
    scripts = [name.split('"')[0] for name in page.split(f"/studies/{uuid}/")[1:]]
    assert any(name.endswith(".js") for name in scripts)
    assert any(name.endswith(".css") for name in scripts)
    for name in scripts:
        assert (folder / name).exists()
    player = next(folder.glob("assets/frameplayer-*.js")).read_text()
    assert f"/studies/{uuid}/assets/images/" in player, "pictures named in the code carry the prefix too"


def test_the_videos_are_zipped_and_the_printed_link_gives_the_archive(demonstration: Demonstration) -> None:
    settings = demonstration.services.settings
    (link,) = re.findall(rf"{settings.archives_url}\S+", demonstration.said)
    bucket = demonstration.services.archives
    assert isinstance(bucket, LocalArchiveBucket)
    with ArchiveServer(bucket) as server:
        answer = requests.get(link.replace(settings.archives_url, server.url), timeout=10)
    assert answer.status_code == 200
    members, rows = opened(answer.content)
    accepted = FAMILIES.count("accepted") * len(FRAMES)
    assert len(rows) == len(members) == accepted
    for row in rows:
        contents = (settings.local_videos / row["object_key"]).read_bytes()
        assert members[row["name"]] == contents
        assert row["bytes"] == str(len(contents))
        assert (row["consent_ruling"], row["status"]) == ("accepted", "included")


@pytest.mark.browser
@pytest.mark.parametrize(("kind", "version"), [(BuildKind.PREVIEW, "1.0"), (BuildKind.DEPLOYMENT, "2.0")])
def test_preview_and_deployment_render_each_with_its_own_version(
    demonstration: Demonstration, browser: Browser, kind: BuildKind, version: str
) -> None:
    uuid = study_of(demonstration).uuid
    bucket = LocalExperimentBucket(demonstration.services.settings.local_bucket)
    wrong: list[str] = []
    with StudyServer(bucket, kind) as server, browser.new_context() as context:
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
        page.goto(f"{server.url}studies/{uuid}")
        page.get_by_text(f"Frame player {version}").wait_for()
        page.get_by_role("checkbox").check()
        page.get_by_role("button", name="Start").click()
        page.get_by_role("heading").first.wait_for()
        page.wait_for_load_state("networkidle")
        pictures = page.evaluate("Array.from(document.images, image => image.naturalWidth)")
    assert wrong == []
    assert all(width > 0 for width in pictures)


def test_log_mails_and_states_tell_the_story(demonstration: Demonstration) -> None:
    study = study_of(demonstration)
    first, second = example_commits()
    assert study.state == State.ACTIVE
    with demonstration.sessions().begin() as session:
        logs = list(session.scalars(select(StudyLog).where(StudyLog.study_id == study.id).order_by(StudyLog.id)))
        mails = list(session.scalars(select(OutboxMail).where(OutboxMail.study_id == study.id)))
    assert [(log.action, log.state_before, log.state_after) for log in logs] == [
        ("preview", "created", "created"),
        ("edit", "created", "created"),
        ("submit", "created", "submitted"),
        ("approve", "submitted", "approved"),
        ("deployment", "approved", "active"),
        ("video_archive", "active", "active"),
        ("video_link", "active", "active"),
    ]
    assert (logs[0].extra["sha"], logs[4].extra["sha"]) == (first.sha, second.sha)
    assert "==> ember build" in logs[0].extra["build_output"]
    assert {mail.status for mail in mails} == {"sent"}
    assert len(list(demonstration.services.settings.mails.glob("*.eml"))) >= len(mails)


def test_the_log_on_the_command_line_has_real_line_breaks(demonstration: Demonstration) -> None:
    shown = demonstration.command("study", "log", STUDY, "--full")
    assert shown.returncode == 0
    assert "\n==> ember build --environment=production\n" in shown.stdout
    assert "\\n" not in shown.stdout
    entries = json.loads(demonstration.command("study", "log", STUDY, "--json").stdout)
    assert [entry["action"] for entry in entries] == [
        *("preview", "edit", "submit", "approve", "deployment"),
        *("video_archive", "video_link"),
    ]
