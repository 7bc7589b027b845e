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
_ANY_IN_NVMRC = frozenset({"", "node", "stable", "lts/*", "--lts", "system", "current"})
_LTS = {
    "argon": "4",
    "boron": "6",
    "carbon": "8",
    "dubnium": "10",
    "erbium": "12",
    "fermium": "14",
    "gallium": "16",
    "hydrogen": "18",
    "iron": "20",
    "jod": "22",
    "krypton": "24",
}
"""nvm's names of the lines with long-term support. https://github.com/nodejs/Release"""


def choose_profile(checkout: Path, cancelled: threading.Event | None = None) -> Profile:
    """Return the first profile whose Node the checkout accepts: `.nvmrc` decides, else `engines.node`, else the first.

    An `.nvmrc` that names a line of Node (`lts/dubnium`) which no profile has leaves it to `engines.node`, if there is
    one: players declare there what they really work with.

    Raises:
        PlayerBuildFailed: the checkout asks for a Node that no profile has, or in a way that cannot be read.
        BuildCancelled: `cancelled` was set meanwhile.
    """
    subject = "the player's .nvmrc or package.json"
    name = run_bounded(accepted_profile, str(checkout.absolute()), subject=subject, cancelled=cancelled)
    return next(profile for profile in PROFILES if profile.name == name)


def accepted_profile(checkout: str) -> str:
    """Return the name of the profile that `choose_profile` chooses; reads a stranger's files in this process."""
    nvmrc, engines = _nvmrc_of(Path(checkout)), _engines_of(Path(checkout))
    is_version = re.match(r"v?\d", nvmrc) is not None
    if is_version:
        return _profile_for(nvmrc, ".nvmrc")
    if nvmrc in _ANY_IN_NVMRC:
        return _profile_for(engines, "package.json (engines.node)") if engines else PROFILES[0].name
    line = _LTS.get(nvmrc.removeprefix("lts/")) if nvmrc.startswith("lts/") else None
    fitting = next((profile for profile in PROFILES if line and _accepts(line, profile.node)), None)
    if fitting:
        return fitting.name
    if engines:
        return _profile_for(engines, "package.json (engines.node)")
    raise _refused(nvmrc, ".nvmrc")


def _profile_for(wanted: str, where: str) -> str:
    if len(wanted) > LONGEST_RANGE:
        raise PlayerBuildFailed(
            f"The player asks for Node in its {where} with {len(wanted):,} characters ({wanted[:40]!r}…); at most"
            f" {LONGEST_RANGE} are read. Declare a version such as 12 or ^8.2.0."
        )
    for profile in PROFILES:
        if _accepts(wanted, profile.node):
            return profile.name
    raise _refused(wanted, where)


def _refused(wanted: str, where: str) -> PlayerBuildFailed:
    had = " and ".join(".".join(map(str, profile.node)) for profile in PROFILES)
    return PlayerBuildFailed(
        f"The player asks for Node {wanted[:LONGEST_RANGE]!r} in its {where}, but players are built with Node {had}:"
        " declare a version that fits one of them."
    )


def _nvmrc_of(checkout: Path) -> str:
    """What .nvmrc asks for, in lower case: its first line that is no comment; empty if there is none."""
    lines = (line.partition("#")[0].strip().lower() for line in _text_of(checkout / ".nvmrc").splitlines())
    return next((line.split(maxsplit=1)[0] for line in lines if line), "")


def _engines_of(checkout: Path) -> str:
    """Return the range in `engines.node`; empty if there is none."""
    try:
        engines: Any = json.loads(_text_of(checkout / "package.json") or "{}").get("engines", {})
        wanted = engines.get("node", "")
    except (ValueError, AttributeError):
        return ""  # yarn will say what is wrong with it
    except RecursionError:
        raise PlayerBuildFailed("The player's package.json is nested too deeply to be read; make it flatter.") from None
    if isinstance(wanted, (str, int, float)) and not isinstance(wanted, bool):
        return str(wanted).strip()
    raise _refused(json.dumps(wanted), "package.json (engines.node)")


def _text_of(file: Path) -> str:
    if file.is_symlink() or not file.is_file():
        return ""
    return read_limited(file, MOST_BYTES).decode("utf-8-sig", "replace")  # npm and editors know a byte order mark


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
