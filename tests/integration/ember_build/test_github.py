"""Asking a GitHub that is well, one that is ill, and one that lies."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ember_build.errors import BuildCancelled, BuildPlatformError, InvalidPlayer
from ember_build.source.checkouts import Checkouts
from ember_build.source.github import CannotCompare, GitHub
from ember_build.source.github_client import _message_of
from ember_build.source.repository import Repository
from lookit_ops.demo.github_server import Answer, Commit, GitHubServer
from tests.support.faulty_github import (
    Faults,
    body,
    hang_up,
    redirect,
    status,
    truncate,
    without_length,
)

FIRST = Commit({"package.json": b"{}"}, "first")
NEWEST = Commit({"package.json": b"{}", "app/app.js": b"x" * 5000}, "newest")
FORKED = Commit({"package.json": b"{}", "app/app.js": b"steal()"}, "pushed to somebody's fork")
PLAYER = Repository("lookit", "player")
UNKNOWN_SHA = "0123456789" * 4


class Place:
    """A local GitHub, its faults, a client of it, and the waits that the client asked for."""

    def __init__(self, server: GitHubServer, faults: Faults) -> None:
        self.url = server.url
        self.faults = faults
        self.waits: list[float] = []

    def client(self, **settings) -> GitHub:
        options = {"api_url": self.url, "web_url": self.url, "attempts": 4, "timeout": (2, 2), **settings}
        return GitHub(**options, sleep=self.waits.append)


@contextmanager
def running(faults: Faults) -> Iterator[Place]:
    repositories = {"lookit/player": [FIRST, NEWEST], "lookit/empty": []}
    forks = {"lookit/player": [FORKED]}
    with GitHubServer(repositories, fork_commits=forks, on_request=faults) as server:
        yield Place(server, faults)


@pytest.fixture
def place() -> Iterator[Place]:
    with running(Faults()) as place:
        yield place


@pytest.fixture
def elsewhere() -> Iterator[Place]:
    """Another host, as the token sees it."""
    with running(Faults()) as place:
        yield place


def test_a_full_sha_that_the_repository_confirms_is_used(place):
    commit = place.client().resolve(PLAYER, f" {FIRST.sha.upper()} ")
    assert (commit.sha, commit.substituted) == (FIRST.sha, False)
    assert "confirmed" in commit.reason
    assert place.faults.paths() == [f"/repos/lookit/player/commits/{FIRST.sha}"]
    assert "lookit-ops" in place.faults.requests[0][1]["User-Agent"]


@pytest.mark.parametrize("nothing", [None, "", "   "])
def test_no_sha_means_the_head_of_the_default_branch_even_where_invalid_ones_are_refused(place, nothing):
    commit = place.client(refuse_invalid_sha=True).resolve(PLAYER, nothing)
    assert (commit.sha, commit.substituted) == (NEWEST.sha, False)
    assert commit.reason == f"The study names no commit: the head of the default branch is used instead, {NEWEST.sha}."


@pytest.mark.parametrize("invalid", ["main", FIRST.sha[:7], FIRST.sha + "0", "../../secrets", "é" * 40, UNKNOWN_SHA])
def test_an_invalid_sha_means_the_head_too_and_says_so(place, invalid):
    commit = place.client().resolve(PLAYER, invalid)
    assert (commit.sha, commit.substituted) == (NEWEST.sha, True)
    assert invalid in commit.reason
    assert NEWEST.sha in commit.reason
    # Nothing but a full SHA ever becomes part of an address.
    assert len(place.faults.requests) == (2 if invalid == UNKNOWN_SHA else 1)


@pytest.mark.parametrize("invalid", ["main", UNKNOWN_SHA])
def test_an_invalid_sha_is_refused_where_the_setting_says_so(place, invalid):
    with pytest.raises(InvalidPlayer, match=invalid):
        place.client(refuse_invalid_sha=True).resolve(PLAYER, invalid)


def test_a_404_for_the_commit_counts_as_unknown_as_well(place):
    place.faults.on(UNKNOWN_SHA, status(404))
    assert place.client().resolve(PLAYER, UNKNOWN_SHA).sha == NEWEST.sha


@pytest.mark.parametrize("requested", [None, "main", UNKNOWN_SHA])
def test_a_repository_that_is_gone(place, requested):
    with pytest.raises(InvalidPlayer, match=r"no public repository lookit/nowhere .*private"):
        place.client().resolve(Repository("lookit", "nowhere"), requested)


def test_a_repository_without_a_commit(place):
    with pytest.raises(InvalidPlayer, match="lookit/empty has no commit"):
        place.client().resolve(Repository("lookit", "empty"), None)


@pytest.mark.parametrize("fault", [status(503), status(500), hang_up, truncate, status(429)])
def test_trouble_that_passes_is_waited_out(place, fault):
    place.faults.on("/commits/", fault, times=2)
    assert place.client().resolve(PLAYER, FIRST.sha).sha == FIRST.sha
    assert len(place.waits) == 2
    assert 0.5 <= place.waits[0] <= 1 <= place.waits[1] <= 2


@pytest.mark.parametrize("fault", [status(503), hang_up, truncate, status(429)])
def test_trouble_for_ever_makes_no_sha_invalid(place, fault):
    place.faults.on("/commits/", fault)
    with pytest.raises(BuildPlatformError, match="last of 4 attempts"):
        place.client().resolve(PLAYER, FIRST.sha)
    assert len(place.faults.requests) == 4
    assert len(place.waits) == 3
    assert not place.faults.paths("HEAD")


def test_a_github_that_is_not_there():
    with GitHubServer({}) as server:
        url = server.url
    client = GitHub(url, url, attempts=2, sleep=lambda _: None)
    with pytest.raises(BuildPlatformError, match="could not be asked"):
        client.resolve(PLAYER, FIRST.sha)


def test_a_github_that_never_answers(place):
    place.faults.on("/commits/", lambda answer: time.sleep(0.5) or answer)
    with pytest.raises(BuildPlatformError, match="Timeout"):
        place.client(attempts=2, timeout=(1, 0.05)).resolve(PLAYER, FIRST.sha)


def test_an_address_that_is_none(place):
    with pytest.raises(BuildPlatformError, match="check LOOKIT_GITHUB"):
        place.client(api_url="ftp://nowhere").resolve(PLAYER, None)


@pytest.mark.parametrize("code", [403, 429])
def test_retry_after_in_seconds_is_honoured(place, code):
    place.faults.on("/commits/", status(code, Retry_After="7"), times=1)
    assert place.client().resolve(PLAYER, None).sha == NEWEST.sha
    assert place.waits == [7.0]


def test_retry_after_as_a_date_is_honoured(place):
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    place.faults.on("/commits/", status(429, Retry_After=when), times=1)
    assert place.client().resolve(PLAYER, None).sha == NEWEST.sha
    assert 15 < place.waits[0] <= 20


@pytest.mark.parametrize("code", [403, 429])
def test_the_rate_limits_reset_is_waited_for(place, code):
    reset = str(int(time.time()) + 30)
    place.faults.on("/commits/", status(code, X_RateLimit_Remaining="0", X_RateLimit_Reset=reset), times=1)
    assert place.client().resolve(PLAYER, None).sha == NEWEST.sha
    assert 28 < place.waits[0] <= 31


@pytest.mark.parametrize(
    "headers",
    [
        {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": str(int(time.time()) + 3000)},
        {"Retry_After": "3000"},
        {"Retry_After": "9" * 400},
        {"Retry_After": "Fri, 31 Dec 9999 23:59:59 GMT"},
    ],
)
def test_a_limit_that_lasts_too_long_says_when_it_resets(place, headers):
    place.faults.on("/commits/", status(403, **headers))
    with pytest.raises(BuildPlatformError, match=r"resets at 20\d\d-.* UTC.*LOOKIT_GITHUB_TOKEN") as limited:
        place.client(max_wait=timedelta(minutes=1)).resolve(PLAYER, None)
    assert limited.value.retry_at is not None
    assert limited.value.retry_at > datetime.now(UTC) + timedelta(minutes=5), "the reset was computed when tests began"
    assert place.waits == []
    assert len(place.faults.requests) == 1


def test_all_waits_together_stay_within_the_limit(place):
    place.faults.on("/commits/", status(429, Retry_After="40"))
    with pytest.raises(BuildPlatformError, match="resets at"):
        place.client(max_wait=timedelta(minutes=1)).resolve(PLAYER, None)
    assert place.waits == [40.0]


def test_a_secondary_limit_that_names_no_time(place):
    place.faults.on("/commits/", status(403, "You have exceeded a secondary rate limit."), times=1)
    assert place.client().resolve(PLAYER, None).sha == NEWEST.sha
    assert place.waits == [60.0]


@pytest.mark.parametrize(
    "page",
    [
        b"<html><body>You have exceeded a secondary rate limit.</body></html>",
        b'{"message": "You have exceeded a secondary RATE LIMIT"}',
        b'{"documentation_url": "' + b"x" * 3000 + b'", "message": "secondary rate limit"}',
    ],
)
def test_a_limit_is_known_by_its_words_in_json_and_in_a_page_for_people(place, page):
    place.faults.on("/commits/", lambda _: Answer.of(403, page, "text/plain"), times=1)
    assert place.client().resolve(PLAYER, None).sha == NEWEST.sha
    assert place.waits == [60.0]


def test_a_refusal_that_comes_in_pieces_is_read_whole():
    class InPieces:
        def iter_content(self, _size):
            yield from (b'{"message": "No commit found ', b'for SHA: abc"}')

    assert _message_of(InPieces()) == "No commit found for SHA: abc"


@pytest.mark.parametrize("bad", ["soon", "-5", "1e9", "", "²"])
def test_a_retry_after_that_says_nothing_falls_back_to_backoff(place, bad):
    place.faults.on("/commits/", status(429, Retry_After=bad), times=1)
    assert place.client().resolve(PLAYER, None).sha == NEWEST.sha
    assert place.waits[0] <= 1


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("token", [None, "t0ken"])
def test_a_refusal_names_the_tokens_setting_and_is_not_repeated(place, code, token):
    place.faults.on("/commits/", status(code, "Bad credentials"))
    with pytest.raises(BuildPlatformError, match="LOOKIT_GITHUB_TOKEN") as error:
        place.client(token=token).resolve(PLAYER, FIRST.sha)
    assert len(place.faults.requests) == 1
    assert "t0ken" not in str(error.value)


def test_a_refusal_that_breaks_off_is_trouble_that_passes(place):
    place.faults.on("/commits/", lambda answer: truncate(status(403, "x" * 5000)(answer)), times=1)
    assert place.client().resolve(PLAYER, FIRST.sha).sha == FIRST.sha


def test_the_token_does_not_show():
    assert "t0ken" not in repr(GitHub("https://api.github.com", "https://github.com", "t0ken"))


@pytest.mark.parametrize(
    "answer",
    [b"<html>", b"[]", b"null", b"{}", b'{"sha": 5}', b'{"sha": "abc"}', b'{"sha": "' + b"g" * 40 + b'"}', b"\xff"],
)
def test_nonsense_is_the_platforms_trouble(place, answer):
    place.faults.on("/commits/", body(answer, "application/json"))
    with pytest.raises(BuildPlatformError, match="check LOOKIT_GITHUB_API_URL"):
        place.client().resolve(PLAYER, FIRST.sha)


def test_another_commit_than_the_asked_one_is_not_used(place):
    place.faults.on("/commits/", body(f'{{"sha": "{NEWEST.sha}"}}'.encode()))
    with pytest.raises(BuildPlatformError, match=NEWEST.sha):
        place.client().resolve(PLAYER, FIRST.sha)


def test_a_renamed_repository_is_followed(place):
    place.faults.on("/repos/lookit/old/", redirect(f"/repos/lookit/player/commits/{FIRST.sha}", 301))
    assert place.client().resolve(Repository("lookit", "old"), FIRST.sha).sha == FIRST.sha


def test_the_token_goes_to_github_and_to_no_other_host(place, elsewhere, monkeypatch, tmp_path):
    # Credentials lying about in the home directory are not for these hosts, either.
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    place.faults.on("/zipball/", redirect(f"{elsewhere.url}/lookit/player/archive/{FIRST.sha}.zip"))
    client = place.client(token="t0ken")
    client.resolve(PLAYER, FIRST.sha)
    client.download_archive(PLAYER, FIRST.sha, tmp_path / "a.zip", 10**6)
    assert [headers.get("Authorization") for _, headers in place.faults.requests] == ["Bearer t0ken"] * 3
    assert [headers.get("Authorization") for _, headers in elsewhere.faults.requests] == [None]


def test_without_a_token_nothing_is_sent(place):
    place.client().resolve(PLAYER, None)
    assert "Authorization" not in place.faults.requests[0][1]


@pytest.mark.parametrize("location", ["ftp://example.org/x.zip", "file:///etc/passwd", "gopher://x"])
def test_redirects_to_other_schemes_are_refused(place, tmp_path, location):
    place.faults.on("/archive/", redirect(location))
    with pytest.raises(BuildPlatformError, match="not encrypted"):
        place.client().download_archive(PLAYER, FIRST.sha, tmp_path / "a.zip", 10**6)


def test_redirects_in_circles_end(place, tmp_path):
    place.faults.on("/archive/", redirect(f"/lookit/player/archive/{FIRST.sha}.zip"))
    with pytest.raises(BuildPlatformError, match="circles"):
        place.client().download_archive(PLAYER, FIRST.sha, tmp_path / "a.zip", 10**6)


def test_an_archive_arrives_whole(place, tmp_path):
    path = tmp_path / "a.zip"
    size = place.client().download_archive(PLAYER, NEWEST.sha, path, 10**6)
    assert path.read_bytes() == NEWEST.archive("player")
    assert size == path.stat().st_size


@pytest.mark.parametrize("fault", [truncate, hang_up, status(502)])
def test_a_download_that_breaks_off_is_repeated(place, tmp_path, fault):
    place.faults.on("/archive/", fault, times=2)
    path = tmp_path / "a.zip"
    place.client().download_archive(PLAYER, NEWEST.sha, path, 10**6)
    assert path.read_bytes() == NEWEST.archive("player")
    assert len(place.waits) == 2


@pytest.mark.parametrize("fault", [truncate, hang_up, status(502)])
def test_a_download_that_never_succeeds_leaves_nothing(place, tmp_path, fault):
    place.faults.on("/archive/", fault)
    with pytest.raises(BuildPlatformError):
        place.client().download_archive(PLAYER, NEWEST.sha, tmp_path / "a.zip", 10**6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [None, without_length])
def test_an_archive_that_is_too_big_is_refused_told_or_not(place, tmp_path, fault):
    if fault:
        place.faults.on("/archive/", fault)
    size = len(NEWEST.archive("player"))
    client = place.client()
    with pytest.raises(InvalidPlayer, match=f"more than the {size - 1} bytes"):
        client.download_archive(PLAYER, NEWEST.sha, tmp_path / "a.zip", size - 1)
    assert list(tmp_path.iterdir()) == []
    assert client.download_archive(PLAYER, NEWEST.sha, tmp_path / "a.zip", size) == size


def test_an_archive_of_a_commit_that_is_not_there_any_more(place, tmp_path):
    with pytest.raises(InvalidPlayer, match=f"lookit/player has no commit {UNKNOWN_SHA} any more"):
        place.client().download_archive(PLAYER, UNKNOWN_SHA, tmp_path / "a.zip", 10**6)


@pytest.mark.parametrize("code", [404, 410, 422])
@pytest.mark.parametrize(
    ("token", "remedy"), [(None, "try again later"), ("t0ken", 'LOOKIT_GITHUB_TOKEN may lack the right.*"Contents"')]
)
def test_a_commit_that_is_there_without_its_archive_is_not_called_gone(place, tmp_path, code, token, remedy):
    place.faults.on("/archive/|/zipball/", status(code))
    with pytest.raises(BuildPlatformError, match=f"confirms commit {FIRST.sha} .* no archive of it: .*{remedy}"):
        place.client(token=token).download_archive(PLAYER, FIRST.sha, tmp_path / "a.zip", 10**6)
    assert list(tmp_path.iterdir()) == []


def test_with_a_token_the_api_is_asked_for_the_archive(with_private, tmp_path):
    """The web's archives answer 404 to a fine-grained token."""
    with_private.faults.on("/archive/", status(404))
    client = with_private.client(token=TOKEN, private_repositories=frozenset({"lab/secret"}))
    client.download_archive(HIDDEN, SECRET.sha, tmp_path / "a.zip", 10**6)
    assert (tmp_path / "a.zip").read_bytes() == SECRET.archive("secret")


