"""The command line: what it shows, and that a person's mistake gets one sentence and never a traceback."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from sqlalchemy import update
from sqlalchemy.engine import make_url

from domain.db import engine_for
from domain.models import BuildKind, OutboxMail, State
from domain.requests.builds import BuildLedger
from domain.requests.failure import Failure
from lookit_ops.server.dagster_processes import dagster_programs
from tests.support.site import Site

ROOT = Path(__file__).resolve().parents[3]

STUDY = "Apples and oranges"
ADMIN = "study_admin@example.org"


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


def test_a_request_that_waits_again_shows_when_and_why_its_last_attempt_failed(run, site: Site) -> None:
    ledger = BuildLedger(site.sessions)
    request_id = ledger.request(site.study_id, site.study_admin, BuildKind.PREVIEW)
    claim = ledger.claim(request_id, "a run", timedelta(minutes=1))
    assert "running" in run("study", "log", STUDY).out
    at = datetime.now(UTC) + timedelta(minutes=40)
    ledger.retry(claim, Failure("checkout", "platform_error", "github.example answers no more", at), {})
    listed = run("build", "list").out
    assert "(place 1, attempt 2 from" in listed
    assert f"{at:%Y-%m-%d %H:%M} UTC)" in listed
    assert "github.example answers no more" in listed
    (row,) = json.loads(run("build", "list", "--json").out)
    assert row["failed_attempts"][0]["error"] == "github.example answers no more"
    log = run("study", "log", STUDY).out
    assert f"build request {request_id}: preview" in log
    assert "attempt 1, checkout: github.example answers no more" in log
    assert "Nothing has happened" not in log


def test_builds_are_requested_listed_with_their_place_and_cancelled(run, site: Site) -> None:
    first = run("build", "request", STUDY, "--as", ADMIN)
    assert "Build request 1: preview of Apples and oranges is queued, at place 1." in first.out
    second = json.loads(run("build", "request", STUDY, "--as", ADMIN, "--kind", "deployment", "--json").out)
    listed = json.loads(run("build", "list", "--json").out)
    assert [(row["kind"], row["status"], row["place_in_queue"]) for row in listed] == [
        ("deployment", "queued", 2),
        ("preview", "queued", 1),
    ]
    shown = run("build", "list").out
    assert "place 2" in shown
    assert "is cancelled" in run("build", "cancel", str(second["request_id"]), "--as", ADMIN).out
    assert site.request(second["request_id"]).status == "cancelled"


def test_mails_are_listed_and_delivered_into_the_folder(run, site: Site, tmp_path: Path) -> None:
    site.set_state(State.SUBMITTED)
    run("study", "transition", STUDY, "approve", "--as", "site_admin@example.org", "--revision", "1")
    (waiting,) = json.loads(run("mail", "list", "--json").out)
    assert (waiting["to"], waiting["status"]) == (ADMIN, "waiting")
    assert run("mail", "deliver").out.strip() == "1 sent, 0 delayed, 0 failed, 0 withdrawn."
    assert "sent" in run("mail", "list").out
    (message,) = (tmp_path / "home" / "mail").glob("*.eml")
    assert b"Apples and oranges: approved" in message.read_bytes()


def test_a_mail_that_failed_is_put_back_and_leaves_with_the_next_delivery(run, site: Site) -> None:
    site.set_state(State.SUBMITTED)
    run("study", "transition", STUDY, "approve", "--as", "site_admin@example.org", "--revision", "1")
    assert run("mail", "retry").out.strip() == "0 mails put back."
    with site.sessions.begin() as session:
        session.execute(update(OutboxMail).values(status="failed", attempts=21))
    assert run("mail", "retry", "1").out.strip() == "1 mail put back: 1."
    assert run("mail", "deliver").out.startswith("1 sent")
    refused = run("mail", "retry", "1")
    assert (refused.status, "mail 1 is sent: only one that has failed" in refused.err) == (1, True)
    assert "there is no mail 2" in run("mail", "retry", "2").err


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
    (["build", "cancel", str(2**63 - 1), "--as", ADMIN], f"no build request {2**63 - 1}"),
    (["build", "list", "--status", "lost"], "there is no status 'lost'"),
    (["study", "edit", STUDY, "--as", ADMIN, "--sha", "zzz"], "'zzz' is no commit of a player: give all 40 hex"),
    (["study", "edit", STUDY, "--as", ADMIN, "--sha", "a" * 39], "give all 40 hexadecimal digits"),
    (["study", "show", "caf\udce9"], "is not text in UTF-8"),
    (["study", "edit", STUDY, "--as", ADMIN, "--purpose", "caf\udce9"], "is not text in UTF-8"),
    (["workflow", "diagram", "--roi"], "name the study"),
    (["workflow", "diagram", "-o", "picture.gif"], "neither .png, .svg nor .mmd"),
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
    (tmp_path / "empty.db").touch()
    monkeypatch.setenv("LOOKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'empty.db'}")
    shown = run("study", "list")
    assert shown.status == 1
    said = " ".join(shown.err.split())
    assert f"sqlite:///{tmp_path / 'empty.db'} does not have this version's schema" in said
    assert "lookit-ops db upgrade" in said
    assert f"LOOKIT_HOME is {tmp_path / 'home'}" in said


def test_another_schema_is_told_with_the_database_and_without_its_password(
    run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not database_url.startswith("postgresql"):
        pytest.skip("SQLite knows no password")
    url = make_url(database_url).set(database="postgres").update_query_dict({"password": "hunter2-hunter2"})
    monkeypatch.setenv("LOOKIT_DATABASE_URL", url.render_as_string(hide_password=False))
    shown = run("study", "list")
    assert "/postgres" in "".join(shown.err.split())
    assert "does not have this version's schema" in " ".join(shown.err.split())
    assert "hunter2" not in shown.err


@pytest.mark.parametrize("command", ["build list", "study list", "mail list", "build reconcile"])
def test_a_home_that_was_forgotten_is_not_made_but_named(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.delenv("LOOKIT_DATABASE_URL")
    monkeypatch.delenv("LOOKIT_HOME")
    shown = run(*command.split())
    assert (shown.status, shown.out) == (1, "")
    said = " ".join(shown.err.split())
    assert f"there is no database {tmp_path / '.lookit' / 'lookit.db'}" in said
    assert "check LOOKIT_HOME" in said
    assert not (tmp_path / ".lookit").exists()
    assert run("db", "upgrade").status == 0
    assert run(*command.split()).status == 0


def test_a_database_out_of_reach_says_so(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_DATABASE_URL", "postgresql+psycopg://me:the-password@127.0.0.1:1/lookit")
    shown = run("study", "list")
    assert shown.status == 1
    assert "LOOKIT_DATABASE_URL" in shown.err
    assert "the-password" not in shown.err


def test_a_database_that_is_not_there_is_not_taken_for_one_without_schema(run, database_url: str, monkeypatch) -> None:
    if not database_url.startswith("postgresql"):
        pytest.skip("SQLite makes the file")
    monkeypatch.setenv("LOOKIT_DATABASE_URL", f"{database_url}_other")
    shown = run("study", "list")
    assert shown.status == 1
    assert "check LOOKIT_DATABASE_URL" in shown.err
    assert "upgrade" not in shown.err


OUT_OF_BOUNDS = [
    ["study", "log", STUDY, "--last", str(10**23)],
    ["study", "diff", STUDY, "--last", str(10**23)],
    ["build", "list", "--last", str(10**23)],
    ["mail", "list", "--last", str(10**23)],
    ["build", "cancel", str(10**23), "--as", ADMIN],
    ["build", "cancel", "0", "--as", ADMIN],
    ["mail", "retry", str(10**23)],
]


@pytest.mark.parametrize("arguments", OUT_OF_BOUNDS, ids=" ".join)
def test_a_number_that_no_database_can_hold_is_refused_as_typed(run, arguments: list[str]) -> None:
    shown = run(*arguments)
    assert shown.status == 2
    assert "should be" in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("number", [4711, 1.5, True, ["https://github.com/a/b"], {"url": "x"}, "ftp://x/y"])
def test_a_repository_that_is_none_is_refused_before_the_request_and_named(run, site: Site, number: object) -> None:
    site.set_metadata(player_repo_url=number)
    shown = run("build", "request", STUDY, "--as", ADMIN)
    assert (shown.status, shown.out) == (1, "")
    assert f"{str(number)!r} is no usable address" in " ".join(shown.err.split())
    assert json.loads(run("build", "list", "--json").out) == []


@pytest.mark.parametrize("blank", ["", "   ", None])
def test_a_blank_repository_means_the_default_as_it_does_to_the_build(run, site: Site, blank: str | None) -> None:
    site.set_metadata(player_repo_url=blank)
    shown = run("build", "request", STUDY, "--as", ADMIN, "--json")
    assert shown.status == 0, shown.err
    assert site.ledger.player_repo_url(json.loads(shown.out)["request_id"]) is None


def test_an_edit_names_the_players_values_and_not_their_column(run, site: Site) -> None:
    def edit(*options: str) -> str:
        return run("study", "edit", STUDY, "--as", ADMIN, *options).out.splitlines()[0]

    sha, url = "0123456789abcdefABCD" * 2, "https://github.com/lab/player"
    assert edit("--sha", f" {sha} ") == "Changed: last_known_player_sha."
    assert site.study().study_metadata == {"last_known_player_sha": sha}
    assert edit("--repository", url, "--purpose", "x") == "Changed: purpose, player_repo_url."
    assert edit("--sha", "") == "Changed: last_known_player_sha."
    assert edit("--repository", "  ") == "Changed: player_repo_url.", "blanks mean the default, as to the build"
    assert site.study().study_metadata == {}
    assert edit("--sha", "") == "Nothing changed."


NO_HOME = {"file": "file", "in a file": "file/home", "not writable": "/sys/lookit", "nowhere": "/proc/lookit/home"}


@pytest.mark.parametrize("home", NO_HOME.values(), ids=NO_HOME)
@pytest.mark.parametrize("command", ["study list", "db upgrade", "demo"])
def test_a_home_that_cannot_be_one_is_named(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str, command: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOOKIT_HOME", home)
    monkeypatch.delenv("LOOKIT_DATABASE_URL")
    shown = run(*command.split())
    assert shown.status == 1
    assert shown.err.startswith("Error: ")
    assert "LOOKIT_HOME" in shown.err
    assert home.split("/home")[0] in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_named(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (tmp_path / "broken.db").write_bytes(content)
    monkeypatch.setenv("LOOKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'broken.db'}")
    shown = run("study", "list")
    assert (shown.status, shown.out) == (1, "")
    said = "".join(shown.err.split())
    assert f"Error:thedatabasesqlite:///{tmp_path / 'broken.db'}cannotbeused:fileisnotadatabase;check" in said


WRONG = {
    "LOOKIT_STUDIES_URL": "http://localhost:99999/",
    "LOOKIT_DATABASE_URL": "postgresql+asyncpg://db.test/lookit",
    "LOOKIT_LEASE": "1e300",
}


@pytest.mark.parametrize(("name", "value"), WRONG.items(), ids=WRONG)
def test_a_value_that_would_fail_later_is_refused_at_the_start(
    run, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    shown = run("study", "list")
    assert (shown.status, shown.out) == (1, "")
    assert name in shown.err
    assert "Traceback" not in shown.err


def test_a_password_in_the_query_of_the_databases_url_is_never_shown(
    run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not database_url.startswith("postgresql"):
        pytest.skip("SQLite knows no password")
    separator = "&" if "?" in database_url else "?"
    monkeypatch.setenv("LOOKIT_DATABASE_URL", f"{database_url}{separator}password=hunter2-hunter2")
    assert "hunter2" not in run("db", "upgrade").out
    unreachable = "postgresql://127.0.0.1:1/lookit?password=hunter2-hunter2"
    monkeypatch.setenv("LOOKIT_DATABASE_URL", unreachable)
    shown = run("study", "list")
    assert "127.0.0.1:1/lookit?password=" in "".join(shown.err.split())
    assert "hunter2" not in shown.err


def test_what_is_kept_running_names_the_code_location_as_the_projects_own_workspace_does(tmp_path: Path) -> None:
    """Sensors and schedules are switched on and off by that name."""
    code, *others = dagster_programs(tmp_path, 3000, 4000)
    assert code.command[code.command.index("--location-name") + 1] == "lookit_ops"
    (project,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    (written,) = yaml.safe_load((tmp_path / "workspace.yaml").read_text())["load_from"]
    assert written["grpc_server"]["location_name"] == project["python_module"]["location_name"] == "lookit_ops"
    assert all(str(tmp_path / "workspace.yaml") in program.command for program in others)


READERS = (
    ["study", "list"],
    ["study", "show", STUDY],
    ["study", "diff", STUDY],
    ["study", "log", STUDY],
    ["build", "list"],
    ["videos", "list"],
    ["mail", "list"],
    ["permission", "list"],
    ["permission", "list", "--person", ADMIN],
    ["permission", "explain", ADMIN, "studies.change_study", "--study", STUDY],
    ["permission", "who", "studies.change_study", "--study", STUDY],
    ["build", "deployments", STUDY],
)


@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_what_only_reads_waits_for_no_writer(run, site: Site, database_url: str, command: list[str]) -> None:
    """On PostgreSQL it never did; there the transaction could not write, either."""
    site.ledger.request(site.study_id, site.study_admin, BuildKind.PREVIEW)
    writer = engine_for(database_url)
    with writer.connect() as connection, connection.begin():
        connection.execute(update(OutboxMail).values(last_error="held"))
        began = time.monotonic()
        shown = run(*command)
    writer.dispose()
    assert shown.status == 0, shown.err
    assert time.monotonic() - began < 15


def test_a_write_lock_that_another_program_holds_is_named(run, site: Site, database_url: str, monkeypatch) -> None:
    if not database_url.startswith("sqlite"):
        pytest.skip("PostgreSQL locks rows")
    monkeypatch.setattr("domain.db.SQLITE_BUSY_TIMEOUT", timedelta(seconds=0.2))
    writer = engine_for(database_url)
    with writer.connect(), writer.connect() as connection, connection.begin():
        shown = run("study", "edit", STUDY, "--as", ADMIN, "--purpose", "Another one")
    writer.dispose()
    assert shown.status == 1
    assert "another program holds the write lock of the database" in shown.err
    assert "LOOKIT_DATABASE_URL" not in shown.err
