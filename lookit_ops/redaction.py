"""Keeps secrets out of everything that is stored or shown: known values, and what looks like a credential."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

MASK = "[redacted]"
SHORTEST_SECRET = 4
"""Characters below which a value is no secret: masking every «a» would hide the log, not the secret."""

_CREDENTIALS = re.compile(
    # Up to the last @: a password may hold a slash that nobody has quoted. What is a port and a path is none.
    r"(?P<url>://[^/\s:@]*:)(?!\d{1,5}[/?#])[^\s'\"<>]+(?=@)"
    # HTML and JSON may have escaped the ampersand.
    r"|(?P<query>(?:[?&]|&amp;|\\u0026)(?:(?:ssl)?password|(?:access_)?token|sig(?:nature)?"
    r"|x-(?:goog|amz)-(?:signature|credential|security-token))=)(?:(?!\\u0026)[^&\s'\"<>])+"
    r"|\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,})"
    r"|(?P<header>authorization['\"]?\s*[:=]\s*['\"]?(?:\w+[ \t]+)?)[^\s'\"]+",
    re.IGNORECASE,
)


class Redactor:
    """Replaces secrets in text by a mask."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # A URL writes them in one of two ways, which differ in the blank.
        values = {form for secret in secrets for form in (secret, quote(secret, safe=""), quote_plus(secret))}
        known = sorted((value for value in values if len(value) >= SHORTEST_SECRET), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._known:
            text = self._known.sub(MASK, text)
        return _CREDENTIALS.sub(lambda found: f"{found['url'] or found['query'] or found['header'] or ''}{MASK}", text)