def test_an_archive_that_trickles_for_too_long(place, tmp_path):
    client = place.client(archive_time=timedelta(0))
    with pytest.raises(BuildPlatformError, match="did not come within"):
        client.download_archive(PLAYER, NEWEST.sha, tmp_path / "a.zip", 10**6)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_the_platforms_trouble_and_not_repeated(place):
    with pytest.raises(BuildPlatformError, match="disk that holds /dev is full"):
        place.client().download_archive(PLAYER, NEWEST.sha, FullDevice(), 10**6)
    assert len(place.faults.requests) == 1


class FullDevice(type(Path())):
    """Linux's device that is always full, safe from being removed."""

    def __new__(cls):
        return super().__new__(cls, "/dev/full")

    def unlink(self, missing_ok=False):
        pass


def test_a_folder_that_is_not_there_is_the_platforms_trouble(place, tmp_path):
    with pytest.raises(BuildPlatformError, match="check the folder"):
        place.client().download_archive(PLAYER, NEWEST.sha, tmp_path / "missing" / "a.zip", 10**6)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (403, b'{"message": "Repository access blocked", "block": {"reason": "tos", "html_url": null}}'),
        (451, b'{"message": "Repository access blocked", "block": {"reason": "dmca"}}'),
        (451, b"Unavailable"),
    ],
)
@pytest.mark.parametrize("token", [None, "t0ken"])
def test_a_repository_that_github_has_blocked_is_the_researchers_with_githubs_reason(place, code, said, token):
    place.faults.on("/repos/", lambda _: Answer.of(code, said, "application/json"))
    with pytest.raises(InvalidPlayer, match="does not give out this repository") as error:
        place.client(token=token).resolve(PLAYER, FIRST.sha)
    if said.startswith(b"{"):
        block = json.loads(said)
        assert f"{block['message']} ({block['block']['reason']})" in str(error.value)


