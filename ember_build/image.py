"""The image that players are built in: which of its profiles a checkout asks for, and building it on the engine."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import DockerException, ImageNotFound

from ember_build.builder import BUILD_SCRIPT, ENVIRONMENT_FILE, Image, OutputLine
from ember_build.engine import engine_errors, labels_for
from ember_build.errors import BuildPlatformError, PlayerBuildFailed

CONTEXT = Path(__file__).with_name("image")

_BASE_IMAGE = "debian:bookworm-slim"
_MOST_BYTES_OF_A_MANIFEST = 1_000_000
_SILENT_SECONDS = 900  # npm says nothing while it installs


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


def choose_profile(checkout: Path) -> Profile:
    """Return the first profile whose Node the checkout accepts: `.nvmrc` decides, else `engines.node`, else the first.

    Raises:
        PlayerBuildFailed: the checkout asks for a Node that no profile has.
    """
    wanted, where = _declared_node(checkout)
    if not wanted:
        return PROFILES[0]
    for profile in PROFILES:
        if _accepts(wanted, profile.node):
            return profile
    had = " and ".join(".".join(map(str, profile.node)) for profile in PROFILES)
    raise PlayerBuildFailed(
        f"The player asks for Node {wanted!r} in its {where}, but players are built with Node {had}: declare a version "
        "that fits one of them."
    )


def _declared_node(checkout: Path) -> tuple[str, str]:
    nvmrc = _text_of(checkout / ".nvmrc").strip().lower()
    # lts/carbon is nvm's name for Node 8, lts/erbium for 12; "node" or "lts/*" wants whatever there is.
    nvmrc = {"lts/carbon": "8", "lts/erbium": "12"}.get(nvmrc, nvmrc)
    if re.match(r"v?\d", nvmrc):
        return nvmrc.split()[0], ".nvmrc"
    try:
        engines: Any = json.loads(_text_of(checkout / "package.json") or "{}").get("engines", {})
        wanted = engines.get("node", "")
    except (ValueError, AttributeError):
        return "", ""  # yarn will say what is wrong with it
    return (wanted.strip(), "package.json (engines.node)") if isinstance(wanted, str) else ("", "")


def _text_of(file: Path) -> str:
    if file.is_symlink() or not file.is_file():
        return ""
    with file.open("rb") as stream:
        return stream.read(_MOST_BYTES_OF_A_MANIFEST).decode("utf-8", "replace")


_PART = r"(?:\d{1,9}|[xX*])"
_VERSION = re.compile(rf"v?({_PART})(?:\.({_PART}))?(?:\.({_PART}))?(?:[-+][0-9A-Za-z.+-]+)?")
_COMPARATOR = re.compile(r"(<=|>=|<|>|=|\^|~>?)?\s*([v\d*xX][0-9A-Za-z.*+-]*)")
_TOP = (1 << 30, 0, 0)


def _accepts(wanted: str, node: tuple[int, int, int]) -> bool:
    """Say whether a range in npm's notation (`8.* || >=10`, `^12.0.0`, `6 - 8`) has this version in it."""
    return any(_in_all(part.strip(), node) for part in wanted.split("||"))


def _in_all(part: str, node: tuple[int, int, int]) -> bool:
    if part in {"", "*", "x", "X", "latest", "node"}:
        return True
    if hyphen := re.fullmatch(r"(\S+)\s+-\s+(\S+)", part):
        part = f">={hyphen[1]} <={hyphen[2]}"
    found = list(_COMPARATOR.finditer(part))
    # What is not understood entirely is taken for unwanted, so that somebody is told.
    if _COMPARATOR.sub("", part).strip():
        return False
    for comparator in found:
        bounds = _bounds(comparator[1] or "", comparator[2])
        if bounds is None or not bounds[0] <= node < bounds[1]:
            return False
    return bool(found)


