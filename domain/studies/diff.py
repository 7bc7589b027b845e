"""What an edit changed, as a reviewer reads it: one unified diff for each field of a log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import unified_diff
from typing import Any

from domain.models import StudyLog


def readable_diff(log: StudyLog) -> Iterator[str]:
    """The lines of the log's diff, field by field; nothing for a log that changed no content."""
    for field, (before, after) in log.extra.get("diff", {}).items():
        yield f"{field.replace('_', ' ')}:"
        old, new = _lines(before), _lines(after)
        if old == new:  # only the ends of lines differ: shown as Python writes them, one can see it
            old, new = (list(map(repr, str(value).splitlines(keepends=True))) for value in (before, after))
        lines = unified_diff(old, new, n=2, lineterm="")
        yield from [f"  {line}" for line in lines][2:]  # the first two name files, of which there are none


def _lines(value: Any) -> list[str]:
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    return text.splitlines()
