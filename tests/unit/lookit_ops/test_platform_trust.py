"""Who gets secrets and the local builder: commits that a trusted repository's default branch contains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from domain.errors import InvalidRequest
from domain.models import RequestStatus
from domain.requests.failure import last_error
from ember_build.builder import Builder
from ember_build.errors import BuildPlatformError
from ember_build.source.repository import Repository, ResolvedCommit
from lookit_ops.demo.github_server import GitHubServer
from lookit_ops.failures import failure_of
from lookit_ops.jobs.build_experiment import UNCERTAIN
from lookit_ops.services import Services
from lookit_ops.settings import OFFICIAL_PLAYER, Settings
from lookit_ops.storage.errors import GenerationMismatch, NameTaken, StorageError, WrongEnvironment
from tests.support.faulty_github import Faults, status
from tests.support.production import PRODUCTION
from tests.support.site import Site
from tests.support.workshop import GOOD_BUILD, REPOSITORY, Workshop, player

OFFICIAL = player("1.0")
NEWEST = player("2.0")
FORKED = player("3.0, by a stranger")
STRANGERS = "stranger/player"
KEY = "AKIA-not-for-strangers"


def services(**settings) -> Services:
    return Services(Settings(_env_file=None, **settings))


def commit(repository: str, sha: str = OFFICIAL.sha) -> ResolvedCommit:
    return ResolvedCommit(Repository(*repository.split("/")), sha, substituted=False, reason="It was asked for.")


@pytest.mark.parametrize("name", ["lookit/ember-lookit-frameplayer", "Lookit/Ember-Lookit-FramePlayer"])
def test_a_repository_is_trusted_however_its_letters_are_written(name):
    assert services().trust.trusts(Repository(*name.split("/")))


@pytest.mark.parametrize("name", ["lookit/ember-lookit", "looklt/ember-lookit-frameplayer", "a/b"])
def test_no_other_repository_is_trusted(name):
    assert not services().trust.trusts(Repository(*name.split("/")))


@pytest.mark.parametrize(
    "url", [OFFICIAL_PLAYER, "https://example.org/x/y", "nonsense", "https://github.com/only-owner"]
)
def test_an_entry_of_another_web_base_trusts_nothing_and_hides_no_other(url):
    web = "https://github.example.org"
    settings = {"github_web_url": web, "trusted_repositories": [url, f"{web}/lab/player"]}
    assert not services(**settings).trust.trusts(Repository("lookit", "ember-lookit-frameplayer"))
    assert not services(**settings).trust.trusts(Repository("x", "y"))
    assert services(**settings).trust.trusts(Repository("lab", "player"))


def test_the_operators_two_lists_say_which_private_repositories_may_be_built():
    web = "https://github.example.org"
    settings = {
        "github_web_url": web,
        "trusted_repositories": [f"{web}/lookit/Player", "https://elsewhere.example/a/b"],
        "private_repositories": [f"{web}/lab/Own.git"],
    }
    assert services(**settings).github.private_repositories == {"lookit/player", "lab/own"}


# --- who builds


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_only_development_builds_without_containers(environment):
    settings = {**PRODUCTION, "environment": environment}
    with pytest.raises(InvalidRequest, match=rf"not in {environment} .*LOOKIT_BUILDER=docker"):
        _ = services(**settings).builder
    assert services(**settings, builder="docker").builder.is_isolated
    assert not services().builder.is_isolated


# --- commits


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def server(faults: Faults) -> Iterator[GitHubServer]:
    repositories = {REPOSITORY: [OFFICIAL, NEWEST], STRANGERS: [OFFICIAL]}
    with GitHubServer(repositories, fork_commits={REPOSITORY: [FORKED]}, on_request=faults) as server:
        yield server


@pytest.fixture
def of_server(server: GitHubServer) -> Services:
    url = server.url
    return services(github_api_url=url, github_web_url=url, trusted_repositories=[f"{url}/{REPOSITORY.upper()}.git"])


def test_a_commit_of_the_trusted_default_branch_is_trusted(of_server):
    assert of_server.trust.trusts_commit(commit(REPOSITORY))


def test_a_commit_of_a_fork_is_not_trusted_under_the_trusted_repositorys_name(of_server):
    resolved = of_server.github.resolve(Repository(*REPOSITORY.split("/")), FORKED.sha)
    assert resolved.sha == FORKED.sha
    assert of_server.trust.trusts(resolved.repository)
    assert not of_server.trust.trusts_commit(resolved)


def test_of_an_untrusted_repository_nothing_is_asked(of_server, faults):
    assert not of_server.trust.trusts_commit(commit(STRANGERS))
    assert faults.requests == []


def test_a_github_that_cannot_tell_gives_no_trust(of_server, faults):
    faults.on("/compare/", status(401))
    with pytest.raises(BuildPlatformError):
        of_server.trust.trusts_commit(commit(REPOSITORY))


# --- the job


@pytest.fixture
def workshop(tmp_path: Path, site: Site, engine: Engine, server: GitHubServer) -> Workshop:
    workshop = Workshop(tmp_path / "workshop", site, engine, server, {"player_s3_access_key_id": KEY})
    workshop.build_by(f'{GOOD_BUILD}\necho "${{S3_ACCESS_KEY_ID:-}}" > "{workshop.root}/seen"')
    return workshop


def seen_by_the_build(workshop: Workshop) -> str | None:
    """The secret that the player's code got; None if it was not run."""
    seen = workshop.root / "seen"
    return seen.read_text().strip() if seen.exists() else None


