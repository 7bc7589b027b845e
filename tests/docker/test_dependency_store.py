"""Dependencies that builds of one trusted repository share: what is skipped, who may share, and that nobody poisons."""

from __future__ import annotations

import json
import secrets
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import docker
import pytest

from ember_build.builder import BuildCancelled
from ember_build.docker.engine import filters_for, labels_of
from ember_build.source.dependencies import Inputs, NotShared, inputs_of
from tests.support.docker_engine import GOOD_DIST, Engine, Yard

pytestmark = pytest.mark.docker
REPOSITORY, OTHER = "lab/player", "stranger/player"
TAKEN = "==> take node_modules of an earlier build with the same lock files, nothing to install"


@pytest.fixture
def yard(docker_engine: Engine, image: str, tmp_path: Path, client: docker.DockerClient) -> Iterator[Yard]:
    """A deployment of its own, since what is shared outlives its build."""
    yard = Yard(docker_engine, f"stores-{secrets.token_hex(4)}", tmp_path)
    yard.image = image
    yard.player.share()
    yield yard
    yard.remove_volumes(client)


def build(yard: Yard, repository: str = REPOSITORY) -> list[str]:
    """Build the player, and return what was said."""
    shutil.rmtree(yard.output, ignore_errors=True)
    said: list[str] = []
    yard.builder().build(yard.order(repository=repository), said.append)
    return said


def volumes(client: docker.DockerClient, yard: Yard, role: str) -> list[str]:
    found = client.api.volumes(filters=filters_for(yard.deployment, role=role)).get("Volumes") or []
    return [volume["Name"] for volume in found]


def test_a_second_build_of_an_unchanged_lock_file_installs_nothing_and_opens_no_way_out(
    yard: Yard, client: docker.DockerClient
) -> None:
    first = build(yard)
    assert "==> yarn install --pure-lockfile, from the downloads" in first
    assert TAKEN in first, "\n".join(first)
    (yard.player.folder / "app.js").write_text("another commit")
    phases: list[str] = []
    builder = yard.builder(on_checked=lambda phase, _: phases.append(phase))
    shutil.rmtree(yard.output)
    said: list[str] = []
    builder.build(yard.order(repository=REPOSITORY), said.append)
    assert [line for line in said if line.startswith("==>")][2:4] == [TAKEN, "==> put the environment file in place"]
    assert not any("yarn" in line for line in said)
    assert phases == ["dependencies", "build"]
    assert len(volumes(client, yard, "store")) == len(volumes(client, yard, "store-contents")) == 1


def test_an_input_that_changes_makes_another_store(yard: Yard, client: docker.DockerClient) -> None:
    build(yard)
    yard.player.share(postinstall="exit 0 # changed")
    assert "==> yarn install --pure-lockfile, from the downloads" in build(yard)
    assert len(volumes(client, yard, "store")) == 2


def test_another_repository_has_its_own_and_a_commit_that_is_not_trusted_has_none(
    yard: Yard, client: docker.DockerClient
) -> None:
    build(yard)
    assert "==> yarn install --pure-lockfile, from the downloads" in build(yard, OTHER)
    assert len(volumes(client, yard, "store")) == len(volumes(client, yard, "yarn-cache")) == 2
    said = build(yard, repository="")
    assert TAKEN not in said
    assert "==> yarn install --pure-lockfile" in said
    order = replace(yard.order(repository=REPOSITORY), trusted=False, output=yard.root / "untrusted")
    said = []
    yard.builder().build(order, said.append)
    assert TAKEN not in said
    assert len(volumes(client, yard, "store")) == 2


POISON = r"""
for place in /yarn-cache /yarn-cache/shared /dependencies /dependencies/shared /checkouts /deployments /egress; do
    (echo x > $place/lookit-poison) 2>/dev/null && echo "WROTE $place"
done
find /yarn-cache /dependencies -writable 2>/dev/null | sed 's/^/WRITABLE /'
ls / /checkouts
exit 0
"""
PRINTS = "cat node_modules/dep/found.txt || true\n"


