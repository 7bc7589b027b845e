"""Removes from the Docker engine what this deployment has left there, and says how much room its things take."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import docker
import requests
from docker.errors import DockerException, NotFound

from ember_build.docker.dependency_cache import CACHE, CONTENTS, STORE
from ember_build.docker.engine import engine_errors, expected_answers, filters_for, first_line, labels_of
from ember_build.errors import BuildPlatformError
from ember_build.removal import Removal

logger = logging.getLogger(__name__)

_CONFLICT = 409
_ASKS = 15
_PAUSE_SECONDS = 2.0
"""Between two questions, while the engine answers somebody else's."""


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """Bytes on the engine's disk: of this deployment's images (what they alone take), and of its volumes."""

    images: int
    image_bytes: int
    volumes: int
    volume_bytes: int


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What the engine tells of the room that things take, in the shape of either of its APIs. None: it did not say."""

    images: Sequence[Mapping[str, Any]] | None
    volumes: Sequence[Mapping[str, Any]] | None
    layers_bytes: int | None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> DiskUsage:
        """Read an answer: since API 1.52 the lists may stand one level deeper, or be left out."""
        image_usage = told.get("ImageUsage") or told.get("ImagesDiskUsage") or {}
        volume_usage = told.get("VolumeUsage") or told.get("VolumesDiskUsage") or {}
        # An engine without any image or volume gives null for an empty list.
        images = (told["Images"] or []) if "Images" in told else image_usage.get("Items")
        volumes = (told["Volumes"] or []) if "Volumes" in told else volume_usage.get("Items")
        return cls(images, volumes, told.get("LayersSize", image_usage.get("TotalSize")))


def disk_usage(client: docker.DockerClient, sleep: Callable[[float], None] = time.sleep) -> DiskUsage | None:
    """Ask the engine how much room things take; None if it cannot say now.

    It answers one such question at a time, so another installation may be asking.
    """
    for _ in range(_ASKS):
        try:
            with engine_errors("say how much room it uses"), expected_answers("say how much room it uses"):
                return DiskUsage.of(client.api.df())
        except BuildPlatformError as error:
            if "already running" not in str(error):
                logger.warning("%s Sizes are not known now.", error)
                return None
        sleep(_PAUSE_SECONDS)
    logger.warning("The Docker engine was busy with other questions about its disk. Sizes are not known now.")
    return None


def engine_usage(client: docker.DockerClient, deployment: str) -> EngineUsage | None:
    """Ask the engine what is ours and how large it is; None if it does not say."""
    told = disk_usage(client)
    if told is None or told.images is None or told.volumes is None:
        return None
    wanted = set(filters_for(deployment)["label"])
    images = [image for image in told.images if _is_ours(image, wanted)]
    volumes = [volume for volume in told.volumes if _is_ours(volume, wanted)]
    # Images of ours share their layers with each other, so the largest counts once and of the others what they add.
    sizes = sorted((image["Size"] for image in images), reverse=True)
    own = sum(max(0, image["Size"] - max(0, image.get("SharedSize", 0))) for image in images)
    return EngineUsage(
        images=len(images),
        image_bytes=max(own, sizes[0] if sizes else 0),
        volumes=len(volumes),
        volume_bytes=sum(max(0, (volume.get("UsageData") or {}).get("Size", 0)) for volume in volumes),
    )


def remove_images(
    client: docker.DockerClient,
    deployment: str,
    older_than: datetime,
    current: Collection[str],
    is_running: Callable[[Mapping[str, str]], bool],
    *,
    dry_run: bool,
) -> Removal:
    """Remove images of earlier builds: ours by their labels, made before `older_than`.

    What stays: the newest ones (the tags in `current`), those of running builds, those that a container uses.
    """
    removal = Removal()
    before = disk_usage(client)
    with engine_errors("list its images"):
        images = client.api.images(filters=filters_for(deployment))
        used = {found["ImageID"] for found in client.api.containers(all=True)}
    known = before.images if before else None
    shared = {image["Id"]: max(0, image.get("SharedSize", 0)) for image in known or []}
    for image in images:
        tags = [tag for tag in image.get("RepoTags") or [] if tag != "<none>:<none>"]
        if image["Created"] >= older_than.timestamp() or set(tags) & set(current):
            continue
        name = (tags or [image["Id"].removeprefix("sha256:")[:12]])[0]
        if image["Id"] in used or is_running(labels_of(image.get("Labels"))):
            removal.in_use += 1
        elif dry_run:
            removal.removed.append(name)
            removal.freed_bytes += max(0, image["Size"] - shared.get(image["Id"], 0))
        else:
            # By its tags, one by one: an image with two of them cannot be removed by its id without force.
            _attempt(removal, name, [lambda tag=tag: client.api.remove_image(tag) for tag in tags or [image["Id"]]])
    if removal.removed and not dry_run:
        after = disk_usage(client)
        if before is None or after is None or before.layers_bytes is None or after.layers_bytes is None:
            removal.size_is_known = False
        else:
            removal.freed_bytes = max(0, before.layers_bytes - after.layers_bytes)
    elif removal.removed and known is None:
        removal.size_is_known = False
    return removal


def remove_stores(
    client: docker.DockerClient, deployment: str, older_than: datetime, longest_fill: datetime, *, dry_run: bool
) -> Removal:
    """Remove dependencies and downloads that were kept before `older_than`: the next build makes them anew.

    A store's name goes first, its contents when no name leads to them: a build that has just looked the name up still
    finds them. Contents without a name, made after `longest_fill`, may be being filled. The engine itself refuses to
    remove what a container has mounted.
    """
    removal = Removal()
    told = disk_usage(client)
    known = told.volumes if told else None
    usage = {volume["Name"]: volume.get("UsageData") or {} for volume in known or []}
    with engine_errors("list its volumes"):
        volumes = client.api.volumes(filters=filters_for(deployment)).get("Volumes") or []
    by_role: dict[str, list[Any]] = {}
    for volume in volumes:
        by_role.setdefault(labels_of(volume["Labels"]).get("role", ""), []).append(volume)
    named = {labels_of(volume["Labels"]).get("contents") for volume in by_role.get(STORE, [])}
    old = [volume for volume in by_role.get(CACHE, []) if _made(volume) < older_than]
    old += [volume for volume in by_role.get(STORE, []) if _made(volume) < older_than]
    old += [
        volume for volume in by_role.get(CONTENTS, []) if volume["Name"] not in named and _made(volume) < longest_fill
    ]
    for volume in old:
        name = volume["Name"]
        size_bytes = max(0, usage.get(name, {}).get("Size", 0))
        if usage.get(name, {}).get("RefCount", 0) > 0:
            removal.in_use += 1
        elif dry_run:
            removal.removed.append(name)
            removal.freed_bytes += size_bytes
        elif _attempt(removal, name, [lambda name=name: client.api.remove_volume(name)]):
            removal.freed_bytes += size_bytes
    if removal.removed and known is None:
        removal.size_is_known = False
    return removal


def _attempt(removal: Removal, name: str, actions: Iterable[Callable[[], Any]]) -> bool:
    try:
        for action in actions:
            action()
    except NotFound:
        return False  # somebody else was quicker
    except (DockerException, requests.RequestException) as error:
        if getattr(getattr(error, "response", None), "status_code", None) == _CONFLICT:
            removal.in_use += 1
        else:
            removal.failed[name] = first_line(error)
        return False
    removal.removed.append(name)
    return True


def _is_ours(found: Mapping[str, Any], wanted: set[str]) -> bool:
    return wanted <= {f"{name}={value}" for name, value in (found.get("Labels") or {}).items()}


def _made(volume: Mapping[str, Any]) -> datetime:
    # Go writes up to nine digits of a second, which Python 3.11 does not read.
    text = re.sub(r"\.\d+", "", volume["CreatedAt"])
    return datetime.fromisoformat(text).astimezone(UTC)
