"""What engines of several versions say, and what is made of it when they say less."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest

from ember_build.docker import cleanup as engine_cleanup
from ember_build.docker.builder import _apart_from_answers
from ember_build.docker.cleanup import DiskUsage, disk_usage, engine_usage, remove_images, remove_stores
from ember_build.docker.engine import NEWEST_API, connect, expected_answers, labels_for
from ember_build.errors import BuildPlatformError
from tests.support.docker_engine import find_engine

LABELS = labels_for("test", "image")
IMAGE = {"Id": "sha256:1", "Size": 500, "SharedSize": 100, "Labels": LABELS, "Created": 1, "RepoTags": ["ours:1"]}
VOLUME = {
    "Name": "store",
    "Labels": labels_for("test", "store"),
    "UsageData": {"Size": 70, "RefCount": 0},
    "CreatedAt": "2020-01-01T00:00:00Z",
}
OLD = {"Images": [IMAGE], "Volumes": [VOLUME], "LayersSize": 900}
NEW = {"ImageUsage": {"TotalSize": 900, "Items": [IMAGE]}, "VolumeUsage": {"TotalSize": 70, "Items": [VOLUME]}}
SHORT = {"ImageUsage": {"TotalSize": 900}, "VolumeUsage": {"TotalSize": 70}}


def test_an_error_of_the_callers_own_question_is_not_called_the_engines() -> None:
    def is_running(_labels: Mapping[str, str]) -> bool:
        return bool(datetime.fromisoformat("1772359200 or so"))

    with pytest.raises(RuntimeError, match="whether a build runs cannot be told"), expected_answers("list its images"):
        _apart_from_answers(is_running)({})


LATER = datetime.now(UTC) + timedelta(days=1)


class Api:
    """An engine that gives these answers when it is asked for its disk; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.removed: list[str] = []

    def df(self) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def images(self, filters: object = None) -> list[Any]:
        return [IMAGE]

    def containers(self, *, all: bool = False) -> list[Any]:  # noqa: A002 - docker-py's name
        return []

    def volumes(self, filters: object = None) -> dict[str, Any]:
        return {"Volumes": [VOLUME]}

    def remove_image(self, name: str) -> None:
        self.removed.append(name)

    def remove_volume(self, name: str) -> None:
        self.removed.append(name)


def client_of(*answers: Any) -> Any:
    return SimpleNamespace(api=Api(*answers))


def busy() -> Exception:
    answer = SimpleNamespace(status_code=500, reason="Internal Server Error", url="")
    return docker.errors.APIError("", response=answer, explanation="a disk usage operation is already running")  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("told", [OLD, NEW])
def test_both_shapes_of_an_answer_are_read(told: dict[str, Any]) -> None:
    usage = DiskUsage.of(told)
    assert (usage.images, usage.volumes, usage.layers_bytes) == ([IMAGE], [VOLUME], 900)
    used = engine_usage(client_of(told), "test")
    assert used is not None
    assert (used.images, used.image_bytes, used.volumes, used.volume_bytes) == (1, 500, 1, 70)


def test_an_empty_engine_is_not_an_unknown_one() -> None:
    usage = DiskUsage.of({"Images": None, "Volumes": None, "LayersSize": 0})
    assert (usage.images, usage.volumes, usage.layers_bytes) == ([], [], 0)


@pytest.mark.parametrize("told", [SHORT, {}, None, [], busy(), docker.errors.DockerException("no")], ids=repr)
def test_removing_does_not_depend_on_sizes(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_cleanup, "_PAUSE_SECONDS", 0)
    client = client_of(told)
    images = remove_images(client, "test", LATER, (), lambda _: False, dry_run=False)
    assert images.removed == ["ours:1"]
    assert images.size_is_known is (told is SHORT), "the layers as a whole are enough"
    stores = remove_stores(client, "test", LATER, LATER, dry_run=False)
    assert stores.removed == ["store"]
    assert not stores.size_is_known
    assert client.api.removed == ["ours:1", "store"]
    assert engine_usage(client, "test") is None


def test_an_engine_that_answers_another_installation_is_asked_again() -> None:
    pauses: list[float] = []
    assert disk_usage(client_of(busy(), busy(), OLD), pauses.append) == DiskUsage.of(OLD)
    assert len(pauses) == 2


def test_an_answer_that_lacks_what_is_read_is_an_engine_error() -> None:
    with pytest.raises(BuildPlatformError, match="not understood \\(KeyError: 'Id'\\), and could not list its images"):  # noqa: SIM117
        with expected_answers("list its images"):
            remove_images(client_of({"Images": [{}]}), "test", LATER, (), lambda _: False, dry_run=False)


@pytest.mark.docker
def test_no_newer_api_is_spoken_than_was_tried() -> None:
    client = connect(find_engine().url)
    try:
        assert tuple(map(int, client.api.api_version.split("."))) <= tuple(map(int, NEWEST_API.split(".")))
    finally:
        client.close()