def test_an_install_script_reaches_nothing_that_another_build_takes(yard: Yard, client: docker.DockerClient) -> None:
    """Of a trusted repository, whose package has turned evil: it may spoil its own node_modules, and nothing else."""
    yard.player.share(postinstall=f"({POISON}) > found.txt").write_ember(f"{PRINTS}{GOOD_DIST}")
    found = "\n".join(build(yard))
    assert "WROTE" not in found
    assert "WRITABLE" not in found
    assert "ember.sh" not in found, "it sees its inputs, and nothing else of the checkout"
    assert "yarn.lock" in found
    # The same package, mended: another key, and nothing of the poison in it.
    yard.player.share(postinstall="find / -name lookit-poison 2>/dev/null > found.txt; exit 0")
    said = build(yard)
    assert [line for line in said if "lookit-poison" in line] == []


def test_a_build_cannot_change_the_store_that_it_takes(yard: Yard) -> None:
    spoil = "ls -d /dependencies; echo spoilt > node_modules/dep/index.js; (echo x > /dependencies/x) 2>&1\n"
    yard.player.write_ember(f"{spoil}{GOOD_DIST}")
    said = build(yard)
    yard.player.write_ember(f"cat node_modules/dep/index.js 2>/dev/null || echo CLEAN\n{GOOD_DIST}")
    assert "CLEAN" in build(yard)
    # In the installation it is mounted, and read-only; in `ember build` it is not even there.
    assert any("/dependencies/x" in line for line in said)


def test_a_stranger_with_the_same_files_gets_nothing_of_it_and_leaves_nothing(
    yard: Yard, client: docker.DockerClient
) -> None:
    build(yard)
    before = sorted(volumes(client, yard, "store") + volumes(client, yard, "yarn-cache"))
    yard.player.share(postinstall=f"({POISON}) > found.txt").write_ember(f"{PRINTS}ls /dependencies\n{GOOD_DIST}")
    said = build(yard, repository="")
    assert "WROTE" not in "\n".join(said)
    assert sorted(volumes(client, yard, "store") + volumes(client, yard, "yarn-cache")) == before
    yard.player.share()
    assert TAKEN in build(yard)


def test_a_package_that_wants_more_than_the_inputs_is_installed_by_each_build_for_itself(
    yard: Yard, client: docker.DockerClient
) -> None:
    yard.player.share(postinstall='test -f "$INIT_CWD/ember.sh" || exit 3')
    for _ in range(2):
        said = build(yard)
        assert any("cannot be shared" in line for line in said)
        assert "==> yarn install --pure-lockfile" in said
    assert volumes(client, yard, "store") == volumes(client, yard, "store-contents") == []


def test_of_two_that_fill_a_store_at_once_one_is_kept(yard: Yard, client: docker.DockerClient) -> None:
    yard.player.share(postinstall="sleep 2")

    def one(number: int) -> int:
        order = replace(yard.order(repository=REPOSITORY), output=yard.root / "built" / f"of-{number}")
        return yard.builder().build(order, lambda line: None).file_count

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(one, (1, 2))) == [2, 2]
    assert len(volumes(client, yard, "store")) == len(volumes(client, yard, "store-contents")) == 1


def test_a_fill_that_is_cancelled_leaves_no_store(yard: Yard, client: docker.DockerClient) -> None:
    yard.player.share(postinstall="sleep 300")
    cancelled = threading.Event()

    def listen(line: str) -> None:
        if "from the downloads" in line:
            cancelled.set()

    with pytest.raises(BuildCancelled):
        yard.builder().build(yard.order(repository=REPOSITORY), listen, cancelled)
    assert volumes(client, yard, "store") == volumes(client, yard, "store-contents") == []
    assert [name for name in yard.left_on_the_engine() if "yarn-cache" not in name] == []


