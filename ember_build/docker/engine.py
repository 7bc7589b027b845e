"""The connection to the Docker engine: opens it, tells its failures in our words, and labels all that we make there."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Generator, Mapping
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from ember_build.builder import Removed
from ember_build.errors import BuildPlatformError

SYSTEM = "lookit-ops"
LABEL = "lookit-ops"
"""Where the names of our labels begin: lookit-ops.system, .deployment, .study, .request, .role."""

NEWEST_API = "1.44"
"""The newest version of the engine's API that is spoken: a newer one may leave out what is read here. Engines of today
still answer in this one."""

_ANSWER_SECONDS = 120
_USUAL = "unix:///var/run/docker.sock"


def connect(engine_url: str | None = None) -> docker.DockerClient:
    """Open a connection to the engine at `engine_url`, or where DOCKER_HOST says.

    Raises:
        BuildPlatformError: nobody answers there.
    """
    try:
        _knock(engine_url or os.environ.get("DOCKER_HOST") or _USUAL)
        client = _open(engine_url, "auto")
        if _number_of(client.api.api_version) > _number_of(NEWEST_API):
            client.close()
            client = _open(engine_url, NEWEST_API)
        client.ping()
    except (DockerException, requests.RequestException, OSError) as error:
        where = engine_url or "DOCKER_HOST, or the usual socket"
        raise BuildPlatformError(f"The Docker engine at {where} does not answer: {first_line(error)}") from error
    return client


def _open(engine_url: str | None, version: str) -> docker.DockerClient:
    if engine_url:
        return docker.DockerClient(base_url=engine_url, timeout=_ANSWER_SECONDS, version=version)
    return docker.from_env(timeout=_ANSWER_SECONDS, version=version)


def _number_of(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _knock(engine_url: str) -> None:
    """Try a local socket before docker-py does, which leaves its own open when nobody listens there."""
    if engine_url.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(engine_url.removeprefix("unix://"))


@contextlib.contextmanager
def engine_errors(doing: str) -> Generator[None]:
    """Tell an error of the engine as ours; `doing` completes "the Docker engine could not …"."""
    try:
        yield
    except ImageNotFound as error:
        raise BuildPlatformError(
            f"The image that builds run in is missing on the Docker engine ({first_line(error)}); the next build "
            "makes it again."
        ) from error
    except APIError as error:
        raise BuildPlatformError(f"The Docker engine could not {doing}: {first_line(error)}") from error
    except (DockerException, requests.RequestException) as error:
        raise BuildPlatformError(f"The Docker engine went away and could not {doing}: {first_line(error)}") from error


@contextlib.contextmanager
def expected_answers(doing: str) -> Generator[None]:
    """Tell an answer that lacks what is read from it as the engine's error; only around code that reads answers."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BuildPlatformError(
            f"The Docker engine gave an answer that is not understood ({type(error).__name__}: {error}), and could not"
            f" {doing}; its version may be too new or too old."
        ) from error


def first_line(error: BaseException) -> str:
    """Return what an error of the engine says, without the rest."""
    text = str(getattr(error, "explanation", None) or error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:500]


def labels_for(deployment: str, role: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the labels of something that we make: whose it is, what it is for, and `more` (study, request)."""
    own = {f"{LABEL}.system": SYSTEM, f"{LABEL}.deployment": deployment, f"{LABEL}.role": role}
    return {**{f"{LABEL}.{name}": value for name, value in (more or {}).items()}, **own}


def filters_for(deployment: str, **more: str) -> dict[str, list[str]]:
    """Return the filter that finds what this deployment has made, and with `more` labels, which of it."""
    wanted = {"system": SYSTEM, "deployment": deployment, **more}
    return {"label": [f"{LABEL}.{name}={value}" for name, value in wanted.items()]}


def labels_of(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Return our labels of something, without the beginning of their names."""
    own = {name: value for name, value in (labels or {}).items() if name.startswith(f"{LABEL}.")}
    return {name.removeprefix(f"{LABEL}."): value for name, value in own.items()}


def remove_orphans(
    client: docker.DockerClient, deployment: str, is_running: Callable[[Mapping[str, str]], bool]
) -> Removed:
    """Remove containers, networks and volumes of this deployment whose build, by its labels, does not run any more.

    What carries no request (stores that builds share) stays. One failure never stops the rest. `is_running` is asked
    after the listing, so what a build has made since is not in question.
    """
    removed: list[str] = []
    failed: list[str] = []

    def orphaned(labels: Mapping[str, str] | None) -> bool:
        own = labels_of(labels)
        return "request" in own and not is_running(own)

    def remove(name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except NotFound:
            return  # somebody else was quicker
        except (DockerException, requests.RequestException) as error:
            failed.append(f"{name}: {first_line(error)}")
            return
        removed.append(name)

    filters = filters_for(deployment)
    with engine_errors("list what builds have left"):
        containers = client.api.containers(all=True, filters=filters)
        networks = client.api.networks(filters=filters)
        volumes = client.api.volumes(filters=filters).get("Volumes") or []
    for found in containers:
        if orphaned(found.get("Labels")):
            name = (found.get("Names") or [found["Id"]])[0].lstrip("/")
            remove(f"container {name}", lambda i=found["Id"]: client.api.remove_container(i, v=True, force=True))
    for found in networks:
        if orphaned(found.get("Labels")):
            remove(f"network {found['Name']}", lambda i=found["Id"]: client.api.remove_network(i))
    for found in volumes:
        if orphaned(found.get("Labels")):
            remove(f"volume {found['Name']}", lambda i=found["Name"]: client.api.remove_volume(i, force=True))
    return Removed(removed=tuple(removed), failed=tuple(failed))