@pytest.mark.parametrize("message", ["Validation Failed", "Something", "taking too long"])
def test_a_422_that_is_not_githubs_word_for_an_unknown_commit_makes_no_sha_invalid(place, message):
    place.faults.on(f"/commits/{FIRST.sha}", status(422, message))
    with pytest.raises(BuildPlatformError, match=f"HTTP 422: {message}"):
        place.client().resolve(PLAYER, FIRST.sha)
    assert not place.faults.paths("HEAD"), "the head is not built in its place"


@pytest.mark.parametrize("owner", ["rosa_mit", "a_b-c", "a" * 39])
def test_the_owners_of_managed_users_are_known(owner):
    assert Repository.parse(f"https://github.com/{owner}/player", "https://github.com").owner == owner


@pytest.mark.parametrize("owner", ["_mit", "rosa_", "rosa__mit", "a" * 40, "ro/sa", "-rosa"])
def test_no_owner_makes_a_folder_ambiguous(owner):
    with pytest.raises(InvalidPlayer):
        Repository.parse(f"https://github.com/{owner}/player", "https://github.com")


@given(
    *[st.tuples(st.from_regex(r"[a-c_-]{1,6}", fullmatch=True), st.from_regex(r"[a-c_.-]{1,6}", fullmatch=True))] * 2
)
@example(("a", "_b__c"), ("a_", "b__c"))
def test_two_repositories_never_share_a_folder(one, other):
    parsed = []
    for owner, name in (one, other):
        with suppress(InvalidPlayer):
            parsed.append(Repository.parse(f"https://github.com/{owner}/{name}", "https://github.com"))
    if len(parsed) == 2 and parsed[0] != parsed[1]:
        assert parsed[0].slug != parsed[1].slug