def _bounds(operator: str, version: str) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
    """Return the first version that a comparator accepts and the first after it that it does not."""
    match = _VERSION.fullmatch(version)
    if not match:
        return None
    given = []
    for text in match.groups():
        if text is None or not text.isdigit():
            break
        given.append(int(text))
    if not given:
        return (0, 0, 0), _TOP
    first = (*given, 0, 0, 0)[:3]
    low = (first[0], first[1], first[2])

    def after(count: int) -> tuple[int, int, int]:
        """The first version that differs from `low` in its first `count` numbers."""
        raised = [*low[: count - 1], low[count - 1] + 1, 0, 0][:3]
        return raised[0], raised[1], raised[2]

    if operator == ">=":
        return low, _TOP
    if operator == ">":
        return after(len(given)), _TOP
    if operator == "<":
        return (0, 0, 0), low
    if operator == "<=":
        return (0, 0, 0), after(len(given))
    if operator == "^":
        significant = next((i + 1 for i, number in enumerate(given) if number), len(given))
        return low, after(significant)
    if operator.startswith("~"):
        return low, after(min(2, len(given)))
    return low, after(len(given))


def build_arguments(profile: Profile, base_image: str = _BASE_IMAGE) -> dict[str, str]:
    """Return the arguments of the Dockerfile for a profile."""
    return {
        "NODE_IMAGE": profile.node_image,
        "BASE_IMAGE": base_image,
        "TOOLCHAIN": profile.toolchain,
        "PYTHON2": "yes" if profile.python2 else "no",
    }


def image_context(build_script: Path = BUILD_SCRIPT) -> bytes:
    """Return the build context as a tar whose bytes depend on nothing but the contents of the files."""
    members = {path.relative_to(CONTEXT).as_posix(): path for path in CONTEXT.rglob("*") if path.is_file()}
    members = {name: path for name, path in members.items() if "__pycache__" not in name}
    members |= {"build.sh": build_script, "environment": ENVIRONMENT_FILE}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(members):
            data = members[name].read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def image_tag(deployment: str, profile: Profile, context: bytes | None = None) -> str:
    """Name the image after what it is made from; a changed build.sh is another image."""
    digest = hashlib.sha256(context if context is not None else image_context())
    digest.update(json.dumps(build_arguments(profile), sort_keys=True).encode())
    return f"lookit-ops-build-{deployment}:{profile.name}-{digest.hexdigest()[:16]}"


def build_image(
    client: docker.DockerClient,
    deployment: str,
    profile: Profile,
    on_output: OutputLine,
    labels: Mapping[str, str] | None = None,
) -> Image:
    """Build the image of a profile, from the engine's cache where nothing has changed, and tell each line.

    Raises:
        BuildPlatformError: it cannot be built; the message ends with the last lines.
    """
    began = time.monotonic()
    context = image_context()
    tag = image_tag(deployment, profile, context)
    last: list[str] = []

    def tell(line: str) -> None:
        del last[:-7]
        last.append(line)
        on_output(line)

    tell(f"==> docker build: {profile.description}")
    with engine_errors("build the image"):
        answers = client.api.build(
            fileobj=io.BytesIO(context),
            custom_context=True,
            tag=tag,
            buildargs=build_arguments(profile),
            labels=labels_for(deployment, "image", {"profile": profile.name, **(labels or {})}),
            rm=True,
            forcerm=True,
            decode=True,
            timeout=_SILENT_SECONDS,
        )
        for answer in answers:
            if "error" in answer:
                told = "\n".join([*last, str(answer["error"]).strip()])
                raise BuildPlatformError(f"The image that builds run in could not be built; its last lines:\n{told}")
            text = str(answer.get("stream") or answer.get("status") or "")
            if "progress" in answer:
                continue  # a bar that moves
            for line in text.splitlines():
                if line.strip():
                    tell(line.rstrip())
        found = client.api.inspect_image(tag)
    return Image(name=found["Id"], description=profile.description, seconds=time.monotonic() - began)


def find_image(client: docker.DockerClient, deployment: str, profile: Profile) -> str:
    """Return the id of the image that `build_image` has made for a profile.

    Raises:
        BuildPlatformError: it is not there.
    """
    tag = image_tag(deployment, profile)
    try:
        return str(client.api.inspect_image(tag)["Id"])
    except ImageNotFound:
        raise BuildPlatformError(
            f"The image that builds run in ({tag}) is missing on the Docker engine; the next build makes it anew."
        ) from None
    except (DockerException, requests.RequestException):
        with engine_errors("look for the image"):
            raise


def layers_key(client: docker.DockerClient, image: str) -> str:
    """Name what is in an image, whatever its labels: images of two requests that are otherwise equal have one key."""
    with engine_errors("look at the image"):
        found = client.api.inspect_image(image)
    told = json.dumps([found["RootFS"]["Layers"], sorted(found["Config"].get("Env") or [])])
    return hashlib.sha256(told.encode()).hexdigest()
