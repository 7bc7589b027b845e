"""Cleaning up on a real engine: hundreds of images, of which only our own old and unused ones may go; and orphans."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import secrets
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import docker
import pytest

from ember_build.docker.cleanup import engine_usage
from ember_build.docker.engine import filters_for, labels_for
from ember_build.docker.images import image_context, image_tag
from ember_build.source.node_version import NODE_8
from tests.support.docker_engine import GOOD_DIST, Engine, Yard

pytestmark = pytest.mark.docker
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Made:
    """An image to be made: its tag if it has one, its labels, and its age in hours."""

    tag: str | None
    labels: dict[str, str]
    hours: float


def _tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def load(client: docker.DockerClient, images: Sequence[Made]) -> list[str]:
    """Make images of any age in one act, as `docker load` takes them; returns their ids."""
    layer = _tar({"marker": b"x" * 1000})
    diff = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    members, manifest, ids = {"layer.tar": layer}, [], []
    for number, image in enumerate(images):
        config = json.dumps(
            {
                "created": (NOW - timedelta(hours=image.hours)).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "architecture": "amd64",
                "os": "linux",
                "config": {"Labels": {**image.labels, "number": str(number)}},
                "rootfs": {"type": "layers", "diff_ids": [diff]},
                "history": [{"created_by": "a test"}],
            }
        ).encode()
        name = hashlib.sha256(config).hexdigest()
        members[f"{name}.json"] = config
        manifest.append(
            {"Config": f"{name}.json", "RepoTags": [image.tag] if image.tag else None, "Layers": ["layer.tar"]}
        )
        ids.append(f"sha256:{name}")
    members["manifest.json"] = json.dumps(manifest).encode()
    list(client.api.load_image(_tar(members)))
    return ids


@pytest.fixture
def yard(docker_engine: Engine, tmp_path: Path, client: docker.DockerClient) -> Iterator[Yard]:
    """A deployment of its own, with no image but what a test makes."""
    yard = Yard(docker_engine, f"cleanup-{secrets.token_hex(4)}", tmp_path)
    yield yard
    for image in client.api.images(filters=filters_for(yard.deployment)):
        client.api.remove_image(image["Id"], force=True)
    assert yard.left_on_the_engine() == []


def own(yard: Yard, **more: str) -> dict[str, str]:
    return labels_for(yard.deployment, "image", more)


def of(client: docker.DockerClient, yard: Yard) -> set[str]:
    return {image["Id"] for image in client.api.images(filters=filters_for(yard.deployment))}


def test_of_hundreds_of_images_our_old_ones_go_and_nobody_elses(yard: Yard, client: docker.DockerClient) -> None:
    name = f"lookit-ops-build-{yard.deployment}"
    old = [Made(f"{name}:old-{n}" if n % 2 else None, own(yard, request=str(n), claim="1"), 25 + n) for n in range(150)]
    new = [Made(None, own(yard, request=str(n), claim="1"), n / 10) for n in range(100)]
    current = Made(image_tag(yard.deployment, NODE_8, image_context()), own(yard), 300)
    running = Made(None, own(yard, request="7", claim="2"), 300)
    others = [
        Made(f"stranger-{yard.deployment}:1", {}, 300),
        Made(f"{name}-elsewhere:1", labels_for(f"{yard.deployment}-elsewhere", "image"), 300),
        Made(f"stranger-{yard.deployment}:2", {"lookit-ops.system": "lookit-ops"}, 300),
    ]
    ids = load(client, [*old, *new, current, running, *others])
    old_ids, rest = set(ids[: len(old)]), set(ids[len(old) :])

    def is_running(labels: object) -> bool:
        return isinstance(labels, dict) and (labels.get("request"), labels.get("claim")) == ("7", "2")

    used = client.api.create_container(ids[3], command=["/x"])["Id"]
    try:
        planned = yard.builder().clean_images(NOW - DAY, is_running, dry_run=True)
        assert old_ids | rest - set(ids[-3:]) == of(client, yard)
        done = yard.builder().clean_images(NOW - DAY, is_running, dry_run=False)
        assert sorted(planned.removed) == sorted(done.removed)
        assert (len(done.removed), done.in_use, done.failed) == (149, 2, {})
        assert of(client, yard) == (rest - set(ids[-3:])) | {ids[3]}
        for image in ids[-3:]:
            client.api.inspect_image(image)
    finally:
        client.api.remove_container(used, force=True)
        for image in ids[-3:]:
            client.api.remove_image(image, force=True)


def test_the_usage_counts_what_is_ours(yard: Yard, client: docker.DockerClient) -> None:
    load(client, [Made(None, own(yard), n) for n in range(3)])
    used = engine_usage(client, yard.deployment)
    assert (used.images, used.volumes, used.volume_bytes) == (3, 0, 0)
    assert used.image_bytes > 0


def test_the_host_tells_its_room(docker_engine: Engine, image: str, tmp_path: Path) -> None:
    used, host = Yard(docker_engine, "tests", tmp_path).builder().usage()
    assert used.image_bytes > 100_000_000
    assert host is not None
    assert host.free_disk_mb > 0
    assert host.available_memory_mb > 0
    assert "127.0.0.1" in host.addresses


def test_orphans_of_dead_builds_go_and_those_of_living_ones_and_of_others_stay(
    yard: Yard, client: docker.DockerClient
) -> None:
    (image,) = load(client, [Made(None, own(yard), 1)])
    elsewhere = f"{yard.deployment}-elsewhere"
    made: dict[str, dict[str, str]] = {
        "dead": labels_for(yard.deployment, "build", {"request": "1", "claim": "1"}),
        "dead-again": labels_for(yard.deployment, "build", {"request": "2", "claim": "1"}),
        "living": labels_for(yard.deployment, "build", {"request": "2", "claim": "2"}),
        "shared": labels_for(yard.deployment, "store", {"repository": "lab/player"}),
        "others": labels_for(elsewhere, "build", {"request": "1", "claim": "1"}),
    }
    names = {part: f"{yard.deployment}-{part}" for part in made}
    try:
        for part, labels in made.items():
            client.api.create_volume(names[part], labels=labels)
            client.api.create_network(names[part], labels=labels)
            mounts = [{"Type": "volume", "Source": names[part], "Target": "/x"}]
            config = client.api.create_host_config(mounts=mounts)
            client.api.create_container(image, command=["/x"], name=names[part], labels=labels, host_config=config)
        removed = yard.builder().remove_orphans(lambda labels: (labels["request"], labels["claim"]) == ("2", "2"))
        assert removed.failed == ()
        assert sorted(removed.removed) == sorted(
            f"{kind} {names[part]}" for kind in ("container", "network", "volume") for part in ("dead", "dead-again")
        )
        assert yard.builder().remove_orphans(lambda labels: True).removed == ()
        for part in ("living", "shared", "others"):
            client.api.inspect_container(names[part])
            client.api.inspect_network(names[part])
            client.api.inspect_volume(names[part])
    finally:
        for name in names.values():
            with contextlib.suppress(docker.errors.NotFound):
                client.api.remove_container(name, force=True)
            with contextlib.suppress(docker.errors.NotFound):
                client.api.remove_network(name)
            with contextlib.suppress(docker.errors.NotFound):
                client.api.remove_volume(name, force=True)


def test_a_cleanup_while_a_build_runs_leaves_it_alone(docker_engine: Engine, image: str, tmp_path: Path) -> None:
    yard = Yard(docker_engine, "tests", tmp_path)
    removed: list[object] = []

    def prune(line: str) -> None:
        if line == "ready":
            removed.append(yard.builder().remove_orphans(lambda labels: labels["request"] == "1").removed)

    yard.player.write(ember=f"echo ready; sleep 1\n{GOOD_DIST}")
    assert yard.build(on_line=prune).file_count == 2
    assert removed == [()]
