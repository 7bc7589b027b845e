"""Ask a GitHub over HTTP: temporary trouble is waited out within bounds, redirects are followed, tokens stay at home.

Temporary trouble is HTTP 5xx, rate limits and broken connections. What remains is the researcher's to mend
(`InvalidPlayer`) or ours (`BuildPlatformError`).
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import KW_ONLY, dataclass
from dataclasses import field as dataclass_field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase

from ember_build.errors import BuildCancelled, BuildPlatformError, InvalidPlayer
from ember_build.source.repository import shortened
from ember_build.waiting import answer_of

T = TypeVar("T")

USER_AGENT = "lookit-ops (builds of study players)"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
# GitHub's words for a repository that its staff has taken down, with HTTP 403.
_BLOCKED = "access blocked"
_LONGEST_BACKOFF_SECONDS = 30.0
# Answers whose body says why.
_EXPLAINED = frozenset(
    {HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS}
)
_LONGEST_REFUSAL_BYTES = 64 * 1024
_LONGEST_JSON_BYTES = 32 * 2**20  # a commit's answer lists its files with their patches
CHUNK_BYTES = 2**18
# GitHub's advice for a secondary rate limit that names no time.
_UNNAMED_LIMIT_SECONDS = 60.0

_random = random.SystemRandom()


@dataclass(frozen=True)
class GitHubClient:
    """One GitHub: where it is, how patiently it is asked.

    Holds no connection between calls, so an instance may be shared by threads.
    """

    api_url: str
    web_url: str
    token: str | None = dataclass_field(default=None, repr=False)
    _: KW_ONLY
    timeout: tuple[float, float] = (10.0, 60.0)
    """Seconds to connect, and seconds without a single byte."""
    attempts: int = 5
    max_wait: timedelta = timedelta(minutes=5)
    """The longest sum of waits, for rate limits and backoff, within one call."""
    sleep: Callable[[float], None] = time.sleep
    cancelled: threading.Event | None = None
    """Once set, the next wait or piece of an archive ends with BuildCancelled."""

    def ask(self, url: str, accept: str, read: Callable[[requests.Response], T]) -> T:
        """GET the address and read the answer, both again after temporary trouble."""
        host = urlsplit(url).netloc
        budget = self.max_wait.total_seconds()
        problem, answered = "", False
        with requests.Session() as session:
            # Always an auth object of our own: without one, requests would look for credentials in ~/.netrc.
            session.auth = _TokenForOrigins(self.token, frozenset({_origin(self.api_url), _origin(self.web_url)}))
            # identity: an archive is compressed already, and Content-Length then counts the bytes we get.
            session.headers.update({"User-Agent": USER_AGENT, "Accept": accept, "Accept-Encoding": "identity"})
            for attempt in range(1, self.attempts + 1):
                wait: float | None = None
                try:
                    return answer_of(lambda: self._read(session, url, read), self.cancelled, "it waited for GitHub")
                except _RateLimited as error:
                    problem, wait, answered = str(error), error.seconds, False
                    if wait is not None and wait > budget:
                        raise self._limit_reached(host, wait) from error
                except Temporary as error:
                    problem, answered = str(error), True
                except (
                    requests.ConnectionError,
                    requests.Timeout,
                    requests.exceptions.ChunkedEncodingError,
                    requests.exceptions.ContentDecodingError,
                ) as error:
                    problem, answered = f"{type(error).__name__}: {shortened(str(error))}", False
                except requests.RequestException as error:
                    raise BuildPlatformError(
                        f"{host} cannot be asked: {shortened(str(error))}; check LOOKIT_GITHUB_API_URL and"
                        " LOOKIT_GITHUB_WEB_URL"
                    ) from error
                if attempt == self.attempts:
                    break
                if wait is None:
                    wait = min(2.0 ** (attempt - 1), _LONGEST_BACKOFF_SECONDS) * _random.uniform(0.5, 1.0)
                if wait > budget:
                    break
                budget -= wait
                self._pause(wait)
        kind = StillTemporary if answered else BuildPlatformError
        raise kind(f"{host} could not be asked, the last of {attempt} attempts said: {problem}; try later")

    def _read(self, session: requests.Session, url: str, read: Callable[[requests.Response], T]) -> T:
        with closing(self._open(session, url)) as response:
            if response.status_code in _EXPLAINED:
                response.reason = _message_of(response)  # read once, and wanted in several places
            _raise_if_temporary(response)
            return read(response)

    def _pause(self, seconds: float) -> None:
        if self.cancelled is None:
            self.sleep(seconds)
        else:
            self.cancelled.wait(seconds)
        self.stop_if_cancelled()

    def stop_if_cancelled(self) -> None:
        if self.cancelled is not None and self.cancelled.is_set():
            raise BuildCancelled("The build was cancelled while it waited for GitHub.")

    def _open(self, session: requests.Session, url: str) -> requests.Response:
        """Send the request and follow redirects, never to an unencrypted address unless we began at one."""
        plain_allowed = urlsplit(url).scheme == "http"
        for _ in range(_MAX_REDIRECTS + 1):
            response = session.get(url, timeout=self.timeout, stream=True, allow_redirects=False)
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not location:
                return response
            response.close()
            target = urlsplit(urljoin(url, location))
            if target.scheme != "https" and not (target.scheme == "http" and plain_allowed):
                raise BuildPlatformError(
                    f"{urlsplit(url).netloc} redirects to {target.scheme}://{target.hostname}, which is not encrypted; "
                    "check LOOKIT_GITHUB_API_URL and LOOKIT_GITHUB_WEB_URL"
                )
            url = target.geturl()
        raise BuildPlatformError(
            f"{urlsplit(url).netloc} redirects in circles; check LOOKIT_GITHUB_API_URL and LOOKIT_GITHUB_WEB_URL"
        )

    def raise_for_refusal(self, response: requests.Response) -> None:
        """Raise for every answer that is neither a success nor one that the caller has dealt with."""
        host = urlsplit(response.url).netloc
        if response.status_code in {HTTPStatus.FORBIDDEN, HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS}:
            legal = response.status_code == HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS
            if legal or _BLOCKED in response.reason.lower():
                raise InvalidPlayer(
                    f"{host} does not give out this repository (HTTP {response.status_code}), and says:"
                    f" {response.reason or 'nothing'}. Its owner can ask GitHub; until then, name another repository"
                )
        if response.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            remedy = (
                "the token in LOOKIT_GITHUB_TOKEN is wrong, expired or lacks the right to read this repository"
                if self.token
                else "set LOOKIT_GITHUB_TOKEN to a token that may read it"
            )
            raise BuildPlatformError(f"{host} refused us (HTTP {response.status_code}): {remedy}")
        if response.status_code != HTTPStatus.OK:
            raise BuildPlatformError(f"{host} answered HTTP {response.status_code}, which we do not understand")

    def _limit_reached(self, host: str, seconds: float) -> BuildPlatformError:
        # A time beyond what a date can hold means "for ever" just as a year does.
        resets = datetime.now(UTC) + timedelta(seconds=min(seconds, 365 * 86400.0))
        remedy = "" if self.token else ", or set LOOKIT_GITHUB_TOKEN for a higher limit"
        return BuildPlatformError(
            f"{host} answers no more: its rate limit resets at {resets:%Y-%m-%d %H:%M:%S} UTC; try again then{remedy}",
            retry_at=resets,
        )


class StillTemporary(BuildPlatformError):
    """The service answered each time, and each time with temporary trouble of its own."""


class Temporary(Exception):
    """Another try may go well."""


class _RateLimited(Temporary):
    """Another try after `seconds` (None: GitHub named no time) may go well."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


