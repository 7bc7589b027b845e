"""The docs say what the code says: every setting with its default, every permission, every built-in role."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from domain.models import ArchiveRequest, BuildRequest
from domain.models.accounts import RoleScope
from domain.permissions.codes import Permission
from domain.permissions.roles import BUILTIN_ROLES
from domain.requests.failure import WORKER_DIED
from lookit_ops.assets.watch import OUR_FAULTS
from lookit_ops.failures import RETRIED, failure_of
from lookit_ops.settings import PREFIX, Settings
from lookit_ops.storage.errors import VideoChanged

DOCS = Path(__file__).parents[2] / "docs"
NOTHING = "–"


def tables(document: str) -> dict[str, list[list[str]]]:
    """The rows of each table of a document, by the heading of the table's first column."""
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\|\n?)+", (DOCS / document).read_text(), re.MULTILINE):
        head, _line, *rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in block.splitlines()]
        found.setdefault(head[0], []).extend(rows)
    return found


def as_documented(value: Any) -> str:
    """A default as the docs write it."""
    if value in (None, "", []):
        return NOTHING
    text = ",".join(value) if isinstance(value, list) else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`"


def test_every_setting_stands_in_the_docs_once_with_its_default() -> None:
    documented = [(row[0], row[1]) for row in tables("configuration.md")["variable"]]
    settings = [
        (f"`{PREFIX}{name.upper()}`", as_documented(field.default)) for name, field in Settings.model_fields.items()
    ]
    assert sorted(documented) == sorted(settings)


def test_every_setting_is_explained_and_secrets_are_called_so() -> None:
    for name, _default, text in tables("configuration.md")["variable"]:
        assert text.endswith("."), name
        kind = Settings.model_fields[name.strip("`").removeprefix(PREFIX).lower()].annotation
        assert ("SecretStr" in str(kind)) == ("a secret" in text), name


def test_no_document_names_a_setting_that_does_not_exist() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for document in DOCS.rglob("*.md"):
        named = set(re.findall(rf"\b{PREFIX}[A-Z0-9_]+\b", document.read_text()))
        assert named - known == set(), document.name


@pytest.mark.parametrize(
    ("model", "own"), [(BuildRequest, {"taken_over", "warnings"}), (ArchiveRequest, {"name_contains"})]
)
def test_the_columns_of_a_request_that_the_database_fills_in_stand_in_the_docs(model: Any, own: set[str]) -> None:
    text = (DOCS / "requests.md").read_text().partition("The database fills in:\n")[2].partition("- all others")[0]
    documented = {
        name for names in re.findall(r"^- (.*?):", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", names)
    }
    assert documented | own == {column.name for column in model.__table__.columns if column.server_default is not None}


def test_the_guide_says_of_just_those_errors_that_are_tried_again_that_they_are() -> None:
    rows = [row for row in tables("operators.md")["code"] if "it is tried again" in row[2]]
    told = {code for row in rows for code in re.findall(r"`(\w+)`", row[0])}
    assert told == RETRIED | {WORKER_DIED.code}


def test_what_is_tried_again_counts_as_the_platforms_fault() -> None:
    assert RETRIED | {WORKER_DIED.code} <= OUR_FAULTS
    assert failure_of("stream", VideoChanged("it is another one")).code in RETRIED


def test_every_permission_stands_in_the_docs_once_with_what_it_allows() -> None:
    rows = tables("permissions.md")["permission"]
    assert sorted(row[0] for row in rows) == sorted(f"`{code}`" for code in Permission)
    assert all(len(row[1]) > 10 for row in rows)


@pytest.mark.parametrize("scope", list(RoleScope))
def test_every_builtin_role_stands_in_the_docs_with_its_permissions(scope: RoleScope) -> None:
    rows = tables("permissions.md")[f"{scope} role"]
    documented = {row[0].strip("`"): set(re.findall(r"`([\w.]+)`", row[1])) for row in rows}
    assert len(rows) == len(documented)
    assert documented == {
        name: {code.value for code in permissions}
        for (of_scope, name), permissions in BUILTIN_ROLES.items()
        if of_scope is scope
    }


def test_the_index_of_decisions_names_each_by_its_heading() -> None:
    listed = re.findall(r"^\| (\d+) \| \[(.+)\]\((.+)\) \|$", (DOCS / "adr" / "README.md").read_text(), re.MULTILINE)
    files = sorted((DOCS / "adr").glob("0*.md"))
    assert [(f"# {number}. {title}", file) for number, title, file in listed] == [
        (file.read_text().partition("\n")[0], file.name) for file in files
    ]
