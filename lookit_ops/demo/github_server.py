"""A small server that speaks GitHub's paths for commits kept in memory: for the demonstration and for tests.

    GET /repos/{owner}/{repo}                             whether it is private
    GET /repos/{owner}/{repo}/commits/{ref}               ref: a full SHA, a branch's name, or HEAD
    GET /repos/{owner}/{repo}/compare/{base}...{head}     both as above; says how head stands to base
    GET /{owner}/{repo}/archive/{sha}.zip                 with one top folder, {repo}-{sha}/

As with GitHub, commits that only a fork holds are served under the repository's own name. The same address serves as
API and as web base.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lookit_ops.server.local_server import LocalServer

SKIPPED_FOLDERS = frozenset({".git", "bower_components", "dist", "node_modules", "tmp"})

_REPOSITORY_PATH = re.compile(r"/repos/(?P<repository>[^/]+/[^/]+)")
_COMMIT_PATH = re.compile(r"/repos/(?P<repository>[^/]+/[^/]+)/commits/(?P<ref>.+)")
_COMPARE_PATH = re.compile(r"/repos/(?P<repository>[^/]+/[^/]+)/compare/(?P<base>.+?)\.\.\.(?P<head>.+)")
_ARCHIVE_PATH = re.compile(r"/(?P<repository>[^/]+/[^/]+)/archive/(?P<sha>[0-9a-f]{40})\.zip")
_ZIPBALL_PATH = re.compile(r"/repos/(?P<repository>[^/]+/[^/]+)/zipball/(?P<sha>[0-9a-f]{40})")


@dataclass(frozen=True, slots=True)
class Commit:
    """A folder of files at one time. Its SHA follows from the contents, though not in Git's way."""

    tree: Mapping[str, bytes]
    """Contents by relative path with forward slashes."""
    message: str
    executables: frozenset[str] = frozenset()
    """The paths that carry the executable bit."""
    sha: str = field(init=False)
    """40 hexadecimal digits."""

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.message.encode(), usedforsecurity=False)
        for path, content in sorted(self.tree.items()):
            digest.update(f"\0{path}\0{path in self.executables}\0{len(content)}\0".encode())
            digest.update(content)
        object.__setattr__(self, "sha", digest.hexdigest())

    @classmethod
    def from_folder(cls, path: Path, overlay: Path | None = None, message: str = "Snapshot") -> Commit:
        """The files of a folder without what builds leave there; those of the overlay replace or add to them."""
        tree: dict[str, bytes] = {}
        executables: set[str] = set()
        for folder in (path, *([overlay] if overlay else [])):
            for name, file in _files_of(folder):
                tree[name] = file.read_bytes()
                executables.discard(name)
                if file.stat().st_mode & stat.S_IXUSR:
                    executables.add(name)
        return cls(tree, message, frozenset(executables))

    def archive(self, repository_name: str) -> bytes:
        """The zip archive as GitHub would make it; the same commit always gives the same bytes."""
        top = f"{repository_name}-{self.sha}/"
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.comment = self.sha.encode()
            zipped.writestr(_entry(top, stat.S_IFDIR | 0o755), b"")
            for path, content in sorted(self.tree.items()):
                mode = stat.S_IFREG | (0o755 if path in self.executables else 0o644)
                zipped.writestr(_entry(top + path, mode), content)
        return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent for one request. The headers go out as they are, Content-Length included."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def of(cls, status: int, body: bytes, content_type: str, **headers: str) -> Answer:
        """A complete answer with the length that it has."""
        return cls(status, {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}, body)

    @classmethod
    def of_json(cls, status: int, value: object) -> Answer:
        """A complete answer in JSON."""
        return cls.of(status, json.dumps(value).encode(), "application/json; charset=utf-8")


Hook = Callable[[str, Mapping[str, str], Answer], Answer | None]
"""Sees path, request headers and the true answer; returns the one to send, or None to hang up without a word."""


