"""The image that players are built in: what it is made of, its name, and building it on the engine."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

import docker
import requests
from docker.errors import DockerException, ImageNotFound

from ember_build.builder import BUILD_SCRIPT, ENVIRONMENT_FILE, Image, OutputLine
from ember_build.docker.engine import engine_errors, labels_for
from ember_build.errors import BuildPlatformError
from ember_build.source.node_version import Profile

CONTEXT = Path(__file__).with_name("image")

_BASE_IMAGE = "debian:bookworm-slim"
_SILENT_SECONDS = 900  # npm says nothing while it installs


def build_arguments(profile: Profile, base_image: str = _BASE_IMAGE) -> dict[str, str]:
    """Return the arguments of the Dockerfile for a profile."""
    return {
        "NODE_IMAGE": profile.node_image,
        "BASE_IMAGE": base_image,
        "TOOLCHAIN": profile.toolchain,
        "PYTHON2": "yes" if profile.python2 else "no",
    }


def image_context(build_script: Path = BUILD_SCRIPT, authorities: bytes = b"") -> bytes:
    """Return the build context as a tar whose bytes depend on nothing but the contents of the files.

    `authorities` are certificates in PEM that builds trust besides Debian's.
    """
    members = {path.relative_to(CONTEXT).as_posix(): path for path in CONTEXT.rglob("*") if path.is_file()}
    members = {name: path for name, path in members.items() if "__pycache__" not in name}
    members |= {"build.sh": build_script, "environment": ENVIRONMENT_FILE}
    contents = {name: path.read_bytes() for name, path in members.items()} | {"authorities.crt": authorities}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in sorted(contents.items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def image_tag(deployment: str, profile: Profile, context: bytes) -> str:
    """Name the image after what it is made from; a changed build.sh is another image."""
    digest = hashlib.sha256(context)
    digest.update(json.dumps(build_arguments(profile), sort_keys=True).encode())
    return f"lookit-ops-build-{deployment}:{profile.name}-{digest.hexdigest()[:16]}"


def build_image(
    client: docker.DockerClient,
    deployment: str,
    profile: Profile,
    context: bytes,
    on_output: OutputLine,
    labels: Mapping[str, str] | None = None,
) -> Image:
    """Build the image of a profile, from the engine's cache where nothing has changed, and tell each line.

    Raises:
        BuildPlatformError: it cannot be built; the message ends with the last lines.
    """
    began = time.monotonic()
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


def find_image(client: docker.DockerClient, deployment: str, profile: Profile, context: bytes) -> str:
    """Return the id of the image that `build_image` has made of this context for a profile.

    Raises:
        BuildPlatformError: it is not there.
    """
    tag = image_tag(deployment, profile, context)
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
