"""Text that people or builds wrote, made harmless for a terminal.

A terminal obeys control characters: a name that holds some could retitle the window, write to the clipboard, or hide
what stands before it. So whatever was not written in this code goes through `plain` (or `visible`, outside of markup).
"""

from __future__ import annotations

import re

from rich.markup import escape

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with its control characters (C0, DEL, C1; all but line break and tab) as signs that one can see."""
    return _CONTROL.sub(_sign, text.replace("\r\n", "\n"))


def plain(text: object) -> str:
    """What people or builds wrote, for a place that reads markup: neither the terminal nor rich obeys any of it."""
    return escape(visible(str(text)))


def _sign(control: re.Match[str]) -> str:
    code = ord(control[0])
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode has a picture of each: ␛ for escape
    if code == 0x7F:
        return "␡"
    return f"\\x{code:02x}" if code < 0x100 else "\ufffd"  # half of a surrogate pair cannot be printed at all