# --- which commits the default branch contains


def test_every_commit_of_the_default_branch_is_contained_in_it(place):
    client = place.client()
    assert client.is_on_default_branch(client.resolve(PLAYER, FIRST.sha))
    assert client.is_on_default_branch(client.resolve(PLAYER, NEWEST.sha))
    assert place.faults.paths("/compare/") == [
        f"/repos/lookit/player/compare/{commit.sha}...HEAD" for commit in (FIRST, NEWEST)
    ]


def test_a_commit_of_a_fork_is_served_as_the_repositorys_own_and_is_not_contained(place, tmp_path):
    client = place.client()
    commit = client.resolve(PLAYER, FORKED.sha)
    assert (commit.sha, commit.substituted) == (FORKED.sha, False)
    assert client.download_archive(PLAYER, FORKED.sha, tmp_path / "a.zip", 10**6)
    assert not client.is_on_default_branch(commit)


@pytest.mark.parametrize("requested", [None, "main", UNKNOWN_SHA])
def test_the_head_itself_is_not_asked_about(place, requested):
    client = place.client()
    commit = client.resolve(PLAYER, requested)
    assert commit.is_head
    assert client.is_on_default_branch(commit)
    assert not place.faults.paths("/compare/")


@pytest.mark.parametrize("answer", [b'{"status": "behind"}', b'{"status": "diverged"}'])
def test_a_branch_that_is_not_ahead_does_not_contain_the_commit(place, answer):
    # "behind" is a commit that was made in a fork on top of the branch's newest.
    place.faults.on("/compare/", body(answer, "application/json"))
    assert not place.client().is_on_default_branch(place.client().resolve(PLAYER, FIRST.sha))