def test_a_store_goes_by_its_age_its_contents_after_its_name_and_is_made_anew(
    yard: Yard, client: docker.DockerClient
) -> None:
    build(yard)
    builder = yard.builder(seconds=0)
    now = datetime.now(UTC) + timedelta(seconds=2)
    assert builder.clean_stores(now - timedelta(hours=1), dry_run=False).removed == []
    (store,), (contents,) = volumes(client, yard, "store"), volumes(client, yard, "store-contents")
    planned = builder.clean_stores(now, dry_run=True)
    done = builder.clean_stores(now, dry_run=False)
    assert sorted(planned.removed) == sorted(done.removed)
    assert store in done.removed
    assert volumes(client, yard, "store-contents") == [contents]
    last = yard.builder(seconds=0).clean_stores(now, dry_run=False)
    assert last.removed == [contents]
    assert last.freed_bytes > 0
    assert "==> yarn install --pure-lockfile, from the downloads" in build(yard)


def test_an_archive_without_a_hash_is_held_to_what_came_first(
    yard: Yard, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive of the registry in the place of one of GitHub's, which cannot be reached from a test."""
    assert yard.image is not None
    asked = client.containers.run(yard.image, ["yarn", "config", "get", "registry"], remove=True)
    registry = (yard.engine.registry or asked.decode().strip()).rstrip("/")
    address = f"{registry}/inherits/-/inherits-2.0.3.tgz"
    lock = yard.player.folder / "yarn.lock"
    lock.write_text(f'{lock.read_text()}inherits@2.0.3:\n  version "2.0.3"\n  resolved "{address}"\n')
    described = yard.player.folder / "package.json"
    package = json.loads(described.read_text())
    described.write_text(json.dumps({**package, "dependencies": {"inherits": "2.0.3"}}))
    assert isinstance(inputs_of(yard.player.folder), NotShared)

    def as_if_of_github(checkout: Path, **limits: Any) -> Inputs:
        (checkout / "yarn.lock").write_text(lock.read_text().replace(address, f"{address}#{'a' * 40}"))
        inputs = inputs_of(checkout, **limits)
        (checkout / "yarn.lock").write_text(lock.read_text().replace(f"#{'a' * 40}", ""))
        assert isinstance(inputs, Inputs)
        return replace(inputs, archives={"inherits 2.0.3": address})

    monkeypatch.setattr("ember_build.docker.builder.inputs_of", as_if_of_github)
    compared = "==> compare GitHub's archives with what came at the first time"
    first = build(yard)
    assert compared in first
    assert TAKEN in first, "\n".join(first)
    (remembered,) = volumes(client, yard, "first-seen")

    def forget_downloads() -> None:
        for role in ("store", "store-contents", "yarn-cache"):
            for volume in volumes(client, yard, role):
                client.api.remove_volume(volume)

    forget_downloads()
    assert TAKEN in build(yard), "it is what it was"
    forget_downloads()
    change = ["/bin/sh", "-c", "for file in /seen/shared/*; do sed -i 's/^[0-9a-f]*/0/' $file; done"]
    client.containers.run(
        yard.image, change, remove=True, user="root", volumes={remembered: {"bind": "/seen", "mode": "rw"}}
    )
    told = build(yard)
    assert any(f"error: {address} holds something else than at the first time" in line for line in told)
    assert any(line.startswith("The dependencies cannot be shared (") for line in told)
    assert TAKEN not in told
    assert volumes(client, yard, "store") == []
    assert yard.builder().clean_stores(datetime.now(UTC) + timedelta(days=1), dry_run=False)
    assert volumes(client, yard, "first-seen") == [remembered], "what is remembered outlives what is shared"


def test_contents_that_somebody_removed_by_hand_are_made_anew(yard: Yard, client: docker.DockerClient) -> None:
    build(yard)
    (contents,) = volumes(client, yard, "store-contents")
    client.api.remove_volume(contents)
    assert "==> yarn install --pure-lockfile, from the downloads" in build(yard)
    assert TAKEN in build(yard)


def test_volumes_of_a_store_say_whose_they_are(yard: Yard, client: docker.DockerClient) -> None:
    build(yard)
    for role in ("store", "store-contents", "yarn-cache"):
        (name,) = volumes(client, yard, role)
        labels = labels_of(client.api.inspect_volume(name)["Labels"])
        assert (labels["repository"], labels["deployment"]) == (REPOSITORY, yard.deployment)
        assert "request" not in labels, "or the pruning of orphans would take it"
    assert yard.builder().remove_orphans(lambda labels: False).removed == ()
