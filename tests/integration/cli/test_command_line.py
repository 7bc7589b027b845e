"""The command line: what it shows, and that a person's mistake gets one sentence and never a traceback."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from domain.models import State
from lookit_ops.cli.main import main
from tests.support.site import Site

STUDY = "Apples and oranges"
ADMIN = "study_admin@example.org"


@dataclass(frozen=True)
class Shown:
    """What a command printed, and its status."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(
    site: Site, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Run `lookit-ops` on the site's database."""
    monkeypatch.setenv("LOOKIT_DATABASE_URL", database_url)
    monkeypatch.setenv("LOOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Shown:
        monkeypatch.setattr(sys, "argv", ["lookit-ops", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Shown(int(ended.value.code or 0), out, err)

    return call


def test_the_schema_can_be_upgraded_again_and_the_password_is_not_shown(run) -> None:
    shown = run("db", "upgrade")
    assert shown.status == 0
    assert "is up to date" in shown.out


def test_studies_are_listed_and_shown(run, site: Site) -> None:
    assert STUDY in run("study", "list").out
    assert run("study", "list", "--state", "paused").out.startswith("0 studies")
    (listed,) = json.loads(run("study", "list", "--json").out)
    assert (listed["name"], listed["state"], listed["uuid"]) == (STUDY, "approved", str(site.study().uuid))
    shown = json.loads(run("study", "show", STUDY, "--json").out)
    assert shown["triggers"] == ["reject", "activate", "archive"]
    assert "Early Childhood Lab" in run("study", "show", str(site.study().uuid)).out


def test_a_study_is_moved_and_its_log_tells_of_it(run, site: Site) -> None:
    site.set_state(State.SUBMITTED)
    moved = run("study", "transition", STUDY, "reject", "--as", "site_admin@example.org", "--comment", "More, please.")
    assert moved.out.strip() == "Apples and oranges: submitted → rejected"
    log = run("study", "log", STUDY).out
    assert "submitted → rejected" in log
    assert "comment: More, please." in log


def test_an_edit_after_the_approval_says_that_the_study_was_sent_back(run, site: Site) -> None:
    edited = run("study", "edit", STUDY, "--as", ADMIN, "--purpose", "Another one")
    assert "approved to rejected" in edited.out
    assert site.study().purpose == "Another one"
    assert run("study", "edit", STUDY, "--as", ADMIN, "--purpose", "Another one").out.strip() == "Nothing changed."


def test_builds_are_requested_listed_with_their_place_and_cancelled(run, site: Site) -> None:
    assert "waits for its turn" in run("build", "request", STUDY, "--as", ADMIN).out
    second = json.loads(run("build", "request", STUDY, "--as", ADMIN, "--kind", "deployment", "--json").out)
    listed = json.loads(run("build", "list", "--json").out)
    assert [(row["kind"], row["status"], row["place_in_queue"]) for row in listed] == [
        ("deployment", "queued", 2),
        ("preview", "queued", 1),
    ]
    assert "place 2" in run("build", "list").out
    assert "is cancelled" in run("build", "cancel", str(second["request_id"]), "--as", ADMIN).out
    assert site.request(second["request_id"]).status == "cancelled"


def test_mails_are_listed_and_delivered_into_the_folder(run, site: Site, tmp_path: Path) -> None:
    site.set_state(State.SUBMITTED)
    run("study", "transition", STUDY, "approve", "--as", "site_admin@example.org")
    (waiting,) = json.loads(run("mail", "list", "--json").out)
    assert (waiting["to"], waiting["status"]) == (ADMIN, "waiting")
    assert run("mail", "deliver").out.strip() == "1 sent, 0 delayed, 0 failed."
    assert "sent" in run("mail", "list").out
    (message,) = (tmp_path / "home" / "mail").glob("*.eml")
    assert b"Apples and oranges: approved" in message.read_bytes()


@pytest.mark.parametrize(("name", "magic"), [("workflow.png", b"\x89PNG"), ("workflow.svg", b"<?xml")])
def test_the_workflow_is_drawn_as_png_or_svg(run, tmp_path: Path, name: str, magic: bytes) -> None:
    assert run("workflow", "diagram", "-o", name).status == 0
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_the_region_of_interest_shows_only_what_concerns_the_study(run, site: Site, tmp_path: Path) -> None:
    run("workflow", "diagram", STUDY, "--roi", "-o", "roi.svg")
    drawn = (tmp_path / "roi.svg").read_text()
    assert ">approved<" in drawn
    assert ">active<" in drawn
    assert ">created<" not in drawn


REFUSED: list[tuple[list[str], str]] = [
    (["study", "show", "Nothing"], "no study has the UUID or name 'Nothing'"),
    (["study", "list", "--state", "asleep"], "there is no state 'asleep'"),
    (["study", "transition", STUDY, "fly", "--as", ADMIN], "there is no trigger 'fly'"),
    (["study", "transition", STUDY, "submit", "--as", ADMIN], "from here there is reject, activate, archive"),
    (["study", "transition", STUDY, "activate", "--as", ADMIN], "has never been deployed"),
    (["study", "transition", STUDY, "reject", "--as", ADMIN], "lacks studies.approve_study"),
    (["study", "edit", STUDY, "--as", "stranger@example.org", "--name", "x"], "lacks studies.change_study"),
    (["study", "edit", STUDY, "--as", ADMIN, "--name", " "], "name cannot be blank"),
    (["study", "edit", STUDY, "--as", ADMIN, "--repository", "ftp://x/y"], "ftp://x/y"),
    (["build", "request", STUDY, "--as", "nobody@example.org"], "nobody has an account"),
    (["build", "request", STUDY, "--as", "inactive@example.org"], "is inactive"),
    (["build", "request", STUDY, "--as", "designer@example.org", "--kind", "deployment"], "change_study_status"),
    (["build", "cancel", "4711", "--as", ADMIN], "no build request 4711"),
    (["build", "list", "--status", "lost"], "there is no status 'lost'"),
    (["workflow", "diagram", "--roi"], "name the study"),
    (["workflow", "diagram", "-o", "picture.gif"], "neither .png nor .svg"),
    (["workflow", "diagram", "-o", "nowhere/picture.png"], "cannot be written"),
]


@pytest.mark.parametrize(
    ("arguments", "said"), REFUSED, ids=lambda value: "-".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_gets_one_sentence_and_changes_nothing(run, site: Site, arguments: list[str], said: str) -> None:
    shown = run(*arguments)
    assert shown.status == 1
    assert shown.err.startswith("Error: ")
    assert said in " ".join(shown.err.split())
    assert "Traceback" not in shown.err
    assert (site.logs(), site.mails(), site.study().state) == ([], [], State.APPROVED)


def test_a_wrong_setting_is_named_with_its_value(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_ENVIRONMENT", "moon")
    shown = run("study", "list")
    assert shown.status == 1
    assert "LOOKIT_ENVIRONMENT" in shown.err
    assert "'moon'" in shown.err


def test_a_database_without_schema_says_what_to_run(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'empty.db'}")
    shown = run("study", "list")
    assert shown.status == 1
    assert "lookit-ops db upgrade" in shown.err


def test_a_database_out_of_reach_says_so(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_DATABASE_URL", "postgresql+psycopg://me:the-password@127.0.0.1:1/lookit")
    shown = run("study", "list")
    assert shown.status == 1
    assert "LOOKIT_DATABASE_URL" in shown.err
    assert "the-password" not in shown.err
