"""Ask a GitHub which commit to build and whether its default branch contains it, and fetch the commit's archive.

The base URLs are the caller's, so the same code speaks to github.com, a GitHub Enterprise, or a local server with the
same paths. Temporary trouble (5xx, rate limits, broken connections) is waited out here within bounds; what remains is
either the researcher's to mend (`InvalidPlayer`) or ours (`BuildPlatformError`).
"""

from __future__ import annotations

import errno
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
from pathlib import Path
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase

from ember_build.errors import BuildCancelled, BuildPlatformError, InvalidPlayer
from ember_build.waiting import answer_of

T = TypeVar("T")

USER_AGENT = "lookit-ops (builds of study players)"

_FULL_SHA = re.compile(r"[0-9a-f]{40}", re.IGNORECASE | re.ASCII)
# GitHub's own rules. An owner (a managed user, `rosa_mit`) holds single underscores, and none at its end, so the first
# "__" of a slug always ends the owner.
_OWNER = r"(?P<owner>(?![^/]{40})[A-Za-z0-9](?:[A-Za-z0-9-]|_(?=[A-Za-z0-9-])){0,38})"
_NAME = r"(?P<name>[A-Za-z0-9._-]{1,100}?)"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
# What GitHub itself says of a SHA that a repository lacks. Another 422 may come from what stands before it.
_NO_SUCH_COMMIT = "no commit found for sha"
# GitHub's words for a repository that its staff has taken down, with HTTP 403.
_BLOCKED = "access blocked"
# How the default branch may stand to a commit, as GitHub says it. The first two mean that it contains the commit.
_CONTAINED = frozenset({"ahead", "identical"})
_NOT_CONTAINED = frozenset({"behind", "diverged"})
_LONGEST_BACKOFF_SECONDS = 30.0
# Answers whose body says why.
_EXPLAINED = frozenset(
    {HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS}
)
_LONGEST_REFUSAL_BYTES = 64 * 1024
_LONGEST_JSON_BYTES = 32 * 2**20  # a commit's answer lists its files with their patches
_CHUNK_BYTES = 2**18
# GitHub's advice for a secondary rate limit that names no time.
_UNNAMED_LIMIT_SECONDS = 60.0

_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the configured GitHub."""

    owner: str
    name: str

    @classmethod
    def parse(cls, url: str, web_url: str) -> Repository:
        """Read `{web_url}/owner/name`, with or without `.git` and a closing slash. Raises InvalidPlayer."""
        base = web_url.rstrip("/")
        # re.ASCII: without it, letters like the Kelvin sign would pass for a "k" of the host.
        match = re.fullmatch(rf"(?i:{re.escape(base)})/{_OWNER}/{_NAME}(?:\.git)?/?", url.strip(" "), re.ASCII)
        if match is None or match["name"] in {".", ".."} or match["name"].lower().endswith(".git"):
            raise InvalidPlayer(
                f"{_shown(url)} is no usable address of a player's repository; expected {base}/owner/name"
            )
        return cls(match["owner"], match["name"])

    @property
    def slug(self) -> str:
        """A folder name that no other repository has."""
        return f"{self.owner}__{self.name}"

    @property
    def full_name(self) -> str:
        """The name as GitHub writes it: `owner/name`."""
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, slots=True)
class ResolvedCommit:
    """The commit that will be built, and why this one."""

    repository: Repository
    sha: str
    """40 lower-case hexadecimal digits."""
    substituted: bool
    """The study names something, and it could not be used."""
    reason: str
    """One plain sentence for log, run page and mail."""
    is_head: bool = False
    """It was resolved as the default branch's head, so that the branch contains it beyond question."""