@pytest.mark.parametrize("sha", [None, OFFICIAL.sha])
def test_the_default_branch_is_built_with_secrets(workshop, sha):
    workshop.site.set_metadata(last_known_player_sha=sha)
    assert workshop.build().success
    assert seen_by_the_build(workshop) == KEY


def test_a_forks_commit_is_not_run_and_the_error_says_that_the_commit_is_the_trouble(workshop):
    workshop.site.set_metadata(last_known_player_sha=FORKED.sha)
    request_id = workshop.request()
    assert not workshop.run(request_id=request_id).success
    request = workshop.site.request(request_id)
    assert (request.status, request.error_code) == (RequestStatus.FAILED, "player_invalid")
    assert f"{REPOSITORY} is trusted, but its default branch does not contain commit {FORKED.sha}" in request.error
    assert seen_by_the_build(workshop) is None


def test_a_strangers_repository_is_not_run_and_the_error_says_that_the_repository_is_the_trouble(workshop, server):
    workshop.site.set_metadata(player_repo_url=f"{server.url}/{STRANGERS}")
    request_id = workshop.request()
    assert not workshop.run(request_id=request_id).success
    request = workshop.site.request(request_id)
    assert (request.status, request.error_code) == (RequestStatus.FAILED, "player_invalid")
    assert f"{STRANGERS} is not among the trusted repositories" in request.error
    assert seen_by_the_build(workshop) is None


def test_a_github_that_cannot_tell_fails_the_build_as_the_platforms_trouble(workshop, faults):
    workshop.site.set_metadata(last_known_player_sha=OFFICIAL.sha)
    faults.on("/compare/", status(503))
    request_id = workshop.request()
    assert not workshop.run(request_id=request_id).success
    assert workshop.site.request(request_id).error_code == "platform_error"
    assert seen_by_the_build(workshop) is None


# --- the codes of failures


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (NameTaken, "name_taken"),
        (WrongEnvironment, "wrong_environment"),
        (GenerationMismatch, "storage_error"),
        (StorageError, "storage_error"),
    ],
)
def test_an_error_of_the_storage_has_the_code_of_its_most_specific_class(kind, code):
    assert failure_of("upload", kind("why")).code == code


class Isolated:
    """A builder that counts as one in containers."""

    is_isolated = True

    def __init__(self, real: Builder) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_where_github_cannot_compare_the_last_attempt_builds_without_secrets_and_says_so(workshop, faults):
    workshop.settings |= {"attempts": 2, "retry_after": 1}
    workshop.site.set_metadata(last_known_player_sha=OFFICIAL.sha)
    workshop.services.__dict__["builder"] = Isolated(workshop.services.builder)
    faults.on("/compare/", status(500))
    request_id = workshop.request()
    assert not workshop.run(request_id=request_id).success
    request = workshop.site.request(request_id)
    assert request.status == "queued", "GitHub may be able to tell in a while"
    assert "cannot tell whether the default branch" in str(last_error(request))
    run = workshop.run(request_id=request_id)
    assert run.success, workshop.site.request(request_id).error
    assert seen_by_the_build(workshop) == ""
    (log,) = workshop.site.logs()
    assert log.extra["warnings"] == [UNCERTAIN]
    assert UNCERTAIN in log.extra["log"]
    assert [mail.context["warnings"] for mail in workshop.site.mails()] == [[UNCERTAIN]] * 2


def test_without_containers_it_is_not_built_then(workshop, faults):
    workshop.site.set_metadata(last_known_player_sha=OFFICIAL.sha)
    faults.on("/compare/", status(500))
    assert not workshop.build().success
    assert seen_by_the_build(workshop) is None
    assert workshop.site.logs()[0].extra["outcome"] == "failed"
