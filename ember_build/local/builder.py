"""Builds a player as a child process on this machine, for development: only repositories that the operator trusts.

The player's code, and the install scripts of everything that it depends on, run with the rights of whoever runs this;
caches are shared between builds. A stranger's code belongs in a container.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from ember_build.bounded import LIMITED_CPU, SCRIPT_CPU_SECONDS, wait_for
from ember_build.builder import BUILD_SCRIPT, ENVIRONMENT_FILE, BuildOrder, Image, OutputLine, Removed
from ember_build.bundle import Bundle, check_bundle
from ember_build.child_process import Cancelled, TimeLimitReached, end_processes, run_child
from ember_build.errors import BuildCancelled, BuildPlatformError
from ember_build.local.toolchain import (
    Toolchain,
    describe_toolchain,
    find_node,
    install_toolchain,
    installed_toolchain,
    network_environment,
)
from ember_build.output import BoundedOutput
from ember_build.script_log import BUILD, INSTALLATION, Course
from ember_build.source.dependencies import Inputs, NotShared, inputs_of

_KEPT = "node_modules"
_SCRIPT_CHECK_SECONDS = 120


class LocalBuilder:
    """The port `Builder` without Docker. Everything it keeps is in `home`: tools, caches, dependencies, scratch.

    `toolchain`, `script` and `environment_file` are the project's own unless said otherwise; `grace` is what processes
    get between SIGTERM and SIGKILL; `ca_file` names certificate authorities that Node trusts besides its own.
    """

    def __init__(
        self,
        home: Path,
        time_limit: timedelta = timedelta(minutes=30),
        max_output_bytes: int = 10_000_000,
        *,
        toolchain: Toolchain | None = None,
        script: Path = BUILD_SCRIPT,
        environment_file: Path = ENVIRONMENT_FILE,
        grace: timedelta = timedelta(seconds=5),
        ca_file: Path | None = None,
    ) -> None:
        self._home = home.absolute()
        self._time_limit = time_limit
        self._max_output_bytes = max_output_bytes
        self._toolchain = toolchain
        self._script = script.absolute()
        self._environment_file = environment_file.absolute()
        self._grace = grace
        self._authorities = {"NODE_EXTRA_CA_CERTS": str(ca_file.absolute())} if ca_file else {}

    is_isolated = False

    def remove_orphans(self, is_running: Callable[[Mapping[str, str]], bool]) -> Removed:
        """Remove what no living build holds the lock of, whatever `is_running` says of labels: nothing here has any."""
        with _disk_errors("clear away what killed builds have left"):
            return Removed(removed=tuple(self._remove_abandoned_scratch()))

    def prepare(
        self,
        on_output: OutputLine,
        checkout: Path | None = None,
        labels: Mapping[str, str] | None = None,
        cancelled: threading.Event | None = None,
    ) -> Image:
        """Install the toolchain if it is not there yet, and clear away what a killed worker has left.

        There is one toolchain, whatever the checkout asks for, and nothing here could carry labels.
        """
        began = time.monotonic()
        with _disk_errors("prepare the build tools"):
            self._remove_abandoned_scratch()
            toolchain = self._toolchain or install_toolchain(
                self._home, on_output, self._time_limit, cancelled, self._authorities
            )
        return Image(
            name=f"local-toolchain:{toolchain.key}",
            description=describe_toolchain(),
            seconds=time.monotonic() - began,
        )

    def build(self, order: BuildOrder, on_output: OutputLine, cancelled: threading.Event | None = None) -> Bundle:
        """Run build.sh on the order; see the port for what is promised."""
        toolchain = self._toolchain or installed_toolchain(self._home)
        if toolchain is None:
            raise BuildPlatformError(f"The build tools are not in {self._home}; the next build installs them.")
        if not order.checkout.is_dir():
            raise BuildPlatformError(f"The checkout {order.checkout} is not there any more; it must be fetched again.")
        if order.output.exists():
            raise BuildPlatformError(f"The output folder {order.output} exists already; name a new one for this build.")
        with _disk_errors(f"build {order.checkout.name}"), self._scratch() as scratch:
            return self._build_in(scratch, order, toolchain, on_output, cancelled)

    def _build_in(
        self,
        scratch: Path,
        order: BuildOrder,
        toolchain: Toolchain,
        on_output: OutputLine,
        cancelled: threading.Event | None,
    ) -> Bundle:
        deadline = time.monotonic() + self._time_limit.total_seconds()
        inputs = inputs_of(order.checkout, deadline=deadline, cancelled=cancelled)
        key = _dependencies_key(inputs, toolchain)
        stored = self._home / "dependencies" / key if key else None
        order.output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = order.output.with_name(f".{order.output.name}.{scratch.name}")
        for name in ("home", "tmp"):
            (scratch / name).mkdir()
        try:
            yarn_cache = self._yarn_cache(scratch, inputs)
            self._run_script(scratch, order, unfinished, stored, yarn_cache, toolchain, on_output, deadline, cancelled)
            check = _script_check(find_node(toolchain), deadline, cancelled)
            bundle = check_bundle(
                unfinished, order.prefix, check, checkout=order.checkout, deadline=deadline, cancelled=cancelled
            )
            unfinished.rename(order.output)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        # Only now is it known that they are good for something.
        if stored:
            self._store_dependencies(scratch / "work", stored)
        return replace(bundle, root=order.output)

    def _run_script(
        self,
        scratch: Path,
        order: BuildOrder,
        output: Path,
        stored: Path | None,
        yarn_cache: Path,
        toolchain: Toolchain,
        on_output: OutputLine,
        deadline: float,
        cancelled: threading.Event | None,
    ) -> None:
        common = {
            **order.environment,  # build.sh keeps them from install scripts
            # Ours come last: no value of an order may change how the build runs.
            "PATH": f"{toolchain.bin}:/usr/bin:/bin",
            "HOME": str(scratch / "home"),
            "TMPDIR": str(scratch / "tmp"),
            "LANG": "C.UTF-8",
            "CI": "true",
            "NO_COLOR": "1",
            # Addons in C++ need the headers of the Node that will load them.
            "npm_config_nodedir": str(toolchain.bin.parent / "node"),
            "CHECKOUT_DIR": str(order.checkout.absolute()),
            "WORK_DIR": str(scratch / "work"),
            "OUTPUT_DIR": str(output.absolute()),
            "STUDY_PREFIX": order.prefix,
            "ENVIRONMENT_FILE": str(self._environment_file),
        }
        # Proxies, registries and their credentials are for the installation only: what follows needs no network.
        installing = {**network_environment(), **self._authorities, "YARN_CACHE_FOLDER": str(yarn_cache), **common}
        if stored and stored.is_dir():
            os.utime(stored)  # for a cleanup that goes by the last use
            installing["DEPENDENCIES_DIR"] = str(stored)

        bounded = BoundedOutput(on_output, self._max_output_bytes)
        course = Course(bounded.add)
        for phase, environment in ((INSTALLATION, installing), (BUILD, common)):
            try:
                status = run_child(
                    ["/bin/bash", str(self._script), phase],
                    folder=scratch,
                    environment=environment,
                    on_line=course.add,
                    time_limit=timedelta(seconds=deadline - time.monotonic()),
                    cancelled=cancelled,
                    grace=self._grace,
                    mark=scratch.name,
                )
            except Cancelled:
                bounded.close()
                raise BuildCancelled(f"The build was cancelled during `{course.step}`.") from None
            except TimeLimitReached:
                bounded.close()
                raise course.out_of_time(phase, self._time_limit) from None
            if status != 0:
                bounded.close()
                raise course.error(phase, status)
        bounded.close()

    def _yarn_cache(self, scratch: Path, inputs: Inputs | NotShared) -> Path:
        """The downloads that builds share, or this build's own: where an entry of the lock file has no hash, yarn would
        take what another commit has fetched of the same version.
        """
        is_hashed = not inputs.archives if isinstance(inputs, Inputs) else inputs.is_hashed
        cache = (self._home / "cache" if is_hashed else scratch) / "yarn"
        cache.mkdir(parents=True, exist_ok=True)
        return cache

    def _store_dependencies(self, work: Path, stored: Path) -> None:
        """Move what yarn installed to where the next build with the same lock file finds it; the first one wins."""
        if stored.exists():
            return
        stored.parent.mkdir(parents=True, exist_ok=True)
        unfinished = stored.with_name(f".{stored.name}.{secrets.token_hex(4)}")
        try:
            unfinished.mkdir()
            # Not bower_components: bower has no lock file. What it takes for a range, or what its packages ask for
            # in turn, may be another version tomorrow, and a path in bower.json leads to this commit's own files.
            if (work / _KEPT).is_dir():
                (work / _KEPT).rename(unfinished / _KEPT)
            unfinished.rename(stored)
        except OSError:
            # Another build was quicker, or the disk is full: the bundle is complete all the same.
            shutil.rmtree(unfinished, ignore_errors=True)

    @contextlib.contextmanager
    def _scratch(self) -> Generator[Path]:
        """Yield a new folder that is removed at the end; its lock tells that somebody is still working in it."""
        scratch, lock = self._locked_scratch()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(lock)

    def _locked_scratch(self) -> tuple[Path, int]:
        while True:
            scratch = self._home / "scratch" / secrets.token_hex(16)
            scratch.mkdir(parents=True)
            # A prepare() elsewhere may take it for an abandoned one before it has its lock.
            with contextlib.suppress(FileNotFoundError):
                lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(lock, fcntl.LOCK_EX)
                if scratch.exists():
                    return scratch, lock
                os.close(lock)

    def _remove_abandoned_scratch(self) -> list[str]:
        """End and remove what a worker left that was killed itself: processes carry the name of their folder."""
        removed: list[str] = []
        for scratch in (self._home / "scratch").glob("*"):
            try:
                lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # its build has ended meanwhile
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                end_processes(scratch.name, None, self._grace)
                shutil.rmtree(scratch, ignore_errors=True)
                removed.append(str(scratch))
            except BlockingIOError:
                continue  # its build is running
            finally:
                os.close(lock)
        return removed


def _dependencies_key(inputs: Inputs | NotShared, toolchain: Toolchain) -> str | None:
    """Name the node_modules after all that decides about them; None where a build must not reuse another's.

    Here the installation sees the whole repository, so files of it among the dependencies rule that out, too.
    """
    if isinstance(inputs, NotShared) or inputs.own_files:
        return None
    return hashlib.sha256(f"{toolchain.key}\n{_KEPT}\n{inputs.digest}".encode()).hexdigest()[:32]


def _script_check(node: str, deadline: float, cancelled: threading.Event | None) -> Callable[[Path], str | None]:
    """Return a check that lets Node parse a script without running it."""

    def check(script: Path) -> str | None:
        # Through standard input: as a file it would be read as a module if some package.json above it says so.
        with script.open("rb") as source, tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                [*LIMITED_CPU, str(SCRIPT_CPU_SECONDS), node, "--check", "-"],
                stdin=source,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            )
            status = wait_for(child, script.name, _SCRIPT_CHECK_SECONDS, deadline, cancelled)
            errors.seek(0)
            said = errors.read(1_000_000).decode("utf-8", "replace")
        if status == 0:
            return None
        if -status in {signal.SIGXCPU, signal.SIGABRT}:
            return f"parsing it takes more than {SCRIPT_CPU_SECONDS} s of CPU time, or more memory than Node has."
        reasons = [line for line in said.splitlines() if "Error:" in line]
        if not any("SyntaxError" in line or "RangeError" in line for line in reasons):
            raise BuildPlatformError(f"Node could not read {script.name}: {said[-500:]}")
        return reasons[0].strip()[:500]

    return check


@contextlib.contextmanager
def _disk_errors(doing: str) -> Generator[None]:
    """Tell an error of the machine as ours: what a player does wrong arrives as an exit status."""
    try:
        yield
    except OSError as error:
        raise BuildPlatformError(f"This machine could not {doing}: {error}.") from error
