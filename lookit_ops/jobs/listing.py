"""A list of things on a run's page: the first of them, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

NAMED_AT_MOST = 20


def listing(things: Sequence[str]) -> dg.MarkdownMetadataValue:
    """The things, which are Markdown, one on each line."""
    lines = [f"- {thing}" for thing in things[:NAMED_AT_MOST]]
    more = len(things) - NAMED_AT_MOST
    return dg.MetadataValue.md("\n".join([*lines, f"- … and {more:,} more"] if more > 0 else lines) or "nothing")
