"""Both databases refuse a value of another type when it is written, in every column of every table."""

from __future__ import annotations

import pytest
from alembic import command
from sqlalchemy import BigInteger, Boolean, Column, Engine, Integer, MetaData, String, Table, Time
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.types import JSON

from domain import sqlite_types
from domain.db import Base, CanonicalUuid, UtcDateTime
from domain.errors import InvalidRequest
from domain.migrations import config_for, upgrade
from tests.support.every_table import fill_every_table
from tests.support.site import Site

UUID = "0a1b2c3d-0a1b-4c3d-8a1b-0a1b2c3d4e5f"


def of_no_database(column: Column) -> list[str]:
    """SQL of values that neither database takes."""
    kind = column.type
    if isinstance(kind, UtcDateTime):
        return ["1772359200", "'soon'", "'2026-02-30 10:00:00'", "'2026-03-01 10:61:00'"]
    if isinstance(kind, CanonicalUuid):
        return ["12", "'not-a-uuid'", f"'{UUID}0'"]
    if isinstance(kind, Boolean):
        return ["2", "'perhaps'"]
    if isinstance(kind, Integer):
        return ["'many'"] + ([] if isinstance(kind, BigInteger) else [str(2**31), str(-(2**31) - 1)])
    if isinstance(kind, String) and kind.length:
        return [f"'{'x' * (kind.length + 1)}'"]
    return []


def of_postgresql_only(column: Column) -> list[str]:
    """SQL of values that PostgreSQL converts by itself, and SQLite would store as they are."""
    kind = column.type
    if isinstance(kind, UtcDateTime):
        return [
            "'2026-03-01'",
            "'2026-03-01T10:00:00'",
            "'2026-03-01 10:00:00Z'",
            "'2026-03-01 10:00:00+00'",
            "'2026-03-01 10:00:00.'",
            "'2026-03-01 10:00:00.1234567'",
            "'2026-03-01 24:00:00'",
            "'0000-03-01 10:00:00'",
            "'now'",
            "X'323032362d30332d30312031303a30303a3030'",
        ]
    if isinstance(kind, CanonicalUuid):
        return [f"'{UUID.upper()}'", f"'{UUID.replace('-', '')}'", f"'{{{UUID}}}'"]
    if isinstance(kind, Boolean):
        return ["'false'", "'t'", "0.5"]
    if isinstance(kind, Integer):
        return ["1.5", "X'01'"]
    return ["X'6162'", "CAST(X'610062' AS TEXT)"]


COLUMNS = [column for table in Base.metadata.sorted_tables for column in table.columns]


def test_a_value_of_another_type_is_refused_in_every_column(engine: Engine, site: Site) -> None:
    fill_every_table(site)
    on_sqlite = engine.dialect.name == "sqlite"
    for column in COLUMNS:
        if isinstance(column.type, JSON):
            continue
        for value in of_no_database(column) + (of_postgresql_only(column) if on_sqlite else []):
            statement = f'UPDATE "{column.table.name}" SET "{column.name}" = {value}'  # noqa: S608
            with pytest.raises(DBAPIError) as refused, engine.begin() as connection:
                connection.exec_driver_sql(statement)
            said = str(refused.value.orig)
            if on_sqlite:
                by_sqlite = column is column.table.autoincrement_column
                assert said.startswith("datatype mismatch" if by_sqlite else f"{column} must be "), (statement, said)
            else:
                assert not isinstance(refused.value, IntegrityError), (statement, said)


def test_sqlite_takes_what_it_writes_by_itself(engine: Engine, site: Site) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL has types of its own")
    times = ("'2026-03-01 10:00:00'", "'2024-02-29 23:59:59.5'", "'9999-12-31 23:59:59.999999'", "CURRENT_TIMESTAMP")
    for time in times:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE study SET deployed_at = {time}, is_discoverable = '1'")  # noqa: S608
        assert site.study().deployed_at is not None
        assert site.study().is_discoverable is True


def test_an_insert_is_held_to_the_types_too(engine: Engine, site: Site) -> None:
    values = "'kim@example.org', 'Kim', " + ("'false'" if engine.dialect.name == "sqlite" else "12")
    with pytest.raises(DBAPIError), engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO user_account (email, name, is_active) VALUES ({values})")  # noqa: S608


def test_an_upgrade_names_rows_that_came_before_and_leaves_them(engine: Engine, site: Site) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL has types of its own")
    with engine.begin() as connection:
        sqlite_types.take_away(connection)
        connection.exec_driver_sql("UPDATE study SET deployed_at = 1772359200, is_discoverable = 'false'")
    with pytest.raises(InvalidRequest) as refused:
        upgrade(engine)
    assert "study.deployed_at must be a time in UTC" in str(refused.value)
    assert "study.is_discoverable must be 0 or 1 (rows that hold something else: 1, by rowid 1)" in str(refused.value)
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT deployed_at FROM study").scalar_one() == 1772359200
        connection.exec_driver_sql("UPDATE study SET deployed_at = NULL, is_discoverable = 0")
    upgrade(engine)
    with pytest.raises(IntegrityError, match="must be 0 or 1"), engine.begin() as connection:
        connection.exec_driver_sql("UPDATE study SET is_discoverable = 'false'")


def test_an_upgrade_from_an_earlier_revision_changes_nothing_while_there_are_such_rows(engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL has types of its own")
    command.downgrade(config_for(engine), "0005")
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO lab (name, created_at) VALUES ('L', 1772359200)")
    with pytest.raises(InvalidRequest, match=r"lab\.created_at must be .*Nothing was changed"):
        upgrade(engine)
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one() == "0005"
        connection.exec_driver_sql("UPDATE lab SET created_at = '2026-03-01 10:00:00'")
    upgrade(engine)


def test_a_type_without_a_rule_is_noticed() -> None:
    table = Table("later", MetaData(), Column("at", Time()))
    with pytest.raises(TypeError, match=r"later\.at"):
        sqlite_types.triggers_of(table)
