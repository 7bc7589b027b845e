"""Builds a player in Docker: a stranger's code, in containers that have been seen to be confined.

One build is, on the engine: a volume with the checkout, two sized tmpfs volumes for the work and the output, a keeper
(a container that only holds them), one container per phase, and for the first phase the way out. All of it carries the
build's labels, and all of it is removed at the end.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import docker

from ember_build.bounded import LIMITED_CPU, SCRIPT_CPU_SECONDS
from ember_build.builder import BuildCancelled, BuildOrder, Image, OutputLine, Removed
from ember_build.bundle import Bundle, check_bundle
from ember_build.child_process import Cancelled, TimeLimitReached
from ember_build.disk import require
from ember_build.docker.build_containers import (
    CHECKOUTS,
    DEPENDENCIES,
    DEPLOYMENTS,
    KEEPER_MEMORY_MB,
    TEMPORARY,
    WORK,
    Site,
)
from ember_build.docker.cleanup import EngineUsage, engine_usage, remove_images, remove_stores
from ember_build.docker.confinement import MB, Limits, Mount
from ember_build.docker.container import run_in
from ember_build.docker.dependency_cache import SHARED_FOLDER, SharedDependencies, find_or_fill, require_contents
from ember_build.docker.engine import connect, engine_errors, expected_answers, filters_for, labels_for, remove_orphans
from ember_build.docker.host import EngineHost, look_at_engine_host
from ember_build.docker.images import build_image, find_image, image_context, image_tag, layers_key
from ember_build.docker.proxy import Egress, egress
from ember_build.docker.tar_stream import pack, unpack
from ember_build.errors import BuildPlatformError, PlayerBuildFailed
from ember_build.output import BoundedOutput
from ember_build.removal import Removal
from ember_build.script_log import BUILD, INSTALLATION, Course
from ember_build.source.dependencies import NotShared, inputs_of
from ember_build.source.node_version import PROFILES, choose_profile
from ember_build.waiting import answer_of

_ENDLESS_OUTPUT = 20
"""How many times the output that is kept a build may print before it is ended."""
_EXHAUSTED = frozenset({134, 137, 152})
"""Exit statuses of a parser without memory (SIGABRT, SIGKILL) or CPU time (SIGXCPU)."""


@dataclass(frozen=True, slots=True)
class _Volumes:
    """Of one build; `keeper` is the container that holds them."""

    source: Mount
    work: Mount
    output: Mount
    keeper: str


def _apart_from_answers(is_running: Callable[[Mapping[str, str]], bool]) -> Callable[[Mapping[str, str]], bool]:
    """Keep an error of the caller's own question from looking like an answer of the engine."""

    def asked(labels: Mapping[str, str]) -> bool:
        try:
            return is_running(labels)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RuntimeError(f"whether a build runs cannot be told: {error}") from error

    return asked


