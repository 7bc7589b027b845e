"""Which addresses name a player's repository, and how two never share a folder."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember_build.errors import InvalidPlayer
from ember_build.source.repository import Repository

WEB = "https://github.com"

alphanumeric = string.ascii_letters + string.digits
owners = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9-]|_(?=[A-Za-z0-9-])){0,38}", fullmatch=True)
names = st.text(alphanumeric + "._-", min_size=1, max_size=100).filter(
    lambda name: name not in {".", ".."} and not name.lower().endswith(".git")
)


@given(owners, names, st.sampled_from(["", "/", ".git", ".git/"]))
def test_every_owner_and_name_that_github_allows_is_read_back(owner, name, ending):
    repository = Repository.parse(f"{WEB}/{owner}/{name}{ending}", WEB)
    assert repository == Repository(owner, name)
    assert repository.full_name == f"{owner}/{name}"


@given(owners, names, owners, names)
def test_no_two_repositories_share_a_slug(owner, name, other_owner, other_name):
    one, other = Repository(owner, name), Repository(other_owner, other_name)
    assert (one.slug == other.slug) == (one == other)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", one.slug)
    assert len(one.slug) <= 255


@given(names, names)
def test_names_that_begin_with_underscores_share_no_slug_either(name, other_name):
    assert (Repository("a", f"_{name}").slug == Repository("a", other_name).slug) == (f"_{name}" == other_name)


@given(st.text())
def test_any_text_is_either_a_plain_repository_or_refused(text):
    try:
        repository = Repository.parse(text, WEB)
    except InvalidPlayer:
        return
    assert text.strip(" ").lower().startswith(f"{WEB}/{repository.full_name.lower()}")
    assert repository.name not in {"", ".", ".."}


@given(st.text(min_size=1, max_size=20))
def test_nothing_after_the_name_is_swallowed(text):
    try:
        repository = Repository.parse(f"{WEB}/owner/name{text}", WEB)
    except InvalidPlayer:
        return
    tail = text.strip(" ").removesuffix("/")
    tail = tail.removesuffix(".git")
    assert repository == Repository("owner", f"name{tail}")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "owner/name",
        "https://github.com",
        "https://github.com/owner",
        "https://github.com/owner/",
        "https://github.com//name",
        "https://github.com/owner/name/tree/master",
        "https://github.com/owner/name//",
        "https://github.com/owner/.",
        "https://github.com/owner/..",
        "https://github.com/owner/.git",
        "https://github.com/owner/name.git.git",
        "https://github.com/../name",
        "https://github.com/-owner/name",
        "https://github.com/own__er/name",
        "https://github.com/owner_/name",
        f"https://github.com/{'o' * 40}/name",
        f"https://github.com/owner/{'n' * 101}",
        "https://github.com/owner/na me",
        "https://github.com/owner/na%2Fme",
        "https://github.com/owner/name?tab=readme",
        "https://github.com/owner/name#readme",
        "https://github.com/owner/name\n",
        "https://github.com/owner/na\tme",
        "https://github.com/owner/name\x00",
        "https://github.com/owner\\name",
        "https://user:secret@github.com/owner/name",
        "https://github.com@evil.example/owner/name",
        "https://github.com.evil.example/owner/name",
        "https://githubXcom/owner/name",
        "https://githuB.\u212aom/owner/name",
        "http://github.com/owner/name",
        "git@github.com:owner/name.git",
        "ssh://git@github.com/owner/name",
        "file:///owner/name",
        "https://github.com:8443/owner/name",
        "https://gitlab.com/owner/name",
    ],
)
def test_everything_else_is_refused_with_what_is_expected(url):
    with pytest.raises(InvalidPlayer, match=r"expected https://github\.com/owner/name"):
        Repository.parse(url, WEB)


def test_the_error_names_the_value_without_its_secrets():
    with pytest.raises(InvalidPlayer) as error:
        Repository.parse("https://user:hunter2@github.com/owner/name?token=hunter3", WEB)
    assert "owner/name" in str(error.value)
    assert "hunter" not in str(error.value)


def test_a_very_long_value_makes_no_very_long_error():
    with pytest.raises(InvalidPlayer) as error:
        Repository.parse("x" * 100_000, WEB)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("web", ["http://127.0.0.1:8123", "https://github.example.edu/", "https://example.edu/github"])
def test_the_configured_github_is_the_only_one(web):
    url = f"{web.rstrip('/')}/lookit/player.git"
    assert Repository.parse(url, web) == Repository("lookit", "player")
    with pytest.raises(InvalidPlayer, match=re.escape(web.rstrip("/"))):
        Repository.parse("https://github.com/lookit/player", web)


def test_spaces_around_and_the_hosts_case_do_not_matter():
    assert Repository.parse(" HTTPS://GitHub.com/Lookit/Player ", WEB) == Repository("Lookit", "Player")
