"""What the ledger keeps of errors that are not ours."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from lookit_ops.failures import RETRIED, failure_of


@pytest.mark.parametrize("kind", [OperationalError, DBAPIError])
def test_a_database_that_is_away_is_the_platforms_fault_and_its_statement_nobodys_business(
    kind: type[DBAPIError],
) -> None:
    error = kind("SELECT email FROM user_account", {"email": "parent@example.org"}, sqlite3.Error("database is locked"))
    failure = failure_of("finish", error)
    assert failure.code == "platform_error"
    assert failure.code in RETRIED
    assert failure.message == "the database could not be used: database is locked"


def test_a_rule_of_the_database_that_is_broken_is_a_bug() -> None:
    error = IntegrityError("INSERT", {}, sqlite3.IntegrityError("UNIQUE constraint failed: study.uuid"))
    assert failure_of("finish", error).code == "unexpected_error"
