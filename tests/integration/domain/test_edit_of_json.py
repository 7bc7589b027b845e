"""Editing the fields that hold JSON, on both databases: what counts as a change, and what JSON cannot hold."""

from __future__ import annotations

from typing import Any

import pytest

from domain.errors import InvalidRequest
from domain.models import Study, User
from domain.studies.edit import edit
from tests.support.site import Site

IMPOSSIBLE = {
    "NUL in a text": {"frames": ["a\x00b"]},
    "NUL in a key": {"a\x00b": 1},
    "no number": {"x": [{"y": float("nan")}]},
    "infinite": {"x": float("inf")},
}


def change(site: Site, changes: dict[str, Any]) -> list[str]:
    with site.sessions.begin() as session:
        return edit(session, session.get_one(Study, site.study_id), session.get_one(User, site.designer), changes)


@pytest.mark.parametrize(("before", "after"), [(1, True), (0, False)])
def test_a_number_that_becomes_true_or_false_is_a_change(site: Site, before: int, after: bool) -> None:
    with site.sessions.begin() as session:
        session.get_one(Study, site.study_id).structure = {"frames": [{"repeat": before}]}
    assert change(site, {"structure": {"frames": [{"repeat": after}]}}) == ["structure"]
    assert site.study().structure["frames"][0]["repeat"] is after
    assert [log.action for log in site.logs()] == ["reject"]


def test_the_order_of_keys_is_no_change(site: Site) -> None:
    with site.sessions.begin() as session:
        session.get_one(Study, site.study_id).structure = {"a": 1, "b": {"c": 2, "d": 3}}
    assert change(site, {"structure": {"b": {"d": 3, "c": 2}, "a": 1}}) == []
    assert (site.study().state, site.logs()) == ("approved", [])


@pytest.mark.parametrize("field", ["structure", "study_metadata"])
@pytest.mark.parametrize("value", list(IMPOSSIBLE.values()), ids=list(IMPOSSIBLE))
def test_what_json_of_a_database_cannot_hold_is_refused_by_its_field(
    site: Site, field: str, value: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match=field):
        change(site, {field: value})
    assert (site.study().state, site.logs(), site.mails()) == ("approved", [], [])
