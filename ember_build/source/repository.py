"""A repository on a GitHub, and a commit of it that will be built."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ember_build.errors import InvalidPlayer

# GitHub's own rules. An owner (a managed user, `rosa_mit`) holds single underscores, and none at its end, so the first
# "__" of a slug always ends the owner.
_OWNER = r"(?P<owner>(?![^/]{40})[A-Za-z0-9](?:[A-Za-z0-9-]|_(?=[A-Za-z0-9-])){0,38})"
_NAME = r"(?P<name>[A-Za-z0-9._-]{1,100}?)"


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


def shortened(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[:length] + "…"


def _shown(url: str) -> str:
    """The value for an error message, without the password or token that somebody may have pasted with it."""
    without_query = re.split(r"[?#]", url, maxsplit=1)[0]
    return repr(shortened(re.sub(r"//[^/]*@", "//…@", without_query)))
