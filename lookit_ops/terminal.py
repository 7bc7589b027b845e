"""Text that people or builds wrote, in the markup of rich: neither the terminal nor rich obeys any of it.

A terminal obeys control characters: a name that holds some could retitle the window, write to the clipboard, or hide
what stands before it. So whatever was not written in this code goes through `plain` (or `visible`, outside of markup).
"""

from __future__ import annotations

from rich.markup import escape

from domain.escaping import visible as visible


def plain(text: object) -> str:
    """Return what people or builds wrote, for a place that reads markup."""
    return escape(visible(str(text)))
