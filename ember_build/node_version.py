"""Which Node a checkout asks for, and the profile of the build image that has it."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semantic_version import NpmSpec, Version

from ember_build.bounded import read_limited, run_bounded
from ember_build.errors import PlayerBuildFailed


@dataclass(frozen=True, slots=True)
class Profile:
    """One set of versions: `toolchain` is the folder with its lock file, `node` the version in `node_image`."""

    name: str
    node: tuple[int, int, int]
    node_image: str
    toolchain: str
    python2: bool
    description: str


NODE_8 = Profile(
    name="node8",
    node=(8, 2, 1),
    node_image="node:8.2.1-slim",
    toolchain="node8",
    python2=False,
    description="Node 8.2.1, yarn 1.22.22, bower 1.8.14, ember-cli 2.8.0 on Debian 12",
)
NODE_12 = Profile(
    name="node12",
    node=(12, 22, 12),
    node_image="node:12.22.12-slim",
    toolchain="node12",
    python2=True,
    description="Node 12.22.12, yarn 1.22.22, bower 1.8.14, python2 on Debian 12; ember-cli is the player's own",
)
PROFILES = (NODE_8, NODE_12)
"""In the order in which they are tried; the first is the default."""

LONGEST_RANGE = 256
"""Characters of a range of versions. npm's own documentation has none of more than 40."""
MOST_BYTES = 1_000_000
"""Of a package.json or an .nvmrc."""

_ANY = frozenset({"", "latest", "node"})


def choose_profile(checkout: Path, cancelled: threading.Event | None = None) -> Profile:
    """Return the first profile whose Node the checkout accepts: `.nvmrc` decides, else `engines.node`, else the first.

    Raises:
        PlayerBuildFailed: the checkout asks for a Node that no profile has, or in a way that cannot be read.
        BuildCancelled: `cancelled` was set meanwhile.
    """
    subject = "the player's .nvmrc or package.json"
    name = run_bounded(accepted_profile, str(checkout.absolute()), subject=subject, cancelled=cancelled)
    return next(profile for profile in PROFILES if profile.name == name)


def accepted_profile(checkout: str) -> str:
    """Return the name of the profile that `choose_profile` chooses; reads a stranger's files in this process."""
    wanted, where = _declared_node(Path(checkout))
    if not wanted:
        return PROFILES[0].name
    if len(wanted) > LONGEST_RANGE:
        raise PlayerBuildFailed(
            f"The player asks for Node in its {where} with {len(wanted):,} characters ({wanted[:40]!r}…); at most"
            f" {LONGEST_RANGE} are read. Declare a version such as 12 or ^8.2.0."
        )
    for profile in PROFILES:
        if _accepts(wanted, profile.node):
            return profile.name
    had = " and ".join(".".join(map(str, profile.node)) for profile in PROFILES)
    raise PlayerBuildFailed(
        f"The player asks for Node {wanted!r} in its {where}, but players are built with Node {had}: declare a version "
        "that fits one of them."
    )


def _declared_node(checkout: Path) -> tuple[str, str]:
    nvmrc = _text_of(checkout / ".nvmrc").strip().lower()
    # lts/carbon is nvm's name for Node 8, lts/erbium for 12; "node" and "lts/*" accept any version.
    nvmrc = {"lts/carbon": "8", "lts/erbium": "12"}.get(nvmrc, nvmrc)
    if re.match(r"v?\d", nvmrc):
        return nvmrc.split(maxsplit=1)[0], ".nvmrc"
    try:
        engines: Any = json.loads(_text_of(checkout / "package.json") or "{}").get("engines", {})
        wanted = engines.get("node", "")
    except (ValueError, AttributeError):
        return "", ""  # yarn will say what is wrong with it
    except RecursionError:
        raise PlayerBuildFailed("The player's package.json is nested too deeply to be read; make it flatter.") from None
    return (wanted.strip(), "package.json (engines.node)") if isinstance(wanted, str) else ("", "")


def _text_of(file: Path) -> str:
    if file.is_symlink() or not file.is_file():
        return ""
    return read_limited(file, MOST_BYTES).decode("utf-8", "replace")


def _accepts(wanted: str, node: tuple[int, int, int]) -> bool:
    """Say whether a range in npm's notation (`8.* || >=10`, `^12.0.0`, `6 - 8`) has this version in it."""
    version = Version(".".join(map(str, node)))
    return any(_in_part(part.strip(), version) for part in wanted.split("||"))


def _in_part(part: str, version: Version) -> bool:
    if part in _ANY:
        return True
    # npm also reads `>= 8`, `~>8` and `^v8`, which the library does not.
    spelled = re.sub(r"(?<![\w.])v(?=\d)", "", re.sub(r"([<>=^~])\s+", r"\1", " ".join(part.split())))
    try:
        return version in NpmSpec(spelled.replace("~>", "~"))
    except ValueError:
        return False  # what is not understood is taken for unwanted, so that the researcher is told