def test_no_common_ancestor_means_not_contained(place):
    place.faults.on("/compare/", status(404, "No common ancestor"))
    assert not place.client().is_on_default_branch(place.client().resolve(PLAYER, FIRST.sha))


@pytest.mark.parametrize("fault", [status(503), hang_up, truncate, status(429)])
def test_a_comparison_waits_out_trouble_that_passes(place, fault):
    commit = place.client().resolve(PLAYER, FIRST.sha)
    place.faults.on("/compare/", fault, times=2)
    assert place.client().is_on_default_branch(commit)
    assert len(place.waits) == 2


@pytest.mark.parametrize("fault", [status(503), hang_up, status(403), status(401), status(422), status(410)])
def test_a_github_that_cannot_tell_is_the_platforms_trouble_and_no_yes(place, fault):
    commit = place.client().resolve(PLAYER, FIRST.sha)
    place.faults.on("/compare/", fault)
    with pytest.raises(BuildPlatformError):
        place.client().is_on_default_branch(commit)


@pytest.mark.parametrize("fault", [status(500), status(422, "this comparison is taking too long to generate")])
def test_a_github_that_answers_and_cannot_compare_is_told_apart_from_one_that_is_away(place, fault):
    commit = place.client().resolve(PLAYER, FIRST.sha)
    place.faults.on("/compare/", fault)
    with pytest.raises(CannotCompare, match=f"default branch of lookit/player contains commit {FIRST.sha}"):
        place.client().is_on_default_branch(commit)


