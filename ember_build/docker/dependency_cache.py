"""The dependencies that builds of one trusted repository share: made of hashed inputs alone, read-only afterwards.

On the engine a store is a volume with node_modules and bower_components, and a second, empty one whose name is the key
and whose label names the first. Making that one is a single act of the engine, so a store is there complete or not at
all, and of two builds that fill one at once the first wins. docs/adr/0012 says what this guards against.

A third kind of volume, one for a deployment, remembers what GitHub's archives held when they came for the first time:
a lock file names them by their commit, and has no hash of what arrives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from docker.errors import NotFound

from ember_build.docker.build_containers import CHECKOUTS, DEPENDENCIES, FIRST_SEEN_FOLDER, WORK, YARN_CACHE, Site
from ember_build.docker.confinement import BUILDER_USER, Mount
from ember_build.docker.container import remove_volume
from ember_build.docker.engine import engine_errors, labels_for, labels_of
from ember_build.docker.proxy import Egress
from ember_build.docker.tar_stream import own_folder, pack
from ember_build.errors import BuildPlatformError, PlayerBuildFailed
from ember_build.script_log import INSTALLATION
from ember_build.source.dependencies import Inputs

STORE, CONTENTS, CACHE, FIRST_SEEN = "store", "store-contents", "yarn-cache", "first-seen"
"""The roles of their volumes."""
SHARED_FOLDER = "shared"
"""The folder in a volume: it can belong to the user of builds, which the volume itself cannot."""


@dataclass(frozen=True, slots=True)
class SharedDependencies:
    """What builds of one trusted repository may share. `key` changes with all that decides about the contents."""

    deployment: str
    repository: str
    checkout: Path
    inputs: Inputs
    layers: str
    registry: Mapping[str, str]
    way_out: Callable[[], AbstractContextManager[Egress]]

    @property
    def key(self) -> str:
        """Name the contents."""
        return self._digest(self.inputs.digest)

    @property
    def cache_key(self) -> str:
        """Name the downloads: of one repository, from one place, by one yarn.

        In its cache yarn names a package without a hash after its name and version alone, and would take that of
        another commit.
        """
        archives = (f"{package} {address}" for package, address in sorted(self.inputs.archives.items()))
        return self._digest("\n".join([self.inputs.settings, *archives]))

    def _digest(self, inputs: str) -> str:
        told = [self.repository.lower(), self.layers, sorted(self.registry.items()), inputs]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    def labels(self, role: str, **more: str) -> dict[str, str]:
        """Without a request: what is shared outlives the build that has made it."""
        return labels_for(self.deployment, role, {"repository": self.repository, "key": self.key, **more})

    def volume(self, what: str) -> str:
        return f"lookit-{self.deployment}-{what}"


def find_or_fill(site: Site, shared: SharedDependencies) -> Mount | None:
    """The store, for reading: the one that is there, or a new one; None if nothing can be installed in this way.

    Raises:
        BuildPlatformError: the engine or the network failed.
        Cancelled: somebody asked for the end.
    """
    contents = _find(site, shared)
    if contents is None:
        try:
            contents = _fill(site, shared)
        except PlayerBuildFailed as error:
            site.course.add(
                f"The dependencies cannot be shared ({error.args[0].splitlines()[0]}): installing them here"
            )
            return None
    return Mount(contents, DEPENDENCIES, writable=False)


def require_contents(site: Site, stored: Mount) -> None:
    """Make sure that a store which is in use now was not removed just before: an engine mounts an empty one then.

    Raises:
        BuildPlatformError: it was.
    """
    with engine_errors("look at the dependencies of an earlier build"):
        labels = labels_of(site.client.api.inspect_volume(stored.volume)["Labels"])
    if labels.get("role") != CONTENTS:
        raise BuildPlatformError("The dependencies of an earlier build were removed in the moment they were needed.")


def _find(site: Site, shared: SharedDependencies) -> str | None:
    name = shared.volume(f"store-{shared.key}")
    with engine_errors("look for the dependencies of an earlier build"):
        try:
            contents = labels_of(site.client.api.inspect_volume(name)["Labels"]).get("contents", "")
            site.client.api.inspect_volume(contents)
        except NotFound:
            remove_volume(site.client, name)  # it names what somebody has removed
            return None
    return contents


def _fill(site: Site, shared: SharedDependencies) -> str:
    limits = site.limits
    client = site.client
    contents = shared.volume(f"store-contents-{secrets.token_hex(6)}")
    cache = shared.volume(f"yarn-cache-{shared.cache_key}")
    first_seen = shared.volume(FIRST_SEEN)
    with contextlib.ExitStack() as stack:
        with engine_errors("make a volume"):
            client.api.create_volume(cache, driver="local", labels=shared.labels(CACHE))
            client.api.create_volume(contents, driver="local", labels=shared.labels(CONTENTS))
            if shared.inputs.archives:
                client.api.create_volume(first_seen, driver="local", labels=labels_for(shared.deployment, FIRST_SEEN))
        given_up = stack.enter_context(contextlib.ExitStack())
        given_up.callback(remove_volume, client, contents)
        source = stack.enter_context(site.disk("inputs"))
        work = stack.enter_context(site.memory("fill", limits.work_mb, limits.files))
        mounts = {
            CHECKOUTS: Mount(source, CHECKOUTS, writable=True),
            WORK: Mount(work, WORK, writable=True, size_mb=limits.work_mb),
            DEPENDENCIES: Mount(contents, DEPENDENCIES, writable=True),
            YARN_CACHE: Mount(cache, YARN_CACHE, writable=True),
        }
        if shared.inputs.archives:
            mounts[FIRST_SEEN_FOLDER] = Mount(first_seen, FIRST_SEEN_FOLDER, writable=True)
        with site.keeper("fill-keeper", list(mounts.values())) as keeper:
            site.send(keeper, CHECKOUTS, pack(shared.checkout, shared.inputs.files))
            for folder in mounts.keys() - {CHECKOUTS, WORK}:
                site.send(keeper, folder, own_folder(SHARED_FOLDER, BUILDER_USER))
            try:
                _install(site, shared, keeper, mounts)
            except PlayerBuildFailed:
                if shared.inputs.archives:  # what came may be wrong: let it come anew
                    given_up.callback(remove_volume, client, cache)
                raise
        given_up.pop_all()
    return _publish(site, shared, contents)


def _install(site: Site, shared: SharedDependencies, keeper: str, mounts: Mapping[str, Mount]) -> None:
    source, cache, work = (_read_only(mounts[folder]) for folder in (CHECKOUTS, YARN_CACHE, WORK))

    def run(part: str, mounted: list[Mount], way_out: Egress | None) -> None:
        fixed = {
            **shared.registry,
            "CHECKOUT_DIR": CHECKOUTS,
            "WORK_DIR": WORK,
            "STORE_DIR": f"{DEPENDENCIES}/{SHARED_FOLDER}",
            "YARN_CACHE_FOLDER": f"{YARN_CACHE}/{SHARED_FOLDER}",
            "FIRST_SEEN_DIR": f"{FIRST_SEEN_FOLDER}/{SHARED_FOLDER}",
            "GITHUB_ARCHIVES": " ".join(sorted(set(shared.inputs.archives.values()))),
        }
        command = ["/bin/bash", "/opt/lookit/install.sh", part]
        site.run(keeper, part, INSTALLATION, command, mounted, fixed, way_out=way_out)

    with shared.way_out() as way_out:
        # Nobody's code runs while the downloads are written; nobody can write them while packages' scripts run.
        run("fetch", [source, mounts[WORK], mounts[YARN_CACHE]], way_out)
        if shared.inputs.archives:
            run("compare", [mounts[WORK], cache, mounts[FIRST_SEEN_FOLDER]], None)
        run("install", [source, mounts[WORK], cache], way_out)
    run("keep", [work, mounts[DEPENDENCIES]], None)


def _read_only(mount: Mount) -> Mount:
    return Mount(mount.volume, mount.target, writable=False, size_mb=mount.size_mb)


def _publish(site: Site, shared: SharedDependencies, contents: str) -> str:
    name = shared.volume(f"store-{shared.key}")
    with engine_errors("keep the dependencies for the next build"):
        # Asked for a name that it has, an engine returns what is there.
        site.client.api.create_volume(name, driver="local", labels=shared.labels(STORE, contents=contents))
        first = labels_of(site.client.api.inspect_volume(name)["Labels"])["contents"]
    if first != contents:
        remove_volume(site.client, contents)
    return first
