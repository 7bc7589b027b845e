"""What may be deleted and what may not, on both databases, through the ORM and by bare SQL.

A study with logs, responses or requests stays; archiving it keeps its whole trail.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from domain.db import Base
from domain.models import (
    ArchiveKind,
    ArchiveRequest,
    BuildKind,
    GrantRecord,
    Lab,
    OutboxMail,
    Response,
    State,
    Study,
    StudyGrant,
    StudyLog,
    User,
    Video,
)
from domain.permissions.grants import grant
from domain.requests.failure import Failure
from domain.studies.edit import edit
from tests.support.site import Site, transition_as_read


def by_the_orm(session: Session, study: Study) -> None:
    session.delete(study)
    session.flush()


def by_one_statement(session: Session, study: Study) -> None:
    session.execute(delete(Study).where(Study.id == study.id))


def by_bare_sql(session: Session, study: Study) -> None:
    session.connection().exec_driver_sql(f"DELETE FROM study WHERE id = {study.id}")  # noqa: S608


def leave_a_log(site: Site) -> None:
    with site.sessions.begin() as session:
        user = session.get_one(User, site.study_admin)
        transition_as_read(session, session.get_one(Study, site.study_id), "archive", user)


def leave_an_edit(site: Site) -> None:
    with site.sessions.begin() as session:
        user = session.get_one(User, site.designer)
        edit(session, session.get_one(Study, site.study_id), user, {"is_discoverable": True})


def leave_a_response(site: Site) -> None:
    with site.sessions.begin() as session:
        session.add(Response(study_id=site.study_id))


def leave_a_preview_response(site: Site) -> None:
    with site.sessions.begin() as session:
        session.add(Response(study_id=site.study_id, is_preview=True))


def leave_a_video(site: Site) -> None:
    """A video of this study in a response to another: no response to this one is in the way."""
    other = site.another_study("Another")
    with site.sessions.begin() as session:
        response = Response(study_id=other)
        session.add(response)
        session.flush()
        key, when = "videoStream_1.mp4", datetime(2026, 3, 1, tzinfo=UTC)
        ids = {"study_id": site.study_id, "response_id": response.id}
        session.add(Video(**ids, object_key=key, frame_id="1-frame", recorded_at=when))


def leave_a_build(site: Site) -> None:
    site.ledger.request(site.study_id, site.designer, BuildKind.PREVIEW)


def leave_an_archive(site: Site) -> None:
    with site.sessions.begin() as session:
        kind = next(iter(ArchiveKind)).value
        session.add(ArchiveRequest(study_id=site.study_id, requested_by_id=site.study_admin, kind=kind))


HOWS = [by_the_orm, by_one_statement, by_bare_sql]
TRACES = [
    leave_a_log,
    leave_an_edit,
    leave_a_response,
    leave_a_preview_response,
    leave_a_video,
    leave_a_build,
    leave_an_archive,
]


def rows(site: Site) -> dict[str, int | None]:
    """How many rows each table has."""
    with site.sessions.begin() as session:
        counted = {name: select(func.count()).select_from(table) for name, table in Base.metadata.tables.items()}
        return {name: session.scalar(count) for name, count in counted.items()}


@pytest.mark.parametrize("leave", TRACES)
@pytest.mark.parametrize("how", HOWS)
def test_a_study_that_left_a_trace_cannot_be_deleted(
    site: Site, leave: Callable[[Site], None], how: Callable[[Session, Study], None]
) -> None:
    leave(site)
    before = rows(site)
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), site.sessions.begin() as session:
        how(session, session.get_one(Study, site.study_id))
    assert rows(site) == before


@pytest.mark.parametrize("how", HOWS)
def test_a_study_without_any_trace_can_be_deleted_and_its_roles_go_with_it(
    site: Site, how: Callable[[Session, Study], None]
) -> None:
    with site.sessions.begin() as session:
        study, by = session.get_one(Study, site.study_id), session.get_one(User, site.study_admin)
        grant(session, by, session.get_one(User, site.stranger), "analysis", study)
    with site.sessions.begin() as session:
        how(session, session.get_one(Study, site.study_id))
    with site.sessions.begin() as session:
        assert session.get(Study, site.study_id) is None
        assert list(session.scalars(select(StudyGrant))) == []
        (record,) = session.scalars(select(GrantRecord))
        assert (record.study_id, record.user_id, record.role_name) == (None, site.stranger, "analysis")


def test_a_lab_with_studies_cannot_be_deleted(site: Site) -> None:
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), site.sessions.begin() as session:
        session.delete(session.get_one(Lab, site.lab_id))
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), site.sessions.begin() as session:
        session.execute(text("DELETE FROM lab"))
    assert site.study().lab_id == site.lab_id


def test_the_log_of_a_person_who_is_gone_stays(site: Site) -> None:
    leave_an_edit(site)
    with site.sessions.begin() as session:
        session.delete(session.get_one(User, site.designer))
    (log,) = site.logs()
    assert (log.user_id, log.action, log.extra) == (None, "edit", {"diff": {"is_discoverable": [False, True]}})


def test_who_asked_for_a_build_cannot_be_deleted(site: Site) -> None:
    leave_a_build(site)
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), site.sessions.begin() as session:
        session.delete(session.get_one(User, site.designer))
    assert site.user(site.designer).email == "designer@example.org"


def test_archiving_keeps_the_whole_trail(site: Site) -> None:
    site.set_state(State.CREATED)
    leave_a_response(site)
    for trigger, who in (("submit", site.study_admin), ("approve", site.site_admin)):
        with site.sessions.begin() as session:
            transition_as_read(
                session, session.get_one(Study, site.study_id), trigger, session.get_one(User, who), trigger
            )
    claim = site.ledger.claim(
        site.ledger.request(site.study_id, site.study_admin, BuildKind.DEPLOYMENT), "run-1", timedelta(minutes=1)
    )
    site.ledger.fail(claim, Failure("build", "player_build_failed", "it does not build"), {"build_output": "oh no"})
    leave_an_edit(site)
    before, trail = rows(site), site.logs()
    with site.sessions.begin() as session:
        study = session.get_one(Study, site.study_id)
        transition_as_read(session, study, "archive", session.get_one(User, site.study_admin), "over")
    assert site.study().state == "archived"
    assert rows(site) == before | {"study_log": (before["study_log"] or 0) + 1}
    kept = site.logs()
    assert [(log.id, log.action, log.state_before, log.state_after, log.extra) for log in kept[:-1]] == [
        (log.id, log.action, log.state_before, log.state_after, log.extra) for log in trail
    ]
    assert [log.action for log in kept] == ["submit", "approve", "deployment", "edit", "archive"]
    assert kept[-1].extra == {"comment": "over"}
    for how in HOWS:
        with pytest.raises(IntegrityError), site.sessions.begin() as session:
            how(session, session.get_one(Study, site.study_id))
    assert len(site.logs()) == 5


def test_a_log_is_not_deleted_through_the_study_nor_through_its_request(site: Site) -> None:
    claim = site.ledger.claim(
        site.ledger.request(site.study_id, site.study_admin, BuildKind.PREVIEW), "run-1", timedelta(minutes=1)
    )
    site.ledger.finish(claim, {})
    for statement in ("DELETE FROM build_request", "DELETE FROM study"):
        with pytest.raises(IntegrityError), site.sessions.begin() as session:
            session.execute(text(statement))
    with site.sessions.begin() as session:
        assert session.scalar(select(func.count(StudyLog.id))) == 1
        assert session.scalar(select(func.count(OutboxMail.id))) == 2
