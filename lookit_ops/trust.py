"""Which players the operator trusts: trust decides on secrets, shared dependencies and the local builder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ember_build.errors import InvalidPlayer
from ember_build.source.github import GitHub, Repository, ResolvedCommit


def repositories_of(urls: Sequence[str], web_url: str) -> Iterator[Repository]:
    """Return the repositories of the configured GitHub that the URLs name.

    An address of another GitHub names nothing that could be built here, and is left out.
    """
    for url in urls:
        with suppress(InvalidPlayer):
            yield Repository.parse(url, web_url)


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """Trust in repositories, and in commits of them. `default_url` is the player of studies that name none."""

    github: GitHub
    web_url: str
    default_url: str
    trusted: tuple[Repository, ...]

    def repository(self, player_repo_url: str | None) -> Repository:
        """Return the player's repository: the study's, or the settings' default. Raises InvalidPlayer."""
        return Repository.parse(player_repo_url or self.default_url, self.web_url)

    def trusts(self, repository: Repository) -> bool:
        """Return whether the operator trusts the repository. What is built is a commit: ask `trusts_commit` for that.

        Like GitHub's own names, they are compared without regard to upper and lower case.
        """
        wanted = repository.full_name.lower()
        return any(trusted.full_name.lower() == wanted for trusted in self.trusted)

    def trusts_url(self, player_repo_url: str | None) -> bool:
        """Return whether the operator trusts the repository that a study names; None is the settings' default."""
        try:
            return self.trusts(self.repository(player_repo_url))
        except InvalidPlayer:
            return False

    def trusts_commit(self, commit: ResolvedCommit) -> bool:
        """Return whether the commit gets secrets and the local builder: its repository is trusted, and let it in.

        GitHub serves a commit of anybody's fork under the repository's own name, so only those count that the
        repository's default branch contains. Raises BuildPlatformError if GitHub cannot tell.
        """
        return self.trusts(commit.repository) and self.github.is_on_default_branch(commit)