@pytest.mark.parametrize("fault", [hang_up, status(429, Retry_After="3600"), status(403)])
def test_a_github_that_is_away_does_not_count_as_one_that_cannot_compare(place, fault):
    commit = place.client().resolve(PLAYER, FIRST.sha)
    place.faults.on("/compare/", fault)
    with pytest.raises(BuildPlatformError) as error:
        place.client().is_on_default_branch(commit)
    assert not isinstance(error.value, CannotCompare)


@pytest.mark.parametrize(
    "answer",
    [b"<html>", b"[]", b"null", b"{}", b'{"status": 5}', b'{"status": ["ahead"]}', b'{"status": "AHEAD"}', b"\xff"],
)
def test_a_comparison_that_says_nothing_is_the_platforms_trouble(place, answer):
    commit = place.client().resolve(PLAYER, FIRST.sha)
    place.faults.on("/compare/", body(answer, "application/json"))
    with pytest.raises(BuildPlatformError, match="check LOOKIT_GITHUB_API_URL"):
        place.client().is_on_default_branch(commit)


@pytest.mark.parametrize(
    ("base", "head", "status"),
    [
        (FIRST.sha, NEWEST.sha, "ahead"),
        (NEWEST.sha, FIRST.sha, "behind"),
        (NEWEST.sha, "main", "identical"),
        (FORKED.sha, "HEAD", "diverged"),
        (FORKED.sha, FORKED.sha, "identical"),
    ],
)
def test_the_local_github_compares_commits(base, head, status):
    with GitHubServer({"lookit/player": [FIRST, NEWEST]}, fork_commits={"Lookit/Player": [FORKED]}) as server:
        answer = server.answer(f"/repos/LOOKIT/player/compare/{base}...{head}")
        assert (answer.status, json.loads(answer.body)["status"]) == (200, status)
        assert server.answer(f"/repos/lookit/player/compare/{UNKNOWN_SHA}...HEAD").status == 404
        assert server.answer(f"/repos/lookit/nowhere/compare/{base}...{head}").status == 404


SECRET = Commit({"package.json": b"{}", "secret.txt": b"unpublished"}, "confidential work")
HIDDEN = Repository("lab", "secret")
TOKEN = "t0ken"


@pytest.fixture
def with_private() -> Iterator[Place]:
    """A GitHub where the token may read a private repository, and an empty private one."""
    faults = Faults()
    repositories = {"lookit/player": [FIRST, NEWEST], "lab/secret": [SECRET], "lab/empty": []}
    private = {"lab/secret": TOKEN, "lab/empty": TOKEN}
    with GitHubServer(repositories, private=private, on_request=faults) as server:
        yield Place(server, faults)