class GitHubServer(LocalServer):
    """Serves repositories, by full name, from the first to the newest commit. A context manager, as every LocalServer.

    `fork_commits` are those that somebody pushed to a fork of a repository, and that its default branch lacks.
    `private` maps the names of private repositories to the token that may read them; without it they answer 404.
    """

    def __init__(
        self,
        repositories: Mapping[str, Sequence[Commit]],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        default_branch: str = "main",
        fork_commits: Mapping[str, Sequence[Commit]] | None = None,
        private: Mapping[str, str] | None = None,
        on_request: Hook | None = None,
    ) -> None:
        # GitHub's names do not tell upper from lower case.
        self._repositories = {name.lower(): tuple(commits) for name, commits in repositories.items()}
        self._fork_commits = {name.lower(): tuple(commits) for name, commits in (fork_commits or {}).items()}
        self._private = {name.lower(): token for name, token in (private or {}).items()}
        self._default_branch = default_branch
        self._on_request = on_request
        super().__init__(self._handler(), "github-server", host, port)

    @property
    def url(self) -> str:
        """The base address, without a closing slash: so the settings have it."""
        return super().url.rstrip("/")

    def answer(self, path: str, authorization: str = "") -> Answer:
        """Return what GitHub would say to a GET of this path with this `Authorization` header."""
        repository = "/".join(path.removeprefix("/repos").split("/")[1:3]).lower()
        if repository in self._private and authorization != f"Bearer {self._private[repository]}":
            return Answer.of_json(404, {"message": "Not Found"})
        if match := _REPOSITORY_PATH.fullmatch(path):
            return self._repository(match["repository"])
        if match := _COMMIT_PATH.fullmatch(path):
            return self._commit(match["repository"], match["ref"])
        if match := _COMPARE_PATH.fullmatch(path):
            return self._compare(match["repository"], match["base"], match["head"])
        if match := _ARCHIVE_PATH.fullmatch(path) or _ZIPBALL_PATH.fullmatch(path):
            return self._archive(match["repository"], match["sha"])
        return Answer.of_json(404, {"message": "Not Found"})

    def _repository(self, repository: str) -> Answer:
        if repository.lower() not in self._repositories:
            return Answer.of_json(404, {"message": "Not Found"})
        is_private = repository.lower() in self._private
        visibility = "private" if is_private else "public"
        return Answer.of_json(200, {"full_name": repository, "private": is_private, "visibility": visibility})

    def _commit(self, repository: str, ref: str) -> Answer:
        commits = self._repositories.get(repository.lower())
        if commits is None:
            return Answer.of_json(404, {"message": "Not Found"})
        if not commits:
            return Answer.of_json(409, {"message": "Git Repository is empty."})
        commit = self._find(repository, ref)
        if commit is None:
            return Answer.of_json(422, {"message": f"No commit found for SHA: {ref}"})
        return Answer.of_json(200, {"sha": commit.sha, "commit": {"message": commit.message}})

    def _compare(self, repository: str, base: str, head: str) -> Answer:
        """How head stands to base. A fork's commit has left the branch at its beginning, so it has diverged."""
        first, second = self._find(repository, base), self._find(repository, head)
        if first is None or second is None:
            return Answer.of_json(404, {"message": "Not Found"})
        places = {commit.sha: place for place, commit in enumerate(self._repositories[repository.lower()])}
        if first.sha == second.sha:
            status = "identical"
        elif first.sha in places and second.sha in places:
            status = "ahead" if places[first.sha] < places[second.sha] else "behind"
        else:
            status = "diverged"
        return Answer.of_json(200, {"status": status, "base_commit": {"sha": first.sha}})

    def _archive(self, repository: str, sha: str) -> Answer:
        commit = self._find(repository, sha)
        if commit is None:
            return Answer.of(404, b"Not Found", "text/plain; charset=utf-8")
        return Answer.of(200, commit.archive(repository.split("/")[1]), "application/zip")

    def _find(self, repository: str, ref: str) -> Commit | None:
        """The commit that the ref names, in the repository or in a fork of it."""
        commits = self._repositories.get(repository.lower(), ())
        if not commits:
            return None
        forked = self._fork_commits.get(repository.lower(), ())
        names = {"HEAD": commits[-1], self._default_branch: commits[-1]}
        return ({commit.sha: commit for commit in (*forked, *commits)} | names).get(ref)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        github = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                answer: Answer | None = github.answer(path, self.headers.get("Authorization", ""))
                if github._on_request is not None and answer is not None:
                    answer = github._on_request(path, dict(self.headers), answer)
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(ConnectionError):  # a client may stop reading when it has seen enough
                    self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
                """Keep the terminal for the demonstration itself."""

        return Handler


def _files_of(folder: Path) -> list[tuple[str, Path]]:
    """Relative name and path of every plain file, in order."""
    found: list[tuple[str, Path]] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        paths = (Path(parent) / name for name in names)
        found += [(path.relative_to(folder).as_posix(), path) for path in paths if not path.is_symlink()]
    return sorted(found)


def _entry(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3  # Unix: the upper half of external_attr is the mode
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry
