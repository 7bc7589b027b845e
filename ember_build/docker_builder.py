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
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import docker

from ember_build.archive import pack, unpack
from ember_build.builder import BuildCancelled, BuildOrder, Image, OutputLine
from ember_build.bundle import Bundle, check_bundle
from ember_build.child_process import Cancelled, TimeLimitReached
from ember_build.confinement import MB, Confinement, Limits, Mount, tmpfs_options
from ember_build.container import Command, OutputLimitReached, confined_container, removed_container, removed_volume
from ember_build.course import BUILD, INSTALLATION, Course
from ember_build.egress import SOCKET, SOCKET_FOLDER, Egress, egress
from ember_build.engine import Swept, connect, engine_errors, labels_for, sweep_orphans
from ember_build.errors import BuildPlatformError, PlayerBuildFailed
from ember_build.image import BUILD_SCRIPT, build_image, choose_profile, find_image
from ember_build.output import BoundedOutput, Lines

_CHECKOUTS, _WORK, _DEPLOYMENTS = "/checkouts", "/work", "/deployments"
_TEMPORARY = "/tmp"  # noqa: S108 - the container's own
_KEEPER_MEMORY_MB = 512
# After this a container ends by itself, should nobody be left who could end it.
_ORPHAN_SECONDS = 120
_ENDLESS_OUTPUT = 20
"""How many times the output that is kept a build may print before it is ended."""


@dataclass(frozen=True, slots=True)
class _Site:
    """What one build has on the engine."""

    client: docker.DockerClient
    image: str
    name: str
    labels: Mapping[str, str]
    source: str
    work: str
    output: str
    keeper: str
    deadline: float
    cancelled: threading.Event | None


class DockerBuilder:
    """The port `Builder` on a Docker engine, which need not be on this machine.

    `deployment` keeps apart what several installations have on one engine. `open_networks` are the addresses, networks
    and names, besides public ones, that a build may reach while it fetches its dependencies. `on_checked` is told
    about each container of a build, by phase and id, when it waits and before anything of the player runs.
    """

    def __init__(
        self,
        deployment: str,
        *,
        engine_url: str | None = None,
        limits: Limits | None = None,
        time_limit: timedelta = timedelta(minutes=30),
        max_output_bytes: int = 10_000_000,
        open_networks: Sequence[str] = (),
        build_script: Path = BUILD_SCRIPT,
        on_checked: Callable[[str, str], None] | None = None,
    ) -> None:
        self._deployment = deployment
        self._engine_url = engine_url
        self._limits = limits or Limits()
        self._time_limit = time_limit
        self._max_output_bytes = max_output_bytes
        self._open_networks = tuple(open_networks)
        self._build_script = build_script
        self._on_checked = on_checked

    def prepare(
        self, on_output: OutputLine, checkout: Path | None = None, labels: Mapping[str, str] | None = None
    ) -> Image:
        """Build the image that the checkout asks for; an unchanged one comes from the engine's cache."""
        profile = choose_profile(checkout) if checkout else choose_profile(Path("/nonexistent"))
        with self._client() as client:
            return build_image(client, self._deployment, profile, on_output, labels)

    def sweep_orphans(self, is_running: Callable[[str], bool]) -> Swept:
        """Remove what builds have left whose request (the label `request`) does not run any more."""
        with self._client() as client:
            return sweep_orphans(client, self._deployment, is_running)

    def build(self, order: BuildOrder, on_output: OutputLine, cancelled: threading.Event | None = None) -> Bundle:
        """Run build.sh on the order, each phase in a container of its own; see the port for what is promised."""
        if not order.checkout.is_dir():
            raise BuildPlatformError(f"The checkout {order.checkout} is not there any more; it must be fetched again.")
        if order.output.exists():
            raise BuildPlatformError(f"The output folder {order.output} exists already; name a new one for this build.")
        with self._client() as client:
            image = order.image or find_image(client, self._deployment, choose_profile(order.checkout))
            with self._site(client, image, order, cancelled) as site:
                self._fill(site, order)
                self._run_phases(site, order, on_output)
                return self._collect(site, order)

    @contextlib.contextmanager
    def _client(self) -> Generator[docker.DockerClient]:
        client = connect(self._engine_url)
        try:
            yield client
        finally:
            client.close()

    @contextlib.contextmanager
    def _site(
        self, client: docker.DockerClient, image: str, order: BuildOrder, cancelled: threading.Event | None
    ) -> Generator[_Site]:
        name = f"lookit-{self._deployment}-{secrets.token_hex(6)}"
        labels = labels_for(self._deployment, "build", {"request": name, **order.labels})
        limits = self._limits
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(removed_volume(client, f"{name}-checkout", labels))
            work, output = (
                stack.enter_context(removed_volume(client, f"{name}-{part}", labels, tmpfs_options(size, files)))
                for part, size, files in (
                    ("work", limits.work_mb, limits.files),
                    ("output", limits.output_mb, limits.output_files + 1000),
                )
            )
            # A tmpfs volume lives as long as some container has it mounted: this one, for the whole build.
            keeper = stack.enter_context(
                removed_container(
                    client,
                    image,
                    f"{name}-keeper",
                    Confinement(
                        limits=limits,
                        mounts=(
                            Mount(source, _CHECKOUTS, writable=True),
                            Mount(work, _WORK, writable=True, size_mb=limits.work_mb),
                            Mount(output, _DEPLOYMENTS, writable=True, size_mb=limits.output_mb),
                        ),
                        memory_mb=_KEEPER_MEMORY_MB,
                        processes=64,
                    ),
                    labels,
                    ["/bin/sleep", str(int(self._time_limit.total_seconds()) + 2 * _ORPHAN_SECONDS)],
                )
            )
            with engine_errors("start a container"):
                client.api.start(keeper)
            yield _Site(
                client=client,
                image=image,
                name=name,
                labels=labels,
                source=source,
                work=work,
                output=output,
                keeper=keeper,
                deadline=time.monotonic() + self._time_limit.total_seconds(),
                cancelled=cancelled,
            )

    def _fill(self, site: _Site, order: BuildOrder) -> None:
        """Send the checkout to the engine."""

        def parts() -> Generator[bytes]:
            for part in pack(order.checkout):
                if site.cancelled is not None and site.cancelled.is_set():
                    raise BuildCancelled("The build was cancelled while its checkout was sent to the engine.")
                yield part

        try:
            with engine_errors("take the checkout"):
                site.client.api.put_archive(site.keeper, _CHECKOUTS, parts())
        except OSError as error:
            raise BuildPlatformError(f"This machine could not read the checkout {order.checkout}: {error}.") from error

    def _run_phases(self, site: _Site, order: BuildOrder, on_output: OutputLine) -> None:
        limits = self._limits
        bounded = BoundedOutput(on_output, self._max_output_bytes)
        room = (
            f"{limits.work_mb:,} MB for its files, {limits.temporary_mb:,} MB for temporary ones and "
            f"{limits.output_mb:,} MB for what it makes"
        )
        course = Course(bounded.add, room)
        common = {
            "HOME": f"{_TEMPORARY}/home",
            "TMPDIR": _TEMPORARY,
            "CHECKOUT_DIR": _CHECKOUTS,
            "WORK_DIR": _WORK,
            "OUTPUT_DIR": _DEPLOYMENTS,
            "STUDY_PREFIX": order.prefix,
            "ENVIRONMENT_FILE": "/environment",
        }
        try:
            with egress(site.client, site.image, site.name, limits, site.labels, self._open_networks) as way_out:
                self._run_phase(
                    site,
                    INSTALLATION,
                    {**common, "YARN_CACHE_FOLDER": f"{_TEMPORARY}/yarn-cache"},
                    {},
                    course,
                    way_out,
                )
            self._run_phase(site, BUILD, common, order.environment, course, None)
        except Cancelled:
            raise BuildCancelled(f"The build was cancelled during `{course.step}`.") from None
        finally:
            bounded.close()

    def _run_phase(
        self,
        site: _Site,
        phase: str,
        fixed: Mapping[str, str],
        values: Mapping[str, str],
        course: Course,
        way_out: Egress | None,
    ) -> None:
        limits = self._limits
        mounts = [
            Mount(site.source, _CHECKOUTS, writable=False),
            Mount(site.work, _WORK, writable=True, size_mb=limits.work_mb),
        ]
        if way_out:
            mounts.append(Mount(way_out.volume, SOCKET_FOLDER, writable=False))
        else:
            mounts.append(Mount(site.output, _DEPLOYMENTS, writable=True, size_mb=limits.output_mb))
        confinement = Confinement(limits=limits, mounts=tuple(mounts), temporary={_TEMPORARY: limits.temporary_mb})

        def checked(container_id: str) -> None:
            if self._on_checked:
                self._on_checked(phase, container_id)

        with confined_container(
            site.client, site.image, f"{site.name}-{phase}", confinement, site.labels, checked
        ) as container:
            left = int(max(0.0, site.deadline - time.monotonic())) + _ORPHAN_SECONDS
            container.give(
                Command(
                    ["/usr/bin/timeout", "--signal=KILL", str(left), "/bin/bash", "/build.sh", phase],
                    fixed=fixed,
                    values=values,
                    egress=SOCKET if way_out else None,
                )
            )
            lines = Lines(course.add)
            most_bytes = _ENDLESS_OUTPUT * self._max_output_bytes
            try:
                for data in container.read(site.deadline, site.cancelled, most_bytes):
                    lines.add(data)
            except TimeLimitReached:
                raise course.out_of_time(phase, self._time_limit) from None
            except OutputLimitReached:
                raise PlayerBuildFailed(
                    f"The build was ended during `{course.step}`: it printed more than {most_bytes:,} bytes, far more "
                    f"than anybody can read. {course.last_lines()}"
                ) from None
            lines.close()
            status, out_of_memory = container.status()
        if status == 0:
            return
        if out_of_memory:
            raise PlayerBuildFailed(
                f"The build needs more memory than the {limits.memory_mb:,} MB that it has, of which its files take a "
                "part. Make it smaller (fewer packages, fewer files at a time), or ask the operator for a higher "
                f"limit. It ended during `{course.step}` with status {status}. {course.last_lines()}"
            )
        error = course.error(phase, status)
        if way_out and (refused := way_out.refusals()):
            raise PlayerBuildFailed(
                f"The build asked for what it may not reach ({'; '.join(refused)}): dependencies must come from public "
                f"addresses, unless the operator opens others. {error}"
            )
        raise error

    def _collect(self, site: _Site, order: BuildOrder) -> Bundle:
        """Bring the output here, under another name until it has been found good."""
        limits = self._limits
        unfinished = order.output.with_name(f".{order.output.name}.{site.name}")
        try:
            order.output.parent.mkdir(parents=True, exist_ok=True)
            with engine_errors("hand over what was built"):
                stream, _ = site.client.api.get_archive(site.keeper, _DEPLOYMENTS)
                with contextlib.closing(stream):
                    unpack(stream, unfinished, max_bytes=limits.output_mb * MB, max_files=limits.output_files)
            bundle = check_bundle(unfinished, order.prefix, self._script_check(site, unfinished))
            unfinished.rename(order.output)
        except OSError as error:
            raise BuildPlatformError(f"This machine could not take what was built: {error}.") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return replace(bundle, root=order.output)

    def _script_check(self, site: _Site, root: Path) -> Callable[[Path], str | None]:
        """Return a check that lets a parser in the keeper read a script: nothing of the player runs in there."""

        def check(script: Path) -> str | None:
            inside = f"{_DEPLOYMENTS}/{script.relative_to(root).as_posix()}"
            command = ["/opt/script-check/node_modules/.bin/acorn", "--ecma2025", "--silent", inside]
            with engine_errors("read a script of the bundle"):
                run = site.client.api.exec_create(site.keeper, command, workdir="/")["Id"]
                said = site.client.api.exec_start(run).decode("utf-8", "replace")
                status = site.client.api.exec_inspect(run)["ExitCode"]
            if status == 0:
                return None
            reason = said.strip().splitlines()[-1:] or ["it could not be parsed"]
            if status == 1:
                return f"SyntaxError: {reason[0]}"
            raise BuildPlatformError(f"{script.name} could not be read in the container (status {status}): {reason[0]}")

        return check
