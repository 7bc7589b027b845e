"""The schema's history on both databases: it ends where the models are, can be walked twice, and can be undone."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, func, insert, inspect, select, text
from sqlalchemy import column as lightweight_column
from sqlalchemy import table as lightweight

from domain import sqlite_types
from domain.db import Base, engine_for, sessions_for
from domain.errors import InvalidRequest
from domain.migrations import config_for, upgrade
from domain.models import ArchiveKind, ArchiveRequest, BuildKind, Lab, Role, Study, User
from domain.permissions.roles import BUILTIN_ROLES
from domain.requests.archive_links import ArchiveLinks
from domain.requests.archives import ArchiveFacts, ArchiveLedger
from domain.videos.selection import basis_of, select_videos
from tests.support.databases import POSTGRESQL, SQLITE, create_database
from tests.support.every_table import fill_every_table
from tests.support.footage import Footage
from tests.support.site import populate

Schema = dict[str, dict[str, Any]]


@pytest.fixture(params=[SQLITE, POSTGRESQL])
def blank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Engine, Engine]]:
    """Two empty databases of one kind."""
    if request.param == SQLITE:
        urls = [f"sqlite:///{tmp_path / name}" for name in ("one.db", "two.db")]
    else:
        server = request.getfixturevalue("postgresql_server")
        urls = [create_database(server, f"blank_{uuid4().hex}") for _ in range(2)]
    one, two = map(engine_for, urls)
    yield one, two
    one.dispose()
    two.dispose()


def schema_of(engine: Engine) -> Schema:
    """What the database itself says of its tables: columns with defaults, constraints with their SQL, indexes."""
    read = _sqlite_schema if engine.dialect.name == "sqlite" else _postgresql_schema
    schema = read(engine)
    schema.pop("alembic_version", None)
    return schema


def _sqlite_schema(engine: Engine) -> Schema:
    """SQLite keeps the statements as they were written: a table is the set of its columns and constraints."""
    schema: Schema = {}
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
        for kind, name, table, sql in rows:
            parts = _parts(sql) if kind == "table" else _normal(sql)
            schema.setdefault(table, {})[f"{kind} {name}"] = parts
    return schema


def _parts(sql: str) -> set[str]:
    body = sql[sql.index("(") + 1 : sql.rindex(")")]
    parts, depth, start = set(), 0, 0
    for position, character in enumerate(body):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.add(_normal(body[start:position]))
            start = position + 1
    return parts | {_normal(body[start:])}


def _normal(sql: str) -> str:
    return re.sub(r"\s+", " ", sql.replace('"', "")).strip()


def _postgresql_schema(engine: Engine) -> Schema:
    columns = text(
        "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,"
        " pg_get_expr(d.adbin, d.adrelid)"
        " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped"
    )
    constraints = text(
        "SELECT c.relname, k.conname, pg_get_constraintdef(k.oid) FROM pg_constraint k"
        " JOIN pg_class c ON c.oid = k.conrelid WHERE k.connamespace = 'public'::regnamespace"
    )
    indexes = text("SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'")
    schema: Schema = {}
    with engine.connect() as connection:
        for table, name, *facts in connection.execute(columns):
            schema.setdefault(table, {})[f"column {name}"] = tuple(facts)
        for table, name, definition in connection.execute(constraints):
            schema[table][f"constraint {name}"] = definition
        for table, name, definition in connection.execute(indexes):
            schema[table][f"index {name}"] = definition
    return schema


def test_the_upgraded_schema_is_the_one_of_the_models(blank: tuple[Engine, Engine]) -> None:
    upgraded, created = blank
    upgrade(upgraded)
    with created.begin() as connection:
        Base.metadata.create_all(connection)
        sqlite_types.put_in_place(connection, Base.metadata)
    ours, theirs = schema_of(upgraded), schema_of(created)
    assert set(ours) == set(Base.metadata.tables)
    for table in Base.metadata.tables:
        assert ours[table] == theirs[table], table


def test_the_comparison_would_see_a_lost_check_default_and_index(blank: tuple[Engine, Engine]) -> None:
    engine, _ = blank
    upgrade(engine)
    facts = repr(schema_of(engine))
    for sought in (
        "failed_says_why",
        "metadata_is_object",
        "email_has_an_at",
        "WHERE",
        "uq_build_request_one_running_per_study",
        "lower(",
        "jsonb_typeof" if engine.dialect.name == "postgresql" else "json_type",
        "gen_random_uuid" if engine.dialect.name == "postgresql" else "randomblob",
    ):
        assert sought in facts.replace('\\"', "")


# SQLite cannot tell of an index on an expression; the comparison above reads its SQL.
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
def test_alembic_itself_finds_no_difference(blank: tuple[Engine, Engine]) -> None:
    engine, _ = blank
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_upgrading_twice_is_fine_and_keeps_what_is_there(blank: tuple[Engine, Engine]) -> None:
    engine, _ = blank
    upgrade(engine)
    before = schema_of(engine)
    site = populate(sessions_for(engine))
    upgrade(engine)
    assert schema_of(engine) == before
    assert site.study().name == "Apples and oranges"
    with sessions_for(engine).begin() as session:
        assert len(list(session.scalars(select(Role)))) == 12
        assert len(list(session.scalars(select(Lab)))) == len(list(session.scalars(select(Study)))) == 1


def test_a_downgrade_to_the_beginning_leaves_nothing_and_the_way_up_is_open_again(blank: tuple[Engine, Engine]) -> None:
    engine, _ = blank
    upgrade(engine)
    populate(sessions_for(engine))
    command.downgrade(config_for(engine), "base")
    assert set(inspect(engine).get_table_names()) <= {"alembic_version"}
    with engine.connect() as connection:
        assert list(connection.execute(text("SELECT version_num FROM alembic_version"))) == []
    upgrade(engine)
    assert set(schema_of(engine)) == set(Base.metadata.tables)


def test_the_history_is_one_line_with_one_head(blank: tuple[Engine, Engine]) -> None:
    engine, _ = blank
    command.upgrade(config_for(engine), "head")
    with engine.connect() as connection:
        assert len(list(connection.execute(text("SELECT version_num FROM alembic_version")))) == 1


def test_an_archive_from_before_its_contents_were_kept_is_given_out_no_more(blank: tuple[Engine, Engine]) -> None:
    engine, _ = blank
    upgrade(engine)
    site = populate(sessions_for(engine))
    footage, ledger = Footage(site), ArchiveLedger(site.sessions)
    footage.video(footage.response("rejected", "accepted"))
    request_id = ledger.request(site.study_id, site.study_admin, ArchiveKind.ALL)
    claim = ledger.claim(request_id, "run-1", timedelta(minutes=1))
    with site.sessions.begin() as session:
        user, study = session.get_one(User, site.study_admin), session.get_one(Study, site.study_id)
        basis = basis_of(select_videos(session, user, study, ArchiveKind.ALL).videos)
    ledger.finish(claim, ArchiveFacts("u/a.zip", 3, (), 0, 0, basis, was_there=False), {})
    ArchiveLinks(ledger).link(request_id, site.study_admin)
    waiting = ledger.request(site.study_id, site.study_admin, ArchiveKind.ALL)
    command.downgrade(config_for(engine), "0001")
    with engine.connect() as connection:
        rests_on = connection.scalar(text(f"SELECT rulings_up_to FROM archive_request WHERE id = {request_id}"))  # noqa: S608
    assert rests_on == 2
    upgrade(engine)
    with pytest.raises(InvalidRequest, match="is not on record"):
        ArchiveLinks(ledger).link(request_id, site.study_admin)
    with site.sessions.begin() as session:
        rows = {row.id: row.status for row in session.scalars(select(ArchiveRequest))}
    assert rows == {request_id: "succeeded", waiting: "queued"}


def test_the_way_down_and_up_again_leaves_the_schema_as_it_was(blank: tuple[Engine, Engine]) -> None:
    engine, _ = blank
    command.upgrade(config_for(engine), "0001")
    first = schema_of(engine)
    upgrade(engine)
    newest = schema_of(engine)
    command.downgrade(config_for(engine), "0001")
    assert schema_of(engine) == first != newest
    upgrade(engine)
    assert schema_of(engine) == newest


def test_the_upgrade_of_a_filled_database_loses_nothing(blank: tuple[Engine, Engine]) -> None:
    """Rows of every table, as the release before revisions and approvals has left them."""
    engine, old = blank
    upgrade(engine)
    site = populate(sessions_for(engine))
    fill_every_table(site)
    # The same rows in a database of before, which is upgraded then.
    command.upgrade(config_for(old), "0002")
    found = inspect(old)
    before = {name: {column["name"] for column in found.get_columns(name)} for name in found.get_table_names()}
    with engine.connect() as source, old.begin() as target:
        for table in [table for table in Base.metadata.sorted_tables if table.name in before]:
            kept = before[table.name]
            columns = [column for column in table.columns if column.name in kept]
            rows = [tuple(row) for row in source.execute(select(*columns))]
            assert rows, f"the test puts nothing into {table.name}"
            target.execute(text(f"DELETE FROM {table.name}"))  # noqa: S608
            as_it_was = lightweight(table.name, *(lightweight_column(one.name, one.type) for one in columns))
            named = [dict(zip([one.name for one in columns], row, strict=True)) for row in rows]
            target.execute(insert(as_it_was), named)
            if old.dialect.name == "postgresql" and "id" in kept:
                ids = "SELECT setval(pg_get_serial_sequence(:table, 'id'), (SELECT max(id) FROM {}))"
                target.execute(text(ids.format(table.name)), {"table": table.name})
    upgrade(old)
    with engine.connect() as one, old.connect() as other:
        for name, table in Base.metadata.tables.items():
            columns = [column for column in table.columns if column.name in before[name]]
            query = select(*columns).order_by(*table.primary_key.columns)
            assert other.execute(query).all() == one.execute(query).all(), name
        studies = Study.__table__
        news = select(studies.c.revision, studies.c.approved_revision, studies.c.approved_sha)
        assert set(other.execute(news).all()) == {(1, None, None)}
    # And it goes on: what was approved before is deployed, without another review.
    upgraded = replace(site, sessions=sessions_for(old))
    request_id = upgraded.ledger.request(site.study_id, site.study_admin, BuildKind.DEPLOYMENT)
    claim = upgraded.ledger.claim(request_id, "run-9", timedelta(minutes=1))
    assert claim.player_sha == upgraded.study().study_metadata["last_known_player_sha"]


def upgrade_when_all_are_there(url: str, together: Any) -> None:
    engine = engine_for(url)
    together.wait(timeout=60)
    upgrade(engine)
    engine.dispose()


def test_eight_processes_that_start_at_once_upgrade_a_new_database_once(blank: tuple[Engine, Engine]) -> None:
    engine, _ = blank
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(8)
    url = engine.url.render_as_string(hide_password=False)
    processes = [spawn.Process(target=upgrade_when_all_are_there, args=(url, together)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 8
    with engine.connect() as connection:
        assert len(list(connection.execute(text("SELECT version_num FROM alembic_version")))) == 1
        assert connection.scalar(select(func.count()).select_from(Role.__table__)) == len(BUILTIN_ROLES)