class DockerBuilder:
    """The port `Builder` on a Docker engine, which need not be on this machine.

    `deployment` keeps apart what several installations have on one engine. `open_networks` are the addresses, networks
    and names, besides public ones, that a build may reach while it fetches its dependencies, from `registry` if one is
    named. `ca_file` holds certificate authorities that builds trust besides Debian's. A build starts only if
    `free_disk_mb` are free where the engine keeps its data. `on_checked` is told about
    each container of a build, by phase and id, when it waits and before anything of the player runs.
    """

    is_isolated = True

    def __init__(
        self,
        deployment: str,
        *,
        engine_url: str | None = None,
        limits: Limits | None = None,
        time_limit: timedelta = timedelta(minutes=30),
        max_output_bytes: int = 10_000_000,
        open_networks: Sequence[str] = (),
        registry: str | None = None,
        ca_file: Path | None = None,
        free_disk_mb: int = 0,
        on_checked: Callable[[str, str], None] | None = None,
    ) -> None:
        self._deployment = deployment
        self._engine_url = engine_url
        self._limits = limits or Limits()
        self._time_limit = time_limit
        self._max_output_bytes = max_output_bytes
        self._open_networks = (*open_networks, *([_door_to(registry)] if registry else []))
        self._registry = {"YARN_REGISTRY": registry, "npm_config_registry": registry} if registry else {}
        self._ca_file = ca_file
        self._free_disk_mb = free_disk_mb
        self._on_checked = on_checked

    def prepare(
        self,
        on_output: OutputLine,
        checkout: Path | None = None,
        labels: Mapping[str, str] | None = None,
        cancelled: threading.Event | None = None,
    ) -> Image:
        """Build the image that the checkout asks for; an unchanged one comes from the engine's cache."""
        profile = choose_profile(checkout, cancelled) if checkout else PROFILES[0]

        def build() -> Image:
            with self._client() as client:
                return build_image(client, self._deployment, profile, _context(self._ca_file), on_output, labels)

        # After a cancellation the engine ends the image all the same: the next build takes it from there.
        return answer_of(build, cancelled, "its image was built")

    def remove_orphans(self, is_running: Callable[[Mapping[str, str]], bool]) -> Removed:
        """Remove what builds have left that do not run any more."""
        with self._client() as client, expected_answers("list what builds have left"):
            return remove_orphans(client, self._deployment, _apart_from_answers(is_running))

    def clean_images(
        self, older_than: datetime, is_running: Callable[[Mapping[str, str]], bool], *, dry_run: bool
    ) -> Removal:
        """Remove the images of earlier builds; those that the next build would take stay."""
        context = _context(self._ca_file)
        current = {image_tag(self._deployment, profile, context) for profile in PROFILES}
        with self._client() as client, expected_answers("list its images"):
            return remove_images(
                client, self._deployment, older_than, current, _apart_from_answers(is_running), dry_run=dry_run
            )

    def clean_stores(self, older_than: datetime, *, dry_run: bool) -> Removal:
        """Remove shared dependencies and downloads that are that old."""
        longest_fill = datetime.now(UTC) - 2 * self._time_limit
        with self._client() as client, expected_answers("list its volumes"):
            return remove_stores(client, self._deployment, older_than, longest_fill, dry_run=dry_run)

    def usage(self) -> tuple[EngineUsage | None, EngineHost | None]:
        """Say how much room our things take on the engine, and what its host has.

        None for the first if the engine does not say, for the second without any image of ours.
        """
        with self._client() as client, expected_answers("say how much room it has"):
            used = engine_usage(client, self._deployment)
            with engine_errors("list its images"):
                images = client.api.images(filters=filters_for(self._deployment, role="image"))
            labels = labels_for(self._deployment, "look", {"request": "none"})  # so that a pruning takes it
            return used, look_at_engine_host(client, images[0]["Id"], labels) if images else None

    def build(self, order: BuildOrder, on_output: OutputLine, cancelled: threading.Event | None = None) -> Bundle:
        """Run build.sh on the order, each phase in a container of its own; see the port for what is promised."""
        if not order.checkout.is_dir():
            raise BuildPlatformError(f"The checkout {order.checkout} is not there any more; it must be fetched again.")
        if order.output.exists():
            raise BuildPlatformError(f"The output folder {order.output} exists already; name a new one for this build.")
        name = f"lookit-{self._deployment}-{secrets.token_hex(6)}"
        labels = labels_for(self._deployment, "build", {"request": name, **order.labels})
        bounded = BoundedOutput(on_output, self._max_output_bytes)
        limits = self._limits
        room = (
            f"{limits.work_mb:,} MB for its files, {limits.temporary_mb:,} MB for temporary ones and "
            f"{limits.output_mb:,} MB for what it makes"
        )
        course = Course(bounded.add, room)
        with self._client() as client:
            image = order.image or self._find_image(client, order.checkout, cancelled)
            site = Site(
                client=client,
                image=image,
                name=name,
                labels=labels,
                limits=limits,
                time_limit=self._time_limit,
                most_output_bytes=_ENDLESS_OUTPUT * self._max_output_bytes,
                course=course,
                deadline=time.monotonic() + self._time_limit.total_seconds(),
                cancelled=cancelled,
                on_checked=self._on_checked,
            )
            host = look_at_engine_host(client, image, labels)
            require("the Docker engine's host", "of memory available", host.available_memory_mb, limits.memory_mb)
            require("the Docker engine's disk", "free", host.free_disk_mb, self._free_disk_mb)
            try:
                return self._build_on(site, order, host)
            except Cancelled:
                raise BuildCancelled(f"The build was cancelled during `{course.step}`.") from None
            finally:
                bounded.close()

    def _build_on(self, site: Site, order: BuildOrder, host: EngineHost) -> Bundle:
        shared = self._shared(site, order, host)
        stored = find_or_fill(site, shared) if shared else None
        with self._volumes(site, stored) as volumes:
            site.send(volumes.keeper, CHECKOUTS, pack(order.checkout))
            self._run_phases(site, volumes, order, host, stored)
            return self._collect(site, volumes, order)

    def _find_image(self, client: docker.DockerClient, checkout: Path, cancelled: threading.Event | None) -> str:
        return find_image(client, self._deployment, choose_profile(checkout, cancelled), _context(self._ca_file))

    @contextlib.contextmanager
    def _client(self) -> Generator[docker.DockerClient]:
        client = connect(self._engine_url)
        try:
            yield client
        finally:
            client.close()

    @contextlib.contextmanager
    def _volumes(self, site: Site, stored: Mount | None) -> Generator[_Volumes]:
        limits = self._limits
        with (
            site.disk("checkout") as source,
            site.memory("work", limits.work_mb, limits.files) as work,
            site.memory("output", limits.output_mb, limits.output_files + 1000) as output,
        ):
            mounts = (
                Mount(source, CHECKOUTS, writable=True),
                Mount(work, WORK, writable=True, size_mb=limits.work_mb),
                Mount(output, DEPLOYMENTS, writable=True, size_mb=limits.output_mb),
            )
            # With the store among them, no cleanup can remove it meanwhile.
            with site.keeper("keeper", [*mounts, *([stored] if stored else [])]) as keeper:
                if stored:
                    require_contents(site, stored)
                yield _Volumes(replace(mounts[0], writable=False), mounts[1], mounts[2], keeper)

    def _shared(self, site: Site, order: BuildOrder, host: EngineHost) -> SharedDependencies | None:
        """What this build may share with others, if it may: only builds of one trusted repository do."""
        repository = order.labels.get("repository")
        if not (order.trusted and repository):
            return None
        inputs = inputs_of(order.checkout, deadline=site.deadline, cancelled=site.cancelled)
        if isinstance(inputs, NotShared):
            return self._share_nothing(site, inputs.reason)
        if inputs.own_files_for_bower:
            return self._share_nothing(site, "its bower.json wants files of the repository")
        return SharedDependencies(
            deployment=self._deployment,
            repository=repository,
            checkout=order.checkout,
            inputs=inputs,
            layers=layers_key(site.client, site.image),
            registry=self._registry,
            way_out=lambda: self._egress(site, host),
        )

    def _share_nothing(self, site: Site, reason: str) -> None:
        """Say why the dependencies are installed anew."""
        site.course.add(f"Dependencies are not shared with other builds: {reason}.")

    def _egress(self, site: Site, host: EngineHost) -> contextlib.AbstractContextManager[Egress]:
        return egress(site.client, site.image, site.name, site.limits, site.labels, host.addresses, self._open_networks)

    def _run_phases(
        self, site: Site, volumes: _Volumes, order: BuildOrder, host: EngineHost, stored: Mount | None
    ) -> None:
        common = {
            "CHECKOUT_DIR": CHECKOUTS,
            "WORK_DIR": WORK,
            "OUTPUT_DIR": DEPLOYMENTS,
            "STUDY_PREFIX": order.prefix,
            "ENVIRONMENT_FILE": "/environment",
        }

        def run(phase: str, mounts: Sequence[Mount], fixed: Mapping[str, str], way_out: Egress | None) -> None:
            values = order.environment if phase == BUILD else {}
            site.run(volumes.keeper, phase, phase, ["/bin/bash", "/build.sh", phase], mounts, fixed, values, way_out)

        if stored:
            fixed = {**common, "DEPENDENCIES_DIR": f"{DEPENDENCIES}/{SHARED_FOLDER}", "INSTALLED": "yes"}
            run(INSTALLATION, [volumes.source, volumes.work, stored], fixed, None)
        else:
            fixed = {**common, **self._registry, "YARN_CACHE_FOLDER": f"{TEMPORARY}/yarn-cache"}
            with self._egress(site, host) as way_out:
                run(INSTALLATION, [volumes.source, volumes.work], fixed, way_out)
        run(BUILD, [volumes.source, volumes.work, volumes.output], common, None)

    def _collect(self, site: Site, volumes: _Volumes, order: BuildOrder) -> Bundle:
        """Bring the output here, under another name until it has been found good."""
        limits = self._limits
        unfinished = order.output.with_name(f".{order.output.name}.{site.name}")
        try:
            order.output.parent.mkdir(parents=True, exist_ok=True)
            with engine_errors("hand over what was built"):
                stream, _ = site.client.api.get_archive(volumes.keeper, DEPLOYMENTS)
                with contextlib.closing(stream):
                    parts = _until_cancelled(stream, site.cancelled)
                    unpack(parts, unfinished, max_bytes=limits.output_mb * MB, max_files=limits.output_files)
            check = _script_check(site, volumes.keeper, unfinished)
            bundle = check_bundle(
                unfinished,
                order.prefix,
                check,
                checkout=order.checkout,
                deadline=site.deadline,
                cancelled=site.cancelled,
            )
            unfinished.rename(order.output)
        except OSError as error:
            raise BuildPlatformError(f"This machine could not take what was built: {error}.") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return replace(bundle, root=order.output)