@pytest.mark.parametrize("sha", [None, SECRET.sha, UNKNOWN_SHA, "main"])
@pytest.mark.parametrize("refuse_invalid_sha", [False, True])
@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("name", ["secret", "empty"])
def test_a_private_repository_that_is_not_listed_is_as_absent_as_one_that_is_not_there(
    with_private, name, token, refuse_invalid_sha, sha
):
    client = with_private.client(token=token, refuse_invalid_sha=refuse_invalid_sha)
    said = []
    for repository in (Repository("lab", name), Repository("lab", "absent")):
        with pytest.raises(InvalidPlayer) as error:
            client.resolve(repository, sha)
        said.append(str(error.value).replace(repository.name, "…"))
    assert said[0] == said[1]
    assert "LOOKIT_PRIVATE_REPOSITORIES" in said[0]
    assert SECRET.sha not in said[0].replace(str(sha), "")


def test_a_private_repository_that_is_listed_is_built(with_private):
    client = with_private.client(token=TOKEN, private_repositories=frozenset({"lab/secret"}))
    assert client.resolve(Repository("Lab", "Secret"), None).sha == SECRET.sha


def test_a_public_repository_is_built_with_the_token_too(with_private):
    assert with_private.client(token=TOKEN).resolve(PLAYER, FIRST.sha).sha == FIRST.sha


@pytest.mark.parametrize(
    ("answer", "listed"),
    [
        ({"full_name": "lab/secret", "private": True}, False),
        ({"full_name": "lookit/other", "private": False, "visibility": "internal"}, False),
        ({"full_name": "lookit/player", "private": True, "visibility": "private"}, True),
        ({"full_name": "lookit/player", "private": False, "visibility": "public"}, True),
    ],
    ids=["renamed to a private one", "internal", "private and listed", "public"],
)
def test_what_github_says_of_the_repository_decides(with_private, answer, listed):
    with_private.faults.on(r"^/repos/lookit/player$", lambda _: Answer.of_json(200, answer))
    client = with_private.client(token=TOKEN, private_repositories=frozenset({"lookit/player"}))
    if listed:
        assert client.resolve(PLAYER, FIRST.sha).sha == FIRST.sha
    else:
        with pytest.raises(InvalidPlayer, match="no public repository"):
            client.resolve(PLAYER, FIRST.sha)


@pytest.mark.parametrize("answer", [{}, [], {"private": "no"}, {"private": False}, {"full_name": "lookit/player"}])
def test_a_repository_whose_visibility_is_not_said_is_not_built_with_the_token(with_private, answer):
    with_private.faults.on(r"^/repos/lookit/player$", lambda _: Answer.of_json(200, answer))
    with pytest.raises(BuildPlatformError, match="does not say whether the repository is private"):
        with_private.client(token=TOKEN).resolve(PLAYER, FIRST.sha)


def test_a_repository_that_is_taken_off_the_list_is_not_built_although_its_files_are_here(with_private, tmp_path):
    listed = with_private.client(token=TOKEN, private_repositories=frozenset({"lab/secret"}))
    Checkouts(tmp_path, listed).fetch(listed.resolve(HIDDEN, SECRET.sha))
    with pytest.raises(InvalidPlayer, match="no public repository"):
        with_private.client(token=TOKEN).resolve(HIDDEN, SECRET.sha)


@pytest.mark.parametrize(
    "sends", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"], ids=["silent", "in its body"]
)
@pytest.mark.parametrize("ask", ["resolve", "archive"])
def test_a_cancellation_is_heard_while_github_keeps_silent(tmp_path, sends, ask):
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                connection, _ = listener.accept()
                connection.sendall(sends)
                stop.wait(10)
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = GitHub(url, url, timeout=(5, 40), cancelled=stop)
        threading.Timer(0.5, stop.set).start()
        asks = {
            "resolve": lambda: client.resolve(PLAYER, None),
            "archive": lambda: client.download_archive(PLAYER, FIRST.sha, tmp_path / "a.zip", 10**6),
        }
        began = time.monotonic()
        with pytest.raises(BuildCancelled):
            asks[ask]()
        assert time.monotonic() - began < 0.5 + 2
