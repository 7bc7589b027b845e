"""Reads a workflow table from YAML. Each error names the file and the line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from reprlib import Repr
from typing import Any, cast

import yaml

from domain.errors import InvalidRequest
from domain.mail.audience import Audience
from domain.models import BuildKind
from domain.models.studies import LOCK_STATES, WORKFLOW_STATES
from domain.permissions.codes import STUDY_PERMISSIONS, Permission
from domain.studies.workflow_table import Row, ways_around_the_review

MOST_BYTES = 100_000
OTHER_ACTIONS = frozenset(
    {*BuildKind, "rollback", "edit", "put_back", "taken_down", "video_archive", "video_link", "mark_consent_footage"}
)
"""What a study's log calls the acts that are no transitions. A trigger of that name could not be told from them."""
_NAME = re.compile(r"[a-z][a-z_]{0,29}")
_REQUIRED, _OPTIONAL = {"trigger", "source", "dest", "permission"}, {"needs_deployment", "notice"}
_NOTICE_KEYS = {"audience", "headline", "sentence"}
_MERGE = "tag:yaml.org,2002:merge"

_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60

Refuse = Callable[..., InvalidRequest]


class _TableLoader(yaml.SafeLoader):
    """YAML without aliases, which make a small file huge, and without what says the same key twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="a workflow table has no aliases (*)", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = _short.repr(key.value)
            if key.tag == _MERGE:
                raise yaml.MarkedYAMLError(
                    problem="a workflow table has no merge keys (<<)", problem_mark=key.start_mark
                )
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name} is given twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


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
    root, rows = _parsed(text, name)
    if not isinstance(rows, list) or not isinstance(root, yaml.SequenceNode) or not rows:
        raise InvalidRequest(f"{name}: a workflow table is a list of transitions")
    seen: dict[tuple[str, str], int] = {}
    for node, row in zip(root.value, rows, strict=True):
        lines = _lines(node)

        def refuse(message: str, key: str = "", lines: dict[str, int] = lines) -> InvalidRequest:
            return InvalidRequest(f"{name}, line {lines.get(key, lines[''])}: {message}")

        _require_row(row, refuse)
        for reason in ways_around_the_review(row):
            raise refuse(reason)
        for source in row["source"]:
            way = (row["trigger"], source)
            if way in seen:
                raise refuse(f"{row['trigger']!r} leads from {source!r} already, by line {seen[way]}", "source")
            seen[way] = lines[""]
    return cast("list[Row]", rows)


def _parsed(text: str, name: str) -> tuple[yaml.Node | None, Any]:
    """Return the document as nodes, which know their lines, and as values."""
    try:
        loader = _TableLoader(text)
        try:
            root = loader.get_single_node()
            return root, None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidRequest(f"{name}{line}: this cannot be read as YAML: {error.problem or error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidRequest(f"{name}: this cannot be read as YAML: {error}") from error


def _lines(node: yaml.Node) -> dict[str, int]:
    """Return the line of each key of a transition; that of the transition is under the empty key."""
    keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    return {str(key.value): key.start_mark.line + 1 for key in keys} | {"": node.start_mark.line + 1}


def _require_row(row: Any, refuse: Refuse) -> None:
    if not isinstance(row, dict) or not _REQUIRED <= row.keys() <= _REQUIRED | _OPTIONAL:
        found = ", ".join(_short.repr(key) for key in row) if isinstance(row, dict) else _short.repr(row)
        raise refuse(
            f"a transition has {', '.join(sorted(_REQUIRED))} and may have {', '.join(sorted(_OPTIONAL))}, not {found}"
        )
    _require_trigger(row["trigger"], refuse)
    trigger, source, dest = row["trigger"], row["source"], row["dest"]
    if not isinstance(source, list) or not source:
        raise refuse(f"the source of {trigger!r} is a list of states, not {_short.repr(source)}", "source")
    for key, state in [*(("source", state) for state in source), ("dest", dest)]:
        if state not in WORKFLOW_STATES:
            lock = " it is a lock state, which belongs to builds;" if state in LOCK_STATES else ""
            known = ", ".join(WORKFLOW_STATES)
            raise refuse(f"the workflow has no state {_short.repr(state)};{lock} there are {known}", key)
    _require_permission(row["permission"], refuse)
    if not isinstance(row.get("needs_deployment", False), bool):
        found = _short.repr(row["needs_deployment"])
        raise refuse(f"needs_deployment of {trigger!r} is true or false, not {found}", "needs_deployment")
    if "notice" in row:
        _require_notice(trigger, row["notice"], refuse)


def _require_trigger(trigger: Any, refuse: Refuse) -> None:
    if not isinstance(trigger, str) or not _NAME.fullmatch(trigger):
        raise refuse(f"the trigger of a transition is a name in lower case, not {_short.repr(trigger)}", "trigger")
    if trigger in OTHER_ACTIONS:
        raise refuse(f"no trigger is named {trigger!r}: a study's log has another act of that name", "trigger")


def _require_permission(permission: Any, refuse: Refuse) -> None:
    if permission not in list(Permission):
        raise refuse(f"there is no permission {_short.repr(permission)}; docs/permissions.md lists them", "permission")
    if permission not in STUDY_PERMISSIONS:
        raise refuse(f"{permission} is a permission on labs, and a transition is of a study", "permission")


def _require_notice(trigger: str, notice: Any, refuse: Refuse) -> None:
    is_complete = isinstance(notice, dict) and notice.keys() == _NOTICE_KEYS
    if not is_complete or not all(isinstance(text, str) for text in notice.values()):
        keys = ", ".join(sorted(_NOTICE_KEYS))
        raise refuse(f"the notice of {trigger!r} has {keys}, each a text, not {_short.repr(notice)}", "notice")
    if notice["audience"] not in list(Audience):
        raise refuse(
            f"the notice of {trigger!r} names no audience that exists: {_short.repr(notice['audience'])};"
            f" there are {', '.join(Audience)}",
            "notice",
        )