class _TokenForOrigins(AuthBase):
    """Adds the token to requests for the configured origins, and to no other: redirects lead elsewhere."""

    def __init__(self, token: str | None, origins: frozenset[tuple[str, str, int | None]]) -> None:
        self.token = token
        self.origins = origins

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token and r.url and _origin(r.url) in self.origins:
            r.headers["Authorization"] = f"Bearer {self.token}"
        return r


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _raise_if_temporary(response: requests.Response) -> None:
    status = response.status_code
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Temporary(f"HTTP {status}")
    if status not in {HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS}:
        return
    seconds = _retry_after(response)
    if seconds is None and response.headers.get("X-RateLimit-Remaining") == "0":
        seconds = _until_reset(response)
    if seconds is None and status == HTTPStatus.FORBIDDEN:
        # A 403 is a limit only if it says so; otherwise it is a refusal, for which waiting is in vain.
        if "rate limit" not in response.reason.lower():
            return
        seconds = _UNNAMED_LIMIT_SECONDS
    raise _RateLimited(f"HTTP {status}, rate limit", seconds)


def _retry_after(response: requests.Response) -> float | None:
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    # "-0000" gives a naive time; the HTTP standard knows nothing but GMT.
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _until_reset(response: requests.Response) -> float | None:
    value = response.headers.get("X-RateLimit-Reset", "").strip()
    # One second more: the reset is given in whole seconds, and clocks differ.
    return max(0.0, float(value) - time.time()) + 1.0 if value.isdecimal() else None


def content_length(response: requests.Response) -> int | None:
    """The bytes that were promised, if they can be compared with those that we get."""
    value = response.headers.get("Content-Length", "")
    comparable = re.fullmatch(r"[0-9]{1,18}", value) and "Content-Encoding" not in response.headers
    return int(value) if comparable else None


def _message_of(response: requests.Response) -> str:
    """The answer's `message`, and the reason of a block, shortened; empty where it has none."""
    beginning = _beginning_of(response)
    if b"rate limit" in beginning.lower() and not beginning.lstrip().startswith(b"{"):
        return "rate limit"  # a page for people
    with suppress(ValueError, AttributeError, RecursionError):
        said = json.loads(beginning)
        block = said.get("block")
        reason = block.get("reason") if isinstance(block, dict) else None
        return shortened(" ".join(f"{said.get('message') or ''}{f' ({reason})' if reason else ''}".split()))
    return ""


def _beginning_of(response: requests.Response) -> bytes:
    """The answer's first bytes, however it is cut into pieces."""
    beginning = bytearray()
    for chunk in response.iter_content(_LONGEST_REFUSAL_BYTES):
        beginning += chunk
        if len(beginning) >= _LONGEST_REFUSAL_BYTES:
            break
    return bytes(beginning[:_LONGEST_REFUSAL_BYTES])


def object_of(response: requests.Response, url: str) -> dict[str, object]:
    """The answer as a JSON object; an empty one for any other JSON. Raises BuildPlatformError if it is no JSON."""
    body = bytearray()
    for chunk in response.iter_content(CHUNK_BYTES):
        body += chunk
        if len(body) > _LONGEST_JSON_BYTES:
            raise BuildPlatformError(f"the answer of {url} is too long for a commit; check LOOKIT_GITHUB_API_URL")
    expected = content_length(response)
    if expected is not None and len(body) != expected:
        raise Temporary(f"the answer broke off after {len(body)} of {expected} bytes")
    try:
        answer = json.loads(bytes(body))
    except ValueError as error:
        raise BuildPlatformError(f"{url} did not answer in JSON; check LOOKIT_GITHUB_API_URL") from error
    return answer if isinstance(answer, dict) else {}
