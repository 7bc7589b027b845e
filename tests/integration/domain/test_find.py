"""What somebody types finds the study, lab or person that they mean, the same on both databases."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from domain.errors import InvalidRequest
from domain.lookup import find_lab, find_study, find_user
from domain.models import Lab, Study, User
from tests.support.site import Site

FIND: dict[str, Callable[[Session, str], Any]] = {"study": find_study, "lab": find_lab, "user": find_user}
KINDS = sorted(FIND)


def add(site: Site, kind: str, text: str) -> Any:
    """A row of this kind that is called so."""
    with site.sessions.begin() as session:
        row = {
            "study": lambda: Study(name=text, lab_id=site.lab_id),
            "lab": lambda: Lab(name=text),
            "user": lambda: User(email=text, name="Somebody"),
        }[kind]()
        session.add(row)
        session.flush()
        session.refresh(row)
        return row


def found(site: Site, kind: str, typed: str) -> int:
    with site.sessions.begin() as session:
        return FIND[kind](session, typed).id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        ("plain@one", "plain@one"),
        ("plain@one", "PLAIN@One"),
        ("plain@one", "  plain@one\t"),
        ("Äpfel@und Birnen", "Äpfel@und Birnen"),
        ("Äpfel@und Birnen", "äpfel@UND birnen"),
        ("änne@example.org", "ÄNNE@EXAMPLE.ORG"),
        ("ÄNNE@EXAMPLE.ORG", "änne@example.org"),
        ("Äußeres@Labor", "ÄUSSERES@LABOR"),
        ("Яблоки@и груши", "яблоки@И ГРУШИ"),
        ("りんご@みかん", "りんご@みかん"),
        (" outer@blanks ", " outer@blanks "),
        (" outer@blanks ", "outer@blanks"),
        ("\u00a0outer@blanks\n", "Outer@Blanks"),
        (unicodedata.normalize("NFD", "Änne@x"), unicodedata.normalize("NFC", "änne@X")),
        ('quote\'d@"x" %_', 'QUOTE\'D@"X" %_'),
    ],
)
def test_a_name_is_found_whatever_its_letters_case_and_outer_blanks(
    site: Site, kind: str, stored: str, typed: str
) -> None:
    row = add(site, kind, stored)
    assert found(site, kind, typed) == row.id


@pytest.mark.parametrize("kind", KINDS)
def test_a_uuid_is_found_in_any_of_its_forms(site: Site, kind: str) -> None:
    row = add(site, kind, "some@one")
    for typed in (str(row.uuid), f" {str(row.uuid).upper()} ", row.uuid.hex):
        assert found(site, kind, typed) == row.id


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_called_like_another_but_for_case_is_found_by_the_exact_name(site: Site, kind: str) -> None:
    stored = ["Änne@x", "Änne@x ", "\u00a0änne@X"]
    if kind != "user":  # of addresses the database itself refuses what its `lower` takes for the same
        stored.append("ÄNNE@x")
    rows = {text: add(site, kind, text).id for text in stored}
    assert {text: found(site, kind, text) for text in rows if text == text.strip()} == {
        text: row_id for text, row_id in rows.items() if text == text.strip()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_an_ambiguous_name_is_refused_with_the_uuids_and_what_they_are_called(site: Site, kind: str) -> None:
    first, second = add(site, kind, " Änne@x"), add(site, kind, "Änne@x\t")
    with pytest.raises(InvalidRequest, match=r"^more than one .* 'äNNE@X'") as refusal:
        found(site, kind, "äNNE@X")
    for row, text in ((first, " Änne@x"), (second, "Änne@x\t")):
        assert f"{row.uuid} ({text!r})" in str(refusal.value)


def test_studies_of_the_very_same_name_are_told_apart_by_their_uuid(site: Site) -> None:
    rows = [add(site, "study", "The same") for _ in range(7)]
    with pytest.raises(InvalidRequest, match="more than one study is called 'The same'") as refusal:
        found(site, "study", "The same")
    assert sum(str(row.uuid) in str(refusal.value) for row in rows) == 5
    assert str(refusal.value).endswith("or another one")
    assert found(site, "study", str(rows[6].uuid)) == rows[6].id


def test_a_study_whose_name_reads_like_a_uuid_is_found_by_it(site: Site) -> None:
    row = add(site, "study", "0" * 32)
    assert found(site, "study", "0" * 32) == row.id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("typed", ["", "   ", "nobody@nowhere", "\x00", "a\x00b", "caf\udce9", "%", "_@_"])
def test_what_is_not_there_is_refused_and_named(site: Site, kind: str, typed: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        found(site, kind, typed)
    assert repr(typed) in str(refusal.value)
