"""docs/requests.md, executed: its statements by the bare driver on both databases, and what the database refuses."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from domain import errors, requests
from domain.errors import PermissionDenied
from domain.models import ArchiveRequest, BuildKind, RequestStatus, Response, Study, User, Video
from domain.requests.archives import ArchiveFacts, ArchiveLedger, MissingVideo
from domain.requests.failure import Failure as ArchiveFailure
from domain.requests.queue import RequestQueue
from domain.videos.selection import Basis, HeldVideo, Source
from lookit_ops.failures import CODES, UNEXPECTED
from lookit_ops.runs import dead_runs
from tests.support.footage import Footage
from tests.support.site import Site

DOCUMENT = (Path(__file__).parents[3] / "docs" / "requests.md").read_text()
STATEMENTS = re.findall(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL)
MINUTE = timedelta(minutes=1)

Rows = list[tuple[Any, ...]]
Execute = Callable[..., Rows]


@pytest.fixture
def execute(engine: Engine, site: Site) -> Iterator[Execute]:
    """Execute one statement by the driver alone, as another program would, each in a transaction of its own."""
    url = make_url(engine.url)
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(url.database), isolation_level=None)) as bare:
            bare.execute("PRAGMA foreign_keys = ON")
            yield lambda sql, **values: bare.execute(sql, values).fetchall()
        return

    with psycopg.connect(
        url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
    ) as bare:

        def on_postgresql(sql: str, **values: Any) -> Rows:
            cursor = bare.execute(re.sub(r":(\w+)", r"%(\1)s", sql), values)
            return cursor.fetchall() if cursor.description else []

        yield on_postgresql


@pytest.fixture
def now(engine: Engine) -> str:
    """A time as the document writes it for each database."""
    return "2026-03-01 10:00:00.000000" if engine.dialect.name == "sqlite" else "2026-03-01 10:00:00+00"


def of_document(begin: str) -> str:
    """The one statement of the document that begins like this."""
    (statement,) = (found for found in STATEMENTS if found.startswith(begin))
    return statement


def asked(execute: Execute, site: Site, user_id: int) -> int:
    ((request_id,),) = execute(of_document("INSERT INTO build_request"), study_id=site.study_id, user_id=user_id)
    return request_id


def test_every_statement_of_the_document_is_tested_here() -> None:
    source = Path(__file__).read_text()
    tested = re.findall(r'of_document\(\s*"([^"]+)"', source)
    assert sorted(of_document(begin) for begin in set(tested)) == sorted(STATEMENTS)


def test_a_build_that_was_asked_for_by_sql_is_claimed_and_carried_out(site: Site, execute: Execute) -> None:
    request_id = asked(execute, site, site.designer)
    row = site.request(request_id)
    assert (row.status, row.kind, row.origin, row.attempt) == ("queued", "preview", "", 0)
    assert abs(datetime.now(UTC) - row.requested_at) < MINUTE
    claimed = site.ledger.claim(request_id, "run-1", MINUTE)
    site.ledger.note_commit(claimed, repository="lookit/player", sha="a" * 40, reason="HEAD")
    look = of_document("SELECT r.status")
    assert [execute(look, request_id=request_id)[0][index] for index in (0, 10)] == ["running", "previewing"]
    site.ledger.finish(claimed, {"log": ["built"]})
    ((status, code, error, repository, sha, reason, *_, finished_at, state),) = execute(look, request_id=request_id)
    assert (status, code, error, state) == ("succeeded", None, None, "approved")
    assert (repository, sha, reason) == ("lookit/player", "a" * 40, "HEAD")
    assert finished_at is not None
    ((action, before, after, extra, _),) = execute(of_document("SELECT action"), study_id=site.study_id)
    assert (action, before, after) == ("preview", "approved", "approved")
    assert "built" in str(extra)


def test_asking_twice_leaves_the_request_that_waits(site: Site, execute: Execute) -> None:
    request_id = asked(execute, site, site.designer)
    again = of_document("INSERT INTO build_request")
    assert execute(again, study_id=site.study_id, user_id=site.study_admin) == []
    ((waiting, by, _),) = execute(of_document("SELECT id, requested_by_id"), study_id=site.study_id)
    assert (waiting, by) == (request_id, site.designer)
    site.ledger.claim(request_id, "run-1", MINUTE)
    assert asked(execute, site, site.study_admin) != request_id  # the next one may wait while this one runs


def test_who_may_not_ask_is_told_in_the_row(site: Site, execute: Execute) -> None:
    request_id = asked(execute, site, site.stranger)
    with pytest.raises(PermissionDenied):
        site.ledger.claim(request_id, "run-1", MINUTE)
    ((status, code, error, *_),) = execute(of_document("SELECT r.status"), request_id=request_id)
    assert (status, code) == ("failed", "permission_denied")
    assert "stranger@example.org lacks studies.change_study" in error


def test_a_running_build_is_told_to_stop_by_sql_and_a_waiting_one_is_not_touched(site: Site, execute: Execute) -> None:
    cancel = of_document("UPDATE build_request")
    request_id = asked(execute, site, site.designer)
    execute(cancel, request_id=request_id, user_id=site.study_admin)
    assert site.request(request_id).cancel_requested_at is None
    claimed = site.ledger.claim(request_id, "run-1", MINUTE)
    assert not site.ledger.heartbeat(claimed, MINUTE).cancel_requested
    execute(cancel, request_id=request_id, user_id=site.study_admin)
    assert site.ledger.heartbeat(claimed, MINUTE).cancel_requested
    assert site.ledger.canceller(claimed) == "Study Admin"
    asked_at = site.request(request_id).cancel_requested_at
    assert asked_at is not None
    assert abs(datetime.now(UTC) - asked_at) < MINUTE
    site.ledger.cancelled(claimed, "Study Admin", {})
    assert site.request(request_id).error_code == "cancelled"


def test_an_archive_is_asked_for_by_sql(site: Site, execute: Execute) -> None:
    ask = of_document("INSERT INTO archive_request")
    ((request_id,),) = execute(ask, study_id=site.study_id, user_id=site.study_admin)
    with site.sessions.begin() as session:
        row = session.get_one(ArchiveRequest, request_id)
    assert (row.status, row.kind, row.name_contains, row.attempt) == ("queued", "consent", "", 0)
    assert execute(ask, study_id=site.study_id, user_id=site.study_admin) == []
    assert execute(ask, study_id=site.study_id, user_id=site.designer) != []


def asked_archive(execute: Execute, site: Site) -> int:
    ((request_id,),) = execute(
        of_document("INSERT INTO archive_request"), study_id=site.study_id, user_id=site.study_admin
    )
    return request_id


def due_archives(site: Site) -> list[int]:
    """The archive requests that a worker would be asked to take now."""
    return [asked.request_id for asked in RequestQueue(site.sessions, ArchiveRequest).submit(limit=9, at_once=9)]


def test_an_archive_that_was_asked_for_by_sql_is_claimed_and_its_end_is_told(site: Site, execute: Execute) -> None:
    footage, archives = Footage(site), ArchiveLedger(site.sessions)
    footage.video(footage.response("accepted"), is_consent=True)
    request_id, look = asked_archive(execute, site), of_document("SELECT status, attempt")
    assert due_archives(site) == [request_id]
    claimed = archives.claim(request_id, "run-1", MINUTE)
    archives.retry(claimed, ArchiveFailure("stream", "storage_error", "no answer"), {})
    ((status, attempt, again_at, code, error, *_),) = execute(look, request_id=request_id)
    assert (status, attempt, code, error) == ("queued", 1, "storage_error", None)
    assert str(again_at) > str(datetime.now(UTC))[:19]
    claimed = archives.claim(request_id, "run-2", MINUTE)
    facts = ArchiveFacts(
        archive_key="u/u_d_consent.zip",
        archive_bytes=4_000,
        missing=(MissingVideo("v.mp4", "not in the bucket"),),
        without_permission=2,
        without_consent=0,
        basis=Basis(frozenset({Source.FAMILIES}), tuple(HeldVideo(number, 1, "v.mp4") for number in range(3))),
        was_there=False,
    )
    archives.finish(claimed, facts, {})
    ((status, attempt, _, code, error, *numbers),) = execute(look, request_id=request_id)
    assert (status, attempt, code, error, numbers) == ("succeeded", 2, None, None, [4_000, 3, 1, 2])


def test_an_archive_is_cancelled_by_sql_while_it_waits_or_runs(site: Site, execute: Execute) -> None:
    footage, archives = Footage(site), ArchiveLedger(site.sessions)
    footage.video(footage.response("accepted"), is_consent=True)
    stop = of_document("UPDATE archive_request SET cancel_requested_at")
    end = of_document("UPDATE archive_request SET status")
    request_id = asked_archive(execute, site)
    execute(stop, request_id=request_id, user_id=site.study_admin)
    assert due_archives(site) == [request_id]
    execute(end, request_id=request_id, user_id=site.study_admin)
    assert due_archives(site) == []
    with site.sessions.begin() as session:
        row = session.get_one(ArchiveRequest, request_id)
    assert (row.status, row.error_code, row.cancelled_by_id) == ("cancelled", "cancelled", site.study_admin)
    claimed = archives.claim(asked_archive(execute, site), "run-1", MINUTE)
    execute(end, request_id=claimed.request_id, user_id=site.study_admin)
    assert not archives.heartbeat(claimed, MINUTE).cancel_requested
    execute(stop, request_id=claimed.request_id, user_id=site.study_admin)
    assert archives.heartbeat(claimed, MINUTE).cancel_requested
    assert archives.canceller(claimed) == "Study Admin"


def test_people_labs_studies_responses_and_videos_come_by_sql(site: Site, execute: Execute, now: str) -> None:
    ((user_id,),) = execute(of_document("INSERT INTO user_account"), email="Zoe@example.org", name="Zoë")
    ((lab_id,),) = execute(of_document("INSERT INTO lab"), name="A lab by SQL")
    ((study_id,),) = execute(of_document("INSERT INTO study ("), name="By SQL", lab_id=lab_id, user_id=user_id)
    for _ in range(2):
        execute(of_document("INSERT INTO study_grant"), user_id=user_id, study_id=study_id)
    ((response_id,),) = execute(of_document("INSERT INTO response"), study_id=study_id)
    execute(of_document("INSERT INTO consent_ruling"), response_id=response_id, user_id=user_id)
    values = {"response_id": response_id, "object_key": "v.mp4", "frame_id": "1-frame", "recorded_at": now}
    ((video_id,),) = execute(of_document("INSERT INTO video"), study_id=study_id, **values)
    with site.sessions.begin() as session:
        study, response = session.get_one(Study, study_id), session.get_one(Response, response_id)
        user, video = session.get_one(User, user_id), session.get_one(Video, video_id)
    assert (study.state, study.is_discoverable, study.structure, study.fencing_token) == ("created", False, {}, 0)
    assert study.study_metadata == {"player_repo_url": "https://github.com/lookit/ember-lookit-frameplayer"}
    assert len({study.uuid, response.uuid, user.uuid}) == 3
    assert study.uuid.version == 4
    assert (user.is_active, user.is_superuser) == (True, False)
    assert video.recorded_at == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert (video.size_bytes, video.gone_at, video.is_consent_footage) == (None, None, False)
    request_id = site.ledger.request(study_id, user_id, BuildKind.PREVIEW)
    assert site.ledger.claim(request_id, "run-1", MINUTE).study_uuid == study.uuid


def build(columns: str, values: str) -> str:
    head = "INSERT INTO build_request (study_id, requested_by_id, kind"
    return f"{head}, {columns}) VALUES (:study_id, :user_id, 'preview', {values})"


def study(columns: str, values: str) -> str:
    head = "INSERT INTO study (lab_id"
    return f"{head}, {columns}) VALUES (1, {values})"


def video(columns: str, values: str) -> str:
    head = "INSERT INTO video (study_id, response_id, frame_id, recorded_at"
    return f"{head}, {columns}) VALUES (:study_id, :response_id, 'frame', :now, {values})"


KIND = "INSERT INTO {}_request (study_id, requested_by_id, kind) VALUES ({}, {}, '{}')"
UNKNOWN = "foreign key constraint"
REFUSED = {
    "a build of an unknown kind": (KIND.format("build", ":study_id", ":user_id", "video"), "ck_build_request_kind"),
    "an archive of an unknown kind": (
        KIND.format("archive", ":study_id", ":user_id", "preview"),
        "ck_archive_request_kind",
    ),
    "a build without a kind": ("INSERT INTO build_request (study_id, requested_by_id) VALUES (1, 1)", "kind"),
    "a build of an unknown study": (KIND.format("build", "4711", ":user_id", "preview"), UNKNOWN),
    "a build for an unknown person": (KIND.format("build", ":study_id", "4711", "preview"), UNKNOWN),
    "an archive of an unknown study": (KIND.format("archive", "4711", ":user_id", "all"), UNKNOWN),
    "an unknown status": (build("status", "'done'"), "ck_build_request_(status|ended_has_a_time)"),
    "running without a lease": (build("status", "'running'"), "running_has_a_lease"),
    "running without the state before": (
        build("status, run_id, claimed_at, lease_expires_at, fencing_token", "'running', 'me', :now, :now, 1"),
        "running_knows_the_way_back",
    ),
    "running from a lock state": (
        build(
            "status, run_id, claimed_at, lease_expires_at, fencing_token, state_before",
            "'running', 'me', :now, :now, 1, 'previewing'",
        ),
        "ck_build_request_state_before",
    ),
    "waiting and claimed": (build("claimed_at", ":now"), "queued_is_untouched"),
    "waiting and ended": (build("finished_at", ":now"), "queued_is_untouched"),
    "succeeded at no time": (build("status", "'succeeded'"), "ended_has_a_time"),
    "cancelled and still leased": (
        build("status, finished_at, lease_expires_at", "'cancelled', :now, :now"),
        "ended_has_a_time",
    ),
    "failed without an error": (build("status, finished_at", "'failed', :now"), "failed_says_why"),
    "succeeded with an error": (build("status, finished_at, error", "'succeeded', :now, 'e'"), "failed_says_why"),
    "an archive that succeeded without a name": (
        (
            "INSERT INTO archive_request (study_id, requested_by_id, kind, status, finished_at)"
            " VALUES (:study_id, :user_id, 'all', 'succeeded', :now)"
        ),
        "succeeded_names_its_archive",
    ),
    "a negative attempt": (build("attempt", "-1"), "attempt_not_negative"),
    "an unknown state": (study("name, state", "'n', 'born'"), "ck_study_state"),
    "a lock state without the way back": (study("name, state", "'n', 'deploying'"), "locked_knows_the_way_back"),
    "a way back without a lock": (study("name, state_before_build", "'n', 'active'"), "locked_knows_the_way_back"),
    "a study without a name": (study("purpose", "'p'"), "name"),
    "a blank name": (study("name", "'  '"), "name_not_blank"),
    "metadata that is no JSON": (study("name, metadata", "'n', '{player'"), "metadata_is_object|json"),
    "metadata that is a list": (study("name, metadata", "'n', '[]'"), "metadata_is_object"),
    "metadata that is a text": (study("name, metadata", "'n', '\"text\"'"), "metadata_is_object"),
    "metadata that is null": (study("name, metadata", "'n', 'null'"), "metadata_is_object"),
    "a structure that is a list": (study("name, structure", "'n', '[]'"), "structure_is_object"),
    "a study of an unknown lab": ("INSERT INTO study (lab_id, name) VALUES (4711, 'n')", UNKNOWN),
    "a response to an unknown study": ("INSERT INTO response (study_id) VALUES (4711)", UNKNOWN),
    "an unknown ruling": (
        "INSERT INTO consent_ruling (response_id, ruling) VALUES (:response_id, 'maybe')",
        "consent_ruling_ruling",
    ),
    "a negative size": (video("object_key, size_bytes", "'k', -1"), "size_not_negative"),
    "a blank key": (video("object_key", "''"), "key_not_blank"),
    "an address without an at": ("INSERT INTO user_account (email, name) VALUES ('nobody', 'N')", "email_has_an_at"),
    "an address of no host": ("INSERT INTO user_account (email, name) VALUES ('nobody@', 'N')", "email_has_an_at"),
    "an address of nobody": ("INSERT INTO user_account (email, name) VALUES ('@example.org', 'N')", "email_has_an_at"),
    "an address that is taken": (
        "INSERT INTO user_account (email, name) VALUES ('Stranger@Example.org', 'N')",
        "uq_user_account_email",
    ),
}


@pytest.mark.parametrize(("sql", "by"), list(REFUSED.values()), ids=list(REFUSED))
def test_the_database_refuses(site: Site, execute: Execute, now: str, sql: str, by: str) -> None:
    ((response_id,),) = execute(of_document("INSERT INTO response"), study_id=site.study_id)
    given = {"study_id": site.study_id, "user_id": site.study_admin, "response_id": response_id, "now": now}
    with pytest.raises((sqlite3.DatabaseError, psycopg.DatabaseError)) as refusal:
        execute(sql, **{name: value for name, value in given.items() if f":{name}" in sql})
    assert re.search(by, str(refusal.value), re.IGNORECASE)
    assert site.logs() == []


def test_the_database_refuses_a_second_waiting_request(site: Site, execute: Execute) -> None:
    sql = KIND.format("build", ":study_id", ":user_id", "preview")
    execute(sql, study_id=site.study_id, user_id=site.designer)
    with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match=r"(?i)unique") as refusal:
        execute(sql, study_id=site.study_id, user_id=site.study_admin)
    assert "one_waiting_per_study_and_kind" in str(refusal.value) or "build_request.kind" in str(refusal.value)


def test_the_document_lists_every_code_and_status() -> None:
    modules = [*Path(requests.__file__).parent.glob("*.py"), Path(dead_runs.__file__)]
    source = "".join(module.read_text() for module in modules)
    ways = r"""code(?:=|": )"(\w+)\"|Failure\(\s*"\w+", "(\w+)\"|ended\(RequestStatus\.\w+, "(\w+)\""""
    written = set(re.findall(ways, source))
    written = {code for codes in written for code in codes if code}
    assert {"cancelled", "replaced", "worker_died"} <= written
    raised = {kind.code for kind in errors.DomainError.__subclasses__()} - {errors.LeaseLost.code}
    listed = re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE)
    assert set(listed) == {*CODES.values(), UNEXPECTED, *raised, *written, *RequestStatus}
