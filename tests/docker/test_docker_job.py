"""The whole job with containers: a stranger's repository is built without secrets, and an engine that stops is ours."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from threading import Thread

import docker
import pytest
from sqlalchemy import Engine as Database

from domain.models import BuildKind, State
from ember_build.docker.builder import DockerBuilder
from ember_build.docker.engine import filters_for, labels_for
from lookit_ops.demo.github_server import Commit, GitHubServer
from lookit_ops.maintenance.cleanup import clean_builds
from tests.support.docker_engine import GOOD_DIST, Engine, Player, Yard, start_engine
from tests.support.site import Site
from tests.support.workshop import REPOSITORY, Workshop, WorkshopServices

pytestmark = pytest.mark.docker
STRANGERS = "stranger/player"
KEY = "AKIA-not-for-strangers"
TELLS = f'{GOOD_DIST}echo "key: $S3_ACCESS_KEY_ID" > dist/key.txt\n'


class DockerServices(WorkshopServices):
    """The workshop's platform, with containers that are given little."""

    yard: Yard

    @cached_property
    def builder(self) -> DockerBuilder:
        return self.docker_builder

    @cached_property
    def docker_builder(self) -> DockerBuilder:
        return self.yard.builder()


class DockerWorkshop(Workshop):
    yard: Yard

    @cached_property
    def services(self) -> WorkshopServices:
        made = super().services
        services = DockerServices(made.settings, self.engine, self.script, self.tools)
        object.__setattr__(services, "yard", self.yard)
        return services


@pytest.fixture
def yard(docker_engine: Engine, image: str, tmp_path: Path, client: docker.DockerClient) -> Iterator[Yard]:
    """A deployment of its own; its image comes from the layers of the other."""
    yard = Yard(docker_engine, f"job-{secrets.token_hex(4)}", tmp_path)
    yield yard
    with contextlib.closing(docker.DockerClient(base_url=docker_engine.url)) as fresh:
        left = [name for name in yard.left_on_the_engine() if "store" not in name and "yarn-cache" not in name]
        yard.remove_volumes(fresh)
        for made in fresh.api.images(filters=filters_for(yard.deployment)):
            fresh.api.remove_image(made["Id"], force=True)
    assert left == []


@pytest.fixture
def workshop(tmp_path: Path, site: Site, engine: Database, yard: Yard) -> Iterator[Workshop]:
    player = Player(tmp_path / "player").share()
    player.write_ember(TELLS)
    good = Commit.from_folder(player.folder)
    player.write_ember("echo ready; sleep 120")
    slow = Commit.from_folder(player.folder)
    with GitHubServer({REPOSITORY: [slow, good], STRANGERS: [good]}) as server:
        workshop = DockerWorkshop(tmp_path / "workshop", site, engine, server, {"player_s3_access_key_id": KEY})
        workshop.yard = yard
        yield workshop
        workshop.close()


@pytest.fixture(params=["sqlite"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One kind of database will do: nothing here asks which."""
    path = tmp_path / "lookit.db"
    path.write_bytes(request.getfixturevalue("sqlite_template").read_bytes())
    return f"sqlite:///{path}"


def served(workshop: Workshop) -> str:
    return (workshop.folder(BuildKind.DEPLOYMENT) / "key.txt").read_text()


def test_a_trusted_commit_is_built_in_containers_with_its_secrets(workshop: Workshop) -> None:
    assert workshop.build().success
    assert served(workshop) == f"key: {KEY}\n"
    assert workshop.site.study().state == State.ACTIVE
    assert workshop.leftovers() == []


def test_a_strangers_repository_is_built_in_containers_without_secrets(workshop: Workshop) -> None:
    workshop.site.set_metadata(player_repo_url=f"{workshop.server.url}/{STRANGERS}")
    assert workshop.build().success
    assert served(workshop) == "key: \n"


def test_what_a_dead_worker_has_left_is_removed_when_its_work_is_ended_and_by_no_build(
    workshop: Workshop, yard: Yard, client: docker.DockerClient
) -> None:
    labels = labels_for(yard.deployment, "build", {"request": "999", "claim": "1"})
    client.api.create_volume(f"{yard.deployment}-orphan", labels=labels)
    assert workshop.build().success
    assert f"{yard.deployment}-orphan" in yard.left_on_the_engine()
    dead = workshop.request(BuildKind.PREVIEW)
    workshop.ledger.claim(dead, "a run that died", timedelta(minutes=5))
    workshop.site.end_leases()
    workshop.end_dead_work()
    assert f"{yard.deployment}-orphan" not in yard.left_on_the_engine()


def engine_process(engine: Engine) -> int:
    """The process of an engine that scripts/docker.sh has started; another one is not ours to stop."""
    pid_file = Path(engine.url.removeprefix("unix://")).with_name("pid")
    if not (engine.url.startswith("unix://") and pid_file.is_file()) or os.geteuid():
        pytest.skip("the engine is not one that may be stopped")
    return int(pid_file.read_text())


def stop_in_the_middle(yard: Yard, pid: int) -> None:
    """End the engine once `ember build` runs, as a service manager does, and wait until it is gone."""
    deadline = time.monotonic() + 60
    with contextlib.closing(docker.DockerClient(base_url=yard.engine.url)) as watcher:
        while not watcher.containers.list(filters={"name": "-build", **filters_for(yard.deployment)}):
            if time.monotonic() > deadline:
                return  # the request will not have failed
            time.sleep(0.2)
    time.sleep(0.5)
    os.kill(pid, signal.SIGTERM)


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# docker-py leaves a socket open whose `connect` fails; collected here, they are told of here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_that_stops_in_the_middle_fails_the_build_as_ours_and_nothing_is_left(
    workshop: Workshop, yard: Yard
) -> None:
    pid = engine_process(yard.engine)
    (slow, _) = workshop.server._repositories[REPOSITORY]
    workshop.site.set_metadata(last_known_player_sha=slow.sha)
    request_id = workshop.request()
    stop = Thread(target=stop_in_the_middle, args=(yard, pid))
    stop.start()
    try:
        assert not workshop.run(request_id=request_id).success
    finally:
        stop.join()
        while not has_ended(pid):
            time.sleep(0.2)
        start_engine()
    request = workshop.site.request(request_id)
    assert (request.error_code, "Docker engine" in str(request.error)) == ("platform_error", True), request.error
    assert workshop.site.study().state == State.APPROVED
    workshop.site.set_metadata(last_known_player_sha=None)
    assert workshop.build().success
    assert served(workshop) == f"key: {KEY}\n"
    clean_builds(workshop.services, datetime.now(UTC), dry_run=False)  # what the other has left, by the nightly cleanup
    gc.collect()
