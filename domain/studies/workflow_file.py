"""Reads the table of the workflow from YAML, and refuses one that is malformed or leads around the review."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import yaml

from domain.errors import InvalidRequest
from domain.mail.audience import Audience
from domain.models import State
from domain.models.studies import LOCK_STATES, WORKFLOW_STATES
from domain.permissions.codes import Permission
from domain.studies.approval import APPROVED_STATES

APPROVE = "approve"
"""The trigger that records what a reviewer has read."""
MOST_BYTES = 100_000
_NAME = re.compile(r"[a-z][a-z_]{0,29}")
_REQUIRED, _OPTIONAL = {"trigger", "source", "dest", "permission"}, {"needs_deployment", "notice"}
_NOTICE_KEYS = ["audience", "headline", "sentence"]


class Notice(TypedDict):
    """Who is told of a transition, under which headline, in which sentence."""

    audience: str
    headline: str
    sentence: str


class Row(TypedDict):
    """One row of the workflow table."""

    trigger: str
    source: list[str]
    dest: str
    permission: str
    needs_deployment: NotRequired[bool]
    notice: NotRequired[Notice]


def read_table(file: Path) -> list[Row]:
    """Return the table in a file. Raises InvalidRequest that names the file, the line, and what is wrong."""
    try:
        with file.open("rb") as stream:
            contents = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"the workflow file {file} cannot be read: {error.strerror}") from error
    if len(contents) > MOST_BYTES:
        raise InvalidRequest(f"the workflow file {file} has more than {MOST_BYTES:,} bytes")
    try:
        text = contents.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the workflow file {file} is not text in UTF-8 (byte {error.start})") from error
    return table_from_yaml(text, str(file))


def table_from_yaml(text: str, name: str = "the workflow table") -> list[Row]:
    """Return the table that the text describes. Raises InvalidRequest with the line of `name`, and what is wrong."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        rows = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidRequest(f"{name}{line}: this is not YAML: {error.problem or error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidRequest(f"{name}: this is not YAML: {error}") from error
    if not isinstance(rows, list) or not isinstance(root, yaml.SequenceNode):
        raise InvalidRequest(f"{name}: a workflow table is a list of transitions")
    seen: dict[tuple[str, str], int] = {}
    for node, row in zip(root.value, rows, strict=True):
        line = node.start_mark.line + 1

        def refuse(message: str, line: int = line) -> InvalidRequest:
            return InvalidRequest(f"{name}, line {line}: {message}")

        _require_row(node, row, refuse)
        for reason in _ways_around_the_review(row):
            raise refuse(reason)
        for source in row["source"]:
            way = (row["trigger"], source)
            if way in seen:
                raise refuse(f"{row['trigger']!r} leads from {source!r} already, by line {seen[way]}")
            seen[way] = line
    return cast("list[Row]", rows)


def _require_row(node: yaml.Node, row: Any, refuse: Callable[[str], InvalidRequest]) -> None:
    if not isinstance(row, dict) or not isinstance(node, yaml.MappingNode):
        raise refuse(f"a transition has {sorted(_REQUIRED)} and may have {sorted(_OPTIONAL)}, not {row!r}")
    if twice := _named_twice(node):
        raise refuse(f"{twice!r} is given twice")
    if not _REQUIRED <= row.keys() <= _REQUIRED | _OPTIONAL:
        raise refuse(f"a transition has {sorted(_REQUIRED)} and may have {sorted(_OPTIONAL)}, not {row!r}")
    trigger, source = row["trigger"], row["source"]
    if not isinstance(trigger, str) or not _NAME.fullmatch(trigger):
        raise refuse(f"the trigger of a transition is a name in lower case, not {trigger!r}")
    if not isinstance(source, list) or not source:
        raise refuse(f"the source of {trigger!r} is a list of states, not {source!r}")
    for state in [*source, row["dest"]]:
        if state not in WORKFLOW_STATES:
            lock = " it is a lock state, which belongs to builds;" if state in LOCK_STATES else ""
            raise refuse(f"the workflow has no state {state!r};{lock} there are {', '.join(WORKFLOW_STATES)}")
    if row["permission"] not in list(Permission):
        raise refuse(f"there is no permission {row['permission']!r}; docs/permissions.md lists them")
    if not isinstance(row.get("needs_deployment", False), bool):
        raise refuse(f"needs_deployment of {trigger!r} is true or false, not {row['needs_deployment']!r}")
    if "notice" in row:
        _require_notice(trigger, row["notice"], refuse)


def _require_notice(trigger: str, notice: Any, refuse: Callable[[str], InvalidRequest]) -> None:
    texts = isinstance(notice, dict) and sorted(notice) == _NOTICE_KEYS
    if not texts or not all(isinstance(notice[key], str) for key in _NOTICE_KEYS):
        raise refuse(f"the notice of {trigger!r} has {', '.join(_NOTICE_KEYS)}, each a text, not {notice!r}")
    if notice["audience"] not in list(Audience):
        raise refuse(
            f"the notice of {trigger!r} names no audience that exists: {notice['audience']!r};"
            f" there are {', '.join(Audience)}"
        )


def _named_twice(node: yaml.MappingNode) -> str | None:
    names = [str(key.value) for key, _ in node.value]
    return next((name for place, name in enumerate(names) if name in names[:place]), None)


def _ways_around_the_review(row: Row) -> Iterator[str]:
    """Say why families could meet a study by this row that no reviewer has approved; nothing if they could not."""
    trigger, dest, permission = row["trigger"], row["dest"], row["permission"]
    is_approval = dest == State.APPROVED
    if is_approval != (trigger == APPROVE):
        yield f"{APPROVE!r} and no other trigger leads to {State.APPROVED.value!r}; this is {trigger!r}, to {dest!r}"
    if is_approval and permission != Permission.APPROVE_STUDY:
        yield f"{APPROVE!r} asks for {Permission.APPROVE_STUDY.value}, not for {permission}: it is the review"
    if is_approval and row["source"] != [State.SUBMITTED]:
        yield f"{APPROVE!r} leads from {State.SUBMITTED.value!r} alone: what was not submitted has not been reviewed"
    unreviewed = [state for state in row["source"] if state not in APPROVED_STATES]
    if dest in APPROVED_STATES and not is_approval and unreviewed:
        yield f"{trigger!r} leads from {', '.join(unreviewed)}, whose content nobody has approved, to {dest!r}"
    if dest == State.ACTIVE and not row.get("needs_deployment"):
        yield f"{trigger!r} leads to {State.ACTIVE.value!r}, so it has needs_deployment: true"
