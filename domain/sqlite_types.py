"""Hold SQLite to the types of the columns, as PostgreSQL does by itself.

SQLite stores any value in any column, and a program that writes a time as a number would make every later read fail.
Two triggers a table refuse such a row when it is written. They follow from the models and are made anew after each
change of the schema, so that no migration needs to know of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import BigInteger, Boolean, Column, Integer, MetaData, String, Table, inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.types import JSON

from domain.db import CanonicalUuid, UtcDateTime
from domain.errors import InvalidRequest

_SUFFIXES = {"INSERT": "_types_on_insert", "UPDATE": "_types_on_update"}
_HEX = "[0-9a-f]"
_UUID = "-".join(_HEX * digits for digits in (8, 4, 4, 4, 12))
_SMALLEST_INTEGER, _LARGEST_INTEGER = -(2**31), 2**31 - 1


def triggers_of(table: Table) -> dict[str, str]:
    """The statements that create the triggers of a table, by the triggers' names."""
    cases = " ".join(
        f"WHEN {violated} THEN RAISE(ABORT, '{refusal}')" for _, violated, refusal in _refusals(table, "NEW.")
    )
    return {
        table.name + suffix: (
            f'CREATE TRIGGER {table.name}{suffix} BEFORE {event} ON "{table.name}" BEGIN SELECT CASE {cases} END; END'
        )
        for event, suffix in _SUFFIXES.items()
    }


def take_away(connection: Connection) -> None:
    """Drop the triggers: SQLite alters no column that one of them names. Does nothing on another database."""
    for name in _existing(connection):
        connection.execute(text(f"DROP TRIGGER {name}"))


def put_in_place(connection: Connection, metadata: MetaData) -> None:
    """Create the triggers where they are not yet as the models want them. Does nothing on another database.

    Raises:
        InvalidRequest: a row is there already that they would refuse.
    """
    if connection.dialect.name != "sqlite":
        return
    wanted = {name: sql for table in metadata.sorted_tables for name, sql in triggers_of(table).items()}
    if _existing(connection) == wanted:
        return
    _require_rows(connection, metadata, "The schema is new, its columns are not protected yet")
    take_away(connection)
    for sql in wanted.values():
        connection.exec_driver_sql(sql)


def require_rows_of_the_types(connection: Connection, metadata: MetaData) -> None:
    """Look at the tables and columns that are there, of any revision. Does nothing on another database.

    Raises:
        InvalidRequest: rows hold what the triggers would refuse.
    """
    if connection.dialect.name == "sqlite":
        _require_rows(connection, metadata, "Nothing was changed")


def _require_rows(connection: Connection, metadata: MetaData, so_far: str) -> None:
    inspector = inspect(connection)
    there = set(inspector.get_table_names())
    found: list[str] = []
    for table in metadata.sorted_tables:
        if table.name in there:
            found += _rows_of_other_types(connection, table, {one["name"] for one in inspector.get_columns(table.name)})
    if found:
        raise InvalidRequest(
            f"another program has written values of other types: {'; '.join(found)}. {so_far}: correct these rows by"
            " UPDATE, and upgrade again"
        )


def _existing(connection: Connection) -> dict[str, str]:
    if connection.dialect.name != "sqlite":
        return {}
    rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
    return {name: sql for name, sql in rows if name.endswith(tuple(_SUFFIXES.values()))}


def _rows_of_other_types(connection: Connection, table: Table, columns: set[str]) -> Iterator[str]:
    for name, violated, refusal in _refusals(table):
        if name not in columns:
            continue
        rows = f'FROM "{table.name}" WHERE {violated}'
        if count := connection.exec_driver_sql(f"SELECT count(*) {rows}").scalar_one():
            first = connection.exec_driver_sql(f"SELECT rowid {rows} ORDER BY rowid LIMIT 3").scalars()
            yield f"{refusal} (rows that hold something else: {count:,}, by rowid {', '.join(map(str, first))})"


def _refusals(table: Table, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """For each column its name, SQL that is true where its value is refused, and what to say then."""
    for column in table.columns:
        if column is table.autoincrement_column or isinstance(column.type, JSON):
            continue  # SQLite itself numbers rows by integers only, and CHECKs tell of JSON
        value = f'{prefix}"{column.name}"'
        rule, expected = _rule(value, column)
        yield column.name, f"{value} IS NOT NULL AND NOT ({rule})", f"{table.name}.{column.name} must be {expected}"


def _rule(value: str, column: Column) -> tuple[str, str]:
    """What holds for each value of the column but null, as SQL and in words."""
    kind = column.type
    if isinstance(kind, UtcDateTime):
        time = f"substr({value}, 1, 19)"
        fraction = (
            f"substr({value}, 20, 1) = '.' AND length({value}) BETWEEN 21 AND 26"
            f" AND substr({value}, 21) NOT GLOB '*[^0-9]*'"
        )
        rule = (
            f"typeof({value}) = 'text' AND {time} >= '0001' AND datetime(julianday({time})) IS {time}"
            f" AND (length({value}) = 19 OR {fraction})"
        )
        return rule, "a time in UTC, as text of the form YYYY-MM-DD HH:MM:SS or YYYY-MM-DD HH:MM:SS.ffffff"
    if isinstance(kind, CanonicalUuid):
        return f"typeof({value}) = 'text' AND {value} GLOB '{_UUID}'", "a UUID of 36 characters in lower case"
    if isinstance(kind, Boolean):
        return f"{value} IN (0, 1)", "0 or 1"
    if isinstance(kind, Integer):
        if isinstance(kind, BigInteger):
            return f"typeof({value}) = 'integer'", "a whole number"
        return (
            f"typeof({value}) = 'integer' AND {value} BETWEEN {_SMALLEST_INTEGER} AND {_LARGEST_INTEGER}",
            "a whole number of 32 bits",
        )
    if isinstance(kind, String):
        rule = f"typeof({value}) = 'text' AND instr({value}, char(0)) = 0"
        if kind.length is None:
            return rule, "text without NUL"
        return f"{rule} AND length({value}) <= {kind.length}", f"text of up to {kind.length} characters without NUL"
    raise TypeError(f"no rule says what SQLite may store in {column} of the type {kind!r}")
