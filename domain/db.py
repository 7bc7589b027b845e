"""The database: engine, sessions, declarative base, and column types that mean the same on SQLite and PostgreSQL.

SQLite is opened with WAL, foreign keys on, and `BEGIN IMMEDIATE`: a deferred transaction that reads and then
writes fails under load with "database is locked", whatever the time-out.
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    CHAR,
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Engine,
    Integer,
    MetaData,
    TypeDecorator,
    Uuid,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, MappedAsDataclass, Session, sessionmaker
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement, literal
from sqlalchemy.types import TypeEngine

Sessions = sessionmaker[Session]

SQLITE_BUSY_TIMEOUT = timedelta(seconds=30)
LARGEST_ID = 2**63 - 1
"""The largest id that both databases can number a row with, or compare one with."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time; text with microseconds on SQLite, so that it sorts and compares as it reads."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone cannot be stored: {value!r}")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class CanonicalUuid(TypeDecorator[uuid.UUID]):
    """A UUID: native on PostgreSQL, 36 characters with dashes on SQLite, as any other program would write it."""

    impl = Uuid
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(CHAR(36) if dialect.name == "sqlite" else Uuid())

    def process_bind_param(self, value: uuid.UUID | None, dialect: Dialect) -> uuid.UUID | str | None:
        return str(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: uuid.UUID | str | None, dialect: Dialect) -> uuid.UUID | None:
        return uuid.UUID(value) if isinstance(value, str) else value


JsonValue = JSON().with_variant(JSONB(), "postgresql")
BigKey = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows by itself only for INTEGER


class database_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's own clock plus some seconds: workers on several machines agree on it alone."""

    type = UtcDateTime()
    inherit_cache = True
    name = "database_now"

    def __init__(self, offset: timedelta = timedelta()) -> None:
        super().__init__(literal(offset.total_seconds()))


@compiles(database_now, "postgresql")
def _now_on_postgresql(element: database_now, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


@compiles(database_now, "sqlite")
def _now_on_sqlite(element: database_now, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(strftime('%Y-%m-%d %H:%M:%f000', 'now', {seconds} || ' seconds'))"


class default_now(FunctionElement[datetime]):  # noqa: N801
    """Server default of a time: the moment of the INSERT, whoever inserts."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(default_now, "postgresql")
def _default_now_on_postgresql(element: default_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "clock_timestamp()"


@compiles(default_now, "sqlite")
def _default_now_on_sqlite(element: default_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))"


class default_uuid(FunctionElement[uuid.UUID]):  # noqa: N801
    """Server default of a random (version 4) UUID."""

    type = CanonicalUuid()
    inherit_cache = True


@compiles(default_uuid, "postgresql")
def _default_uuid_on_postgresql(element: default_uuid, compiler: SQLCompiler, **kw: Any) -> str:
    return "gen_random_uuid()"


@compiles(default_uuid, "sqlite")
def _default_uuid_on_sqlite(element: default_uuid, compiler: SQLCompiler, **kw: Any) -> str:
    return (
        "(lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2)"
        " || '-' || substr('89AB', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2)"
        " || '-' || hex(randomblob(6))))"
    )


FRESH = {"synchronize_session": False, "populate_existing": True}
"""Execution options of an UPDATE that returns rows: what it returns replaces what the session knew of them."""


class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """Base of all models: keyword-only dataclasses, so that a type checker sees a misspelt column."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        datetime: UtcDateTime(),
        uuid.UUID: CanonicalUuid(),
        dict[str, Any]: JsonValue,
        list[Any]: JsonValue,
    }


def one_of(column: str, values: type | tuple[str, ...]) -> str:
    """SQL of a CHECK that a column holds one of the values (a StrEnum or a tuple of strings)."""
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"  # ty: ignore[not-iterable]


def json_object_checks(column: str) -> tuple[CheckConstraint, CheckConstraint]:
    """CHECKs, one for each database, that a JSON column holds an object: SQLite would store any text."""
    return _json_checks(column, "object")


def json_array_checks(column: str) -> tuple[CheckConstraint, CheckConstraint]:
    """The same for an array."""
    return _json_checks(column, "array")


def _json_checks(column: str, kind: str) -> tuple[CheckConstraint, CheckConstraint]:
    on_sqlite = CheckConstraint(f"json_valid({column}) AND json_type({column}) = '{kind}'", name=f"{column}_is_{kind}")
    on_postgresql = CheckConstraint(f"jsonb_typeof({column}) = '{kind}'", name=f"{column}_is_{kind}")
    return on_sqlite.ddl_if(dialect="sqlite"), on_postgresql.ddl_if(dialect="postgresql")


_READS = "reads_only"


def engine_for(url: str) -> Engine:
    """An engine for `sqlite:///…` or `postgresql+psycopg://…` (a bare `postgresql://` means psycopg 3, too).

    Its errors hide the parameters of their statements: they would reach logs and mails.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
    timeout = {"timeout": SQLITE_BUSY_TIMEOUT.total_seconds()}
    engine = create_engine(parsed, connect_args=timeout, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_on_sqlite)
    return engine


def reading(engine: Engine) -> Engine:
    """The same database for transactions that read only: none waits for a writer. PostgreSQL refuses a write in one."""
    return engine.execution_options(**{_READS: True, "postgresql_readonly": True})


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    connection.execute(f"PRAGMA busy_timeout = {int(SQLITE_BUSY_TIMEOUT.total_seconds() * 1000)}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_on_sqlite(connection: Connection) -> None:
    """Take the write lock at once, unless the transaction only reads: nothing is written between its read and write."""
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(_READS) else "BEGIN IMMEDIATE")


def one_at_a_time(session: Session, what: str) -> None:
    """Wait until no other transaction is in a section of this name; the section lasts until this one ends.

    SQLite has one writer at a time anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(what))))


def can_be_id(number: int) -> bool:
    """Whether a row could have this id; SQLite's driver fails with a larger one, instead of finding nothing."""
    return 0 < number <= LARGEST_ID


def sessions_for(engine: Engine) -> Sessions:
    """A factory of sessions: `with sessions.begin() as session:` is one short transaction."""
    return sessionmaker(engine, expire_on_commit=False)


_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """The text with what neither database can hold as a sign that one can see: NUL, and halves of characters."""
    return _NOT_STORABLE.sub(lambda found: "␀" if found[0] == "\x00" else "\ufffd", text)


def is_violated(error: Exception, constraint: str) -> bool:
    """Whether an IntegrityError was raised by the named unique index, on either database.

    PostgreSQL names the index; SQLite only its columns, so two indexes on the same columns look alike there.
    """
    cause = getattr(error, "orig", None)
    if diagnostics := getattr(cause, "diag", None):
        return diagnostics.constraint_name == constraint
    return str(cause) == f"UNIQUE constraint failed: {', '.join(_columns_of(constraint))}"


def _columns_of(constraint: str) -> list[str]:
    for table in Base.metadata.tables.values():
        for index in table.indexes:
            if index.name == constraint:
                return [f"{table.name}.{column.name}" for column in index.columns]
    raise KeyError(f"no index is called {constraint!r}")
