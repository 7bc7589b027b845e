"""How the command line shows things: tables, times, states, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# A file or a pipe has no width; tables that nobody reads in 80 columns must not be squeezed into them.
console = Console(width=None if sys.stdout.isatty() else 160)
errors = Console(stderr=True)

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


def coloured(word: str | None) -> str:
    """A state or status in its colour."""
    colour = _COLOURS.get(word or "")
    return f"[{colour}]{word}[/]" if colour else escape(word or "–")


def when(time: datetime | None) -> str:
    """A time as people read it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S") if time else "–"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; cells may hold rich markup, so escape what people typed."""
    shown = Table(*columns, title=title, title_justify="left", header_style="bold")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def as_json(value: Any) -> None:
    """Print JSON for scripts, times in ISO 8601."""
    print(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))  # noqa: T201 - rich would wrap it


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