@dataclass(frozen=True, slots=True)
class GitHub:
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
    archive_time: timedelta = timedelta(minutes=15)
    """The longest time that one archive may trickle in."""
    private_repositories: frozenset[str] = frozenset()
    """Full names, in lower case, of private repositories that may be built; what is built from them is public."""
    refuse_invalid_sha: bool = False
    """Refuse a SHA that cannot be used, instead of building the default branch."""
    sleep: Callable[[float], None] = time.sleep
    cancelled: threading.Event | None = None
    """Once set, the next wait or piece of an archive ends with BuildCancelled."""

    def resolve(self, repository: Repository, requested_sha: str | None) -> ResolvedCommit:
        """Return the commit to build: the requested one if the repository confirms it, else the default branch's head.

        A token may read private repositories. Those that the operator has not listed are treated as absent, in the
        same words, so that a researcher learns nothing of them.

        Raises:
            InvalidPlayer: no such repository, an empty one, or (if so set) a SHA that cannot be used.
            BuildPlatformError: GitHub could not be asked, or answered nonsense. This never makes a SHA invalid.
        """
        if self.token is None:
            return self._resolve(repository, requested_sha)
        try:
            commit = self._resolve(repository, requested_sha)
        except InvalidPlayer:
            self._require_public_or_listed(repository)  # its message tells less
            raise
        # Asked last: a repository that is public now was public when the commit was resolved, or has just become so.
        self._require_public_or_listed(repository)
        return commit

    def _require_public_or_listed(self, repository: Repository) -> None:
        """Raise InvalidPlayer for a private repository that the operator has not listed."""
        url = f"{self.api_url.rstrip('/')}/repos/{repository.owner}/{repository.name}"

        def read(response: requests.Response) -> bool:
            if response.status_code in _GONE:
                return False
            self._raise_for_refusal(response)
            answer = _object_of(response, url)
            is_private, full_name = answer.get("private"), answer.get("full_name")
            if not isinstance(is_private, bool) or not isinstance(full_name, str):
                raise BuildPlatformError(
                    f"{url} does not say whether the repository is private, so it is not built with the token in"
                    " LOOKIT_GITHUB_TOKEN; check LOOKIT_GITHUB_API_URL"
                )
            if not is_private and answer.get("visibility", "public") == "public":
                return True
            # The name that GitHub tells: the one that was asked for may lead to another repository since a renaming.
            return full_name.lower() in self.private_repositories

        if not self._ask(url, "application/vnd.github+json", read):
            raise self._no_public_repository(repository)

    def _no_public_repository(self, repository: Repository) -> InvalidPlayer:
        return InvalidPlayer(
            f"there is no public repository {repository.full_name} at {self.web_url}; check the address. A private"
            " repository is built only if the operator has listed it in LOOKIT_PRIVATE_REPOSITORIES"
        )

    def _resolve(self, repository: Repository, requested_sha: str | None) -> ResolvedCommit:
        requested = (requested_sha or "").strip() or None
        if requested is None:
            problem = "The study names no commit"
        elif not _FULL_SHA.fullmatch(requested):
            problem = f"{_cut(requested)!r} is no full SHA (40 hexadecimal digits)"
        else:
            sha = self._commit(repository, requested.lower())
            if sha == requested.lower():
                reason = f"The study names commit {sha}, and {repository.full_name} confirmed it."
                return ResolvedCommit(repository, sha, substituted=False, reason=reason)
            if sha is not None:
                raise BuildPlatformError(
                    f"asked for commit {requested} of {repository.full_name}, GitHub told of another one: {sha}"
                )
            problem = f"{repository.full_name} has no commit {requested}"

        head = self._commit(repository, "HEAD")
        if head is None:
            raise self._no_public_repository(repository)
        if requested is not None and self.refuse_invalid_sha:
            raise InvalidPlayer(f"{problem}; give the full SHA of one of its commits")
        reason = f"{problem}: the head of the default branch is used instead, {head}."
        return ResolvedCommit(repository, head, substituted=requested is not None, reason=reason, is_head=True)

    def is_on_default_branch(self, commit: ResolvedCommit) -> bool:
        """Whether the repository's default branch contains the commit: only then did its owners let it in.

        GitHub keeps a repository and its forks in one store, and tells of a commit that exists only in somebody's
        fork as if it were the repository's own. So a confirmed SHA proves nothing about who wrote it.

        Raises:
            CannotCompare: GitHub answers, but cannot compare these commits.
            BuildPlatformError: GitHub could not be asked, or answered nonsense.
        """
        if commit.is_head:
            return True
        repository = commit.repository
        # Only `status` is wanted: without per_page, the answer lists every commit in between.
        url = (
            f"{self.api_url.rstrip('/')}/repos/{repository.owner}/{repository.name}"
            f"/compare/{commit.sha}...HEAD?per_page=1"
        )

        def read(response: requests.Response) -> bool:
            if response.status_code == HTTPStatus.NOT_FOUND:  # no such commit, or no common ancestor
                return False
            if response.status_code == HTTPStatus.UNPROCESSABLE_ENTITY:
                raise _Temporary(f"HTTP {response.status_code}: {response.reason}")
            self._raise_for_refusal(response)
            status = _object_of(response, url).get("status")
            if not isinstance(status, str) or status not in _CONTAINED | _NOT_CONTAINED:
                raise BuildPlatformError(
                    f"{url} does not say how the commits stand to each other; check LOOKIT_GITHUB_API_URL"
                )
            return status in _CONTAINED

        try:
            return self._ask(url, "application/vnd.github+json", read)
        except _StillTemporary as error:
            raise CannotCompare(
                f"GitHub cannot tell whether the default branch of {repository.full_name} contains commit"
                f" {commit.sha}: {error}"
            ) from error

    def download_archive(self, repository: Repository, sha: str, destination: Path, max_bytes: int) -> int:
        """Stream the commit's zip archive to a new file; return its bytes. No error leaves a partial file.

        With a token the API is asked: the web's archives take none of the fine-grained tokens.

        Raises:
            InvalidPlayer: there is no such commit any more, or its archive has more than `max_bytes`.
            BuildPlatformError: GitHub could not be reached or has the commit but no archive, or our disk refused.
        """
        if self.token:
            url = f"{self.api_url.rstrip('/')}/repos/{repository.owner}/{repository.name}/zipball/{sha}"
        else:
            url = f"{self.web_url.rstrip('/')}/{repository.owner}/{repository.name}/archive/{sha}.zip"

        def save(response: requests.Response) -> int | None:
            if response.status_code in _GONE or response.status_code == HTTPStatus.UNPROCESSABLE_ENTITY:
                return None
            self._raise_for_refusal(response)
            return self._save(response, destination, max_bytes, repository)

        try:
            size = self._ask(url, "application/zip, */*", save)
        except BaseException:
            with suppress(OSError):  # the error that brought us here is the one to tell
                destination.unlink(missing_ok=True)
            raise
        if size is None:
            raise self._no_archive(repository, sha)
        return size

    def _no_archive(self, repository: Repository, sha: str) -> InvalidPlayer | BuildPlatformError:
        """Say why there is no archive of a commit, once it has been asked for again."""
        if self._commit(repository, sha) is None:
            return InvalidPlayer(
                f"{repository.full_name} has no commit {sha} any more; name another one, or push this one again"
            )
        remedy = (
            "the token in LOOKIT_GITHUB_TOKEN may lack the right to read its contents (fine-grained tokens:"
            ' "Contents", read)'
            if self.token
            else "try again later"
        )
        return BuildPlatformError(
            f"GitHub confirms commit {sha} of {repository.full_name}, but has no archive of it: {remedy}"
        )

    def _save(self, response: requests.Response, destination: Path, max_bytes: int, repository: Repository) -> int:
        expected = _content_length(response)
        too_big = InvalidPlayer(
            f"the archive of {repository.full_name} has more than the {max_bytes:,} bytes that are allowed; "
            "keep large media out of the repository"
        )
        if expected is not None and expected > max_bytes:
            raise too_big
        started = time.monotonic()
        received = 0
        try:
            with destination.open("wb") as file:
                for chunk in response.iter_content(_CHUNK_BYTES):
                    self._stop_if_cancelled()
                    received += len(chunk)
                    if received > max_bytes:
                        raise too_big
                    if time.monotonic() - started > self.archive_time.total_seconds():
                        raise BuildPlatformError(
                            f"the archive of {repository.full_name} did not come within {self.archive_time}; try later"
                        )
                    file.write(chunk)
        except requests.RequestException:  # an OSError too, but the network's
            raise
        except OSError as error:
            raise disk_error(error, destination) from error
        if expected is not None and received != expected:
            raise _Temporary(f"the archive broke off after {received:,} of {expected:,} bytes")
        return received

    def _commit(self, repository: Repository, ref: str) -> str | None:
        """The SHA that the ref names; None if GitHub says that there is no such repository or commit."""
        url = f"{self.api_url.rstrip('/')}/repos/{repository.owner}/{repository.name}/commits/{ref}"

        def read(response: requests.Response) -> str | None:
            if response.status_code in _GONE:
                return None
            if response.status_code == HTTPStatus.CONFLICT:
                raise InvalidPlayer(f"{repository.full_name} has no commit to build; push the player's code first")
            if response.status_code == HTTPStatus.UNPROCESSABLE_ENTITY:
                if response.reason.lower().startswith(_NO_SUCH_COMMIT):
                    return None
                raise _Temporary(f"HTTP {response.status_code}: {response.reason}")
            self._raise_for_refusal(response)
            return _sha_of(response, url)

        return self._ask(url, "application/vnd.github+json", read)

    def _ask(self, url: str, accept: str, read: Callable[[requests.Response], T]) -> T:
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
                except _Temporary as error:
                    problem, answered = str(error), True
                except (
                    requests.ConnectionError,
                    requests.Timeout,
                    requests.exceptions.ChunkedEncodingError,
                    requests.exceptions.ContentDecodingError,
                ) as error:
                    problem, answered = f"{type(error).__name__}: {_cut(str(error))}", False
                except requests.RequestException as error:
                    raise BuildPlatformError(
                        f"{host} cannot be asked: {_cut(str(error))}; check LOOKIT_GITHUB_API_URL and"
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
        kind = _StillTemporary if answered else BuildPlatformError
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
        self._stop_if_cancelled()

    def _stop_if_cancelled(self) -> None:
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

    def _raise_for_refusal(self, response: requests.Response) -> None:
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


class CannotCompare(BuildPlatformError):
    """GitHub answers, and cannot tell whether a branch contains a commit."""


class _StillTemporary(BuildPlatformError):
    """The service answered each time, and each time with temporary trouble of its own."""


class _Temporary(Exception):
    """Another try may go well."""


class _RateLimited(_Temporary):
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


def disk_error(error: OSError, path: Path) -> BuildPlatformError:
    """Our own disk's refusal, with the remedy."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return BuildPlatformError(f"the disk that holds {path.parent} is full; free some space and try again")
    return BuildPlatformError(f"cannot write {path}: {error.strerror or error}; check the folder and its rights")


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _raise_if_temporary(response: requests.Response) -> None:
    status = response.status_code
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _Temporary(f"HTTP {status}")
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


def _content_length(response: requests.Response) -> int | None:
    """The bytes that were promised, if they can be compared with those that we get."""
    value = response.headers.get("Content-Length", "")
    comparable = re.fullmatch(r"[0-9]{1,18}", value) and "Content-Encoding" not in response.headers
    return int(value) if comparable else None


def _sha_of(response: requests.Response, url: str) -> str:
    """The answer's `sha`. Raises BuildPlatformError unless it is a full one."""
    sha = _object_of(response, url).get("sha")
    if not isinstance(sha, str) or not _FULL_SHA.fullmatch(sha):
        raise BuildPlatformError(f"{url} answered without a commit's SHA; check LOOKIT_GITHUB_API_URL")
    return sha.lower()


def _message_of(response: requests.Response) -> str:
    """The answer's `message`, and the reason of a block, shortened; empty where it has none."""
    beginning = _beginning_of(response)
    if b"rate limit" in beginning.lower() and not beginning.lstrip().startswith(b"{"):
        return "rate limit"  # a page for people
    with suppress(ValueError, AttributeError, RecursionError):
        said = json.loads(beginning)
        block = said.get("block")
        reason = block.get("reason") if isinstance(block, dict) else None
        return _cut(" ".join(f"{said.get('message') or ''}{f' ({reason})' if reason else ''}".split()))
    return ""


def _beginning_of(response: requests.Response) -> bytes:
    """The answer's first bytes, however it is cut into pieces."""
    beginning = bytearray()
    for chunk in response.iter_content(_LONGEST_REFUSAL_BYTES):
        beginning += chunk
        if len(beginning) >= _LONGEST_REFUSAL_BYTES:
            break
    return bytes(beginning[:_LONGEST_REFUSAL_BYTES])


def _object_of(response: requests.Response, url: str) -> dict[str, object]:
    """The answer as a JSON object; an empty one for any other JSON. Raises BuildPlatformError if it is no JSON."""
    body = bytearray()
    for chunk in response.iter_content(_CHUNK_BYTES):
        body += chunk
        if len(body) > _LONGEST_JSON_BYTES:
            raise BuildPlatformError(f"the answer of {url} is too long for a commit; check LOOKIT_GITHUB_API_URL")
    expected = _content_length(response)
    if expected is not None and len(body) != expected:
        raise _Temporary(f"the answer broke off after {len(body)} of {expected} bytes")
    try:
        answer = json.loads(bytes(body))
    except ValueError as error:
        raise BuildPlatformError(f"{url} did not answer in JSON; check LOOKIT_GITHUB_API_URL") from error
    return answer if isinstance(answer, dict) else {}


def _cut(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[:length] + "…"


def _shown(url: str) -> str:
    """The value for an error message, without the password or token that somebody may have pasted with it."""
    without_query = re.split(r"[?#]", url, maxsplit=1)[0]
    return repr(_cut(re.sub(r"//[^/]*@", "//…@", without_query)))
