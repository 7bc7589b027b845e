"""How the command line shows things: tables, times, states, JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Sequence, Sized
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from lookit_ops.terminal import plain, visible

# A file or a pipe has no width; tables that nobody reads in 80 columns must not be squeezed into them.
console = Console(width=None if sys.stdout.isatty() else 160, emoji=False)
errors = Console(stderr=True, emoji=False)

_CONTROL_IN_JSON = re.compile(r"[\x7f-\x9f\ud800-\udfff]")

_COLOURS = {
    "active": "green",
    "succeeded": "green",
    "sent": "green",
    "approved": "cyan",
    "submitted": "cyan",
    "queued": "cyan",
    "waiting": "cyan",
    "running": "yellow",
    "previewing": "yellow",
    "deploying": "yellow",
    "paused": "yellow",
    "rejected": "red",
    "failed": "red",
    "cancelled": "magenta",
    "withdrawn": "magenta",
}


class ToErrors(logging.Handler):
    """Prints what is logged beside a command's work: it names people and quotes servers, like any other text."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record to standard error."""
        errors.print(visible(self.format(record)), markup=False, highlight=False, soft_wrap=True)


def coloured(word: str | None) -> str:
    """A state or status in its colour."""
    colour = _COLOURS.get(word or "")
    return f"[{colour}]{word}[/]" if colour else plain(word or "–")


def when(time: datetime | None) -> str:
    """A time as people read it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S") if time else "–"


def counted(things: Sized, singular: str, plural: str = "") -> str:
    """How many there are, in words: 1 role, 2 roles."""
    return f"{len(things)} {singular if len(things) == 1 else plural or singular + 's'}"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; title and cells may hold rich markup, so what people typed must come through `plain`."""
    shown = Table(*columns, title=title, title_justify="left", header_style="bold")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def as_json(value: Any) -> None:
    """Print JSON for scripts, times in ISO 8601."""
    json_text(json.dumps(value, default=_as_text, indent=2, ensure_ascii=False))


def json_text(text: str) -> None:
    """Print what is JSON already; the control characters that JSON lets through as they are become escapes."""
    print(_CONTROL_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text))  # noqa: T201 - rich would wrap it


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