def _until_cancelled(parts: Iterable[bytes], cancelled: threading.Event | None) -> Iterator[bytes]:
    for part in parts:
        if cancelled is not None and cancelled.is_set():
            raise BuildCancelled("The build was cancelled while the bundle was taken from the engine.")
        yield part


def _script_check(site: Site, keeper: str, root: Path) -> Callable[[Path], str | None]:
    """Return a check that lets a parser in the keeper read a script: nothing of the player runs in there."""

    def check(script: Path) -> str | None:
        inside = f"{DEPLOYMENTS}/{script.relative_to(root).as_posix()}"
        parser = ["/opt/script-check/node_modules/.bin/acorn", "--ecma2025", "--silent", inside]
        command = [*LIMITED_CPU, str(SCRIPT_CPU_SECONDS), *parser]
        try:
            status, said = run_in(site.client, keeper, command, site.deadline, site.cancelled)
        except TimeLimitReached:
            raise PlayerBuildFailed(f"The build reached its time limit while {script.name} was read.") from None
        if status == 0:
            return None
        if status in _EXHAUSTED:
            site.require_life(keeper)
            return (
                f"parsing it takes more than {SCRIPT_CPU_SECONDS} s of CPU time or {KEEPER_MEMORY_MB} MB of memory."
                " Split it, or keep data out of it."
            )
        reason = said.strip().splitlines()[-1:] or ["it could not be parsed"]
        if status == 1:
            return f"SyntaxError: {reason[0][:500]}"
        raise BuildPlatformError(f"{script.name} could not be read in the container (status {status}): {reason[0]}")

    return check


def _context(ca_file: Path | None) -> bytes:
    if ca_file is None:
        return image_context()
    try:
        return image_context(authorities=ca_file.read_bytes())
    except OSError as error:
        raise BuildPlatformError(
            f"The certificates in {ca_file} cannot be read: {error.strerror}; check LOOKIT_BUILD_CA_FILE."
        ) from error


def _door_to(registry: str) -> str:
    """Name the registry for the proxy: the operator named it, so it may stand anywhere."""
    address = urlsplit(registry)
    port = address.port or (443 if address.scheme == "https" else 80)
    host = address.hostname or ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
