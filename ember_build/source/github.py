"""Ask a GitHub which commit to build and whether its default branch contains it, and fetch the commit's archive.

The base URLs are the caller's, so the same code speaks to github.com, a GitHub Enterprise, or a local server with the
same paths.
"""

from __future__ import annotations

import errno
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path

import requests

from ember_build.errors import BuildPlatformError, InvalidPlayer
from ember_build.source.github_client import (
    CHUNK_BYTES,
    GitHubClient,
    StillTemporary,
    Temporary,
    content_length,
    object_of,
)
from ember_build.source.repository import Repository, ResolvedCommit, shortened

_FULL_SHA = re.compile(r"[0-9a-f]{40}", re.IGNORECASE | re.ASCII)
_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
# What GitHub itself says of a SHA that a repository lacks. Another 422 may come from what stands before it.
_NO_SUCH_COMMIT = "no commit found for sha"
# How the default branch may stand to a commit, as GitHub says it. The first two mean that it contains the commit.
_CONTAINED = frozenset({"ahead", "identical"})
_NOT_CONTAINED = frozenset({"behind", "diverged"})


class CannotCompare(BuildPlatformError):
    """GitHub answers, and cannot tell whether a branch contains a commit."""


@dataclass(frozen=True, kw_only=True)
class GitHub(GitHubClient):
    """One GitHub, asked for commits and their archives."""

    archive_time: timedelta = timedelta(minutes=15)
    """The longest time that one archive may trickle in."""
    private_repositories: frozenset[str] = frozenset()
    """Full names, in lower case, of private repositories that may be built; what is built from them is public."""
    refuse_invalid_sha: bool = False
    """Refuse a SHA that cannot be used, instead of building the default branch."""

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
            self.raise_for_refusal(response)
            answer = object_of(response, url)
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

        if not self.ask(url, "application/vnd.github+json", read):
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
            problem = f"{shortened(requested)!r} is no full SHA (40 hexadecimal digits)"
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
                raise Temporary(f"HTTP {response.status_code}: {response.reason}")
            self.raise_for_refusal(response)
            status = object_of(response, url).get("status")
            if not isinstance(status, str) or status not in _CONTAINED | _NOT_CONTAINED:
                raise BuildPlatformError(
                    f"{url} does not say how the commits stand to each other; check LOOKIT_GITHUB_API_URL"
                )
            return status in _CONTAINED

        try:
            return self.ask(url, "application/vnd.github+json", read)
        except StillTemporary as error:
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
            self.raise_for_refusal(response)
            return self._save(response, destination, max_bytes, repository)

        try:
            size = self.ask(url, "application/zip, */*", save)
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
        expected = content_length(response)
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
                for chunk in response.iter_content(CHUNK_BYTES):
                    self.stop_if_cancelled()
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
            raise Temporary(f"the archive broke off after {received:,} of {expected:,} bytes")
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
                raise Temporary(f"HTTP {response.status_code}: {response.reason}")
            self.raise_for_refusal(response)
            return _sha_of(response, url)

        return self.ask(url, "application/vnd.github+json", read)


def disk_error(error: OSError, path: Path) -> BuildPlatformError:
    """Our own disk's refusal, with the remedy."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return BuildPlatformError(f"the disk that holds {path.parent} is full; free some space and try again")
    return BuildPlatformError(f"cannot write {path}: {error.strerror or error}; check the folder and its rights")


def _sha_of(response: requests.Response, url: str) -> str:
    """The answer's `sha`. Raises BuildPlatformError unless it is a full one."""
    sha = object_of(response, url).get("sha")
    if not isinstance(sha, str) or not _FULL_SHA.fullmatch(sha):
        raise BuildPlatformError(f"{url} answered without a commit's SHA; check LOOKIT_GITHUB_API_URL")
    return sha.lower()
