"""Builds a player as a child process on this machine, for development: only repositories that the operator trusts.

The player's code, and the install scripts of everything that it depends on, run with the rights of whoever runs this;
caches are shared between builds. A stranger's code belongs in a container.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from ember_build.builder import BuildCancelled, BuildOrder, Image, OutputLine
from ember_build.bundle import Bundle, check_bundle
from ember_build.child_process import BoundedOutput, Cancelled, TimeLimitReached, end_processes, run_child
from ember_build.errors import BuildPlatformError, PlayerBuildFailed
from ember_build.local_toolchain import (
    Toolchain,
    describe_toolchain,
    find_node,
    install_toolchain,
    installed_toolchain,
    network_environment,
)

BUILD_SCRIPT = Path(__file__).with_name("build.sh")
ENVIRONMENT_FILE = Path(__file__).with_name("environment")

_STEP = "==> "
_INSTALL_STEPS = ("yarn install", "bower install")
_UNREACHABLE = re.compile(
    r"\b(ENOTFOUND|ECONNREFUSED|ECONNRESET|ECONNABORTED|ETIMEDOUT|ESOCKETTIMEDOUT|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH)\b"
    r"|trouble with your network connection|\b(429 Too Many Requests|50[0-9] [A-Z])|returned a 50\d\b"
)
_DISK_FULL = re.compile(r"\b(ENOSPC|EDQUOT)\b|No space left on device|Disk quota exceeded")
_KILLED = (-9, 137)
_LAST_LINES = 8
_SCRIPT_CHECK_SECONDS = 120


class LocalBuilder:
    """The port `Builder` without Docker. Everything it keeps is in `home`: tools, caches, dependencies, scratch.

    `toolchain`, `script` and `environment_file` are the project's own unless said otherwise; `grace` is what processes
    get between SIGTERM and SIGKILL.
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
    ) -> None:
        self._home = home.absolute()
        self._time_limit = time_limit
        self._max_output_bytes = max_output_bytes
        self._toolchain = toolchain
        self._script = script.absolute()
        self._environment_file = environment_file.absolute()
        self._grace = grace

    def prepare(self, on_output: OutputLine) -> Image:
        """Install the toolchain if it is not there yet, and clear away what a killed worker has left."""
        began = time.monotonic()
        with _disk_errors("prepare the build tools"):
            self._remove_abandoned_scratch()
            toolchain = self._toolchain or install_toolchain(self._home, on_output, self._time_limit)
        return Image(
            name=f"local-toolchain:{toolchain.key}",
            description=describe_toolchain(),
            seconds=time.monotonic() - began,
        )

    def build(self, order: BuildOrder, on_output: OutputLine, cancelled: threading.Event | None = None) -> Bundle:
        """Run build.sh on the order; see the port for what is promised."""
        toolchain = self._toolchain or installed_toolchain(self._home)
        if toolchain is None:
            raise BuildPlatformError(f"The build tools are not in {self._home}: call prepare() first.")
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
        key = _dependencies_key(order.checkout, toolchain)
        stored = self._home / "dependencies" / key if key else None
        order.output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = order.output.with_name(f".{order.output.name}.{scratch.name}")
        try:
            self._run_script(scratch, order, unfinished, stored, toolchain, on_output, cancelled)
            bundle = check_bundle(unfinished, order.prefix, _script_check(find_node(toolchain)))
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
        toolchain: Toolchain,
        on_output: OutputLine,
        cancelled: threading.Event | None,
    ) -> None:
        yarn_cache = self._home / "cache" / "yarn"
        yarn_cache.mkdir(parents=True, exist_ok=True)
        for name in ("home", "tmp"):
            (scratch / name).mkdir()
        environment = {
            **network_environment(),
            **order.environment,
            # Ours come last: no value of an order may change how the build runs.
            "PATH": f"{toolchain.bin}:/usr/bin:/bin",
            "HOME": str(scratch / "home"),
            "TMPDIR": str(scratch / "tmp"),
            "LANG": "C.UTF-8",
            "CI": "true",
            "NO_COLOR": "1",
            "YARN_CACHE_FOLDER": str(yarn_cache),
            # Addons in C++ need the headers of the Node that will load them.
            "npm_config_nodedir": str(toolchain.bin.parent / "node"),
            "CHECKOUT_DIR": str(order.checkout.absolute()),
            "WORK_DIR": str(scratch / "work"),
            "OUTPUT_DIR": str(output.absolute()),
            "STUDY_PREFIX": order.prefix,
            "ENVIRONMENT_FILE": str(self._environment_file),
        }
        if stored and stored.is_dir():
            os.utime(stored)  # for a cleanup that goes by the last use
            environment["DEPENDENCIES_DIR"] = str(stored)

        bounded = BoundedOutput(on_output, self._max_output_bytes)
        course = _Course(bounded.add)
        try:
            status = run_child(
                ["/bin/bash", str(self._script)],
                folder=scratch,
                environment=environment,
                on_line=course.add,
                time_limit=self._time_limit,
                cancelled=cancelled,
                grace=self._grace,
                mark=scratch.name,
            )
        except Cancelled:
            bounded.close()
            raise BuildCancelled(f"The build was cancelled during `{course.step}`.") from None
        except TimeLimitReached:
            bounded.close()
            raise PlayerBuildFailed(
                f"The build took longer than its time limit of {self._time_limit} and was ended during "
                f"`{course.step}`. {course.last_lines()}"
            ) from None
        bounded.close()
        if status != 0:
            raise course.error(status)

    def _store_dependencies(self, work: Path, stored: Path) -> None:
        """Move what was installed to where the next build with the same lock files finds it; the first one wins."""
        if stored.exists():
            return
        stored.parent.mkdir(parents=True, exist_ok=True)
        unfinished = stored.with_name(f".{stored.name}.{secrets.token_hex(4)}")
        try:
            unfinished.mkdir()
            for name in ("node_modules", "bower_components"):
                if (work / name).is_dir():
                    (work / name).rename(unfinished / name)
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

    def _remove_abandoned_scratch(self) -> None:
        """End and remove what a worker left that was killed itself: processes carry the name of their folder."""
        for scratch in (self._home / "scratch").glob("*"):
            try:
                lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # its build has ended meanwhile
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                end_processes(scratch.name, None, self._grace)
                shutil.rmtree(scratch, ignore_errors=True)
            except BlockingIOError:
                continue  # its build is running
            finally:
                os.close(lock)


class _Course:
    """Follows the output of build.sh: which step it is in, and its last lines."""

    def __init__(self, on_line: OutputLine) -> None:
        self._on_line = on_line
        self._recent: deque[str] = deque(maxlen=200)
        self.step = "start"

    def add(self, line: str) -> None:
        if line.startswith(_STEP):
            self.step = line.removeprefix(_STEP)
            self._recent.clear()
        elif line.strip():
            self._recent.append(line)
        self._on_line(line)

    def last_lines(self) -> str:
        # Where in yarn's own code it failed tells nobody anything, and pushes out the line that does.
        lines = [line for line in self._recent if not line.lstrip().startswith("at ")][-_LAST_LINES:]
        if not lines:
            return "It printed nothing."
        return "Its last lines:\n" + "\n".join(lines)

    def error(self, status: int) -> PlayerBuildFailed | BuildPlatformError:
        """Say whose fault it is that the script ended with this status."""
        said = "\n".join(self._recent)
        told = f"`{self.step}` ended with status {status}. {self.last_lines()}"
        if _DISK_FULL.search(said):
            return BuildPlatformError(f"The disk is full: {told}")
        if self.step.startswith(_INSTALL_STEPS) and _UNREACHABLE.search(said):
            return BuildPlatformError(f"The package registry could not be reached: {told}")
        if status in _KILLED:
            return BuildPlatformError(f"The build was killed from outside, most likely for want of memory: {told}")
        return PlayerBuildFailed(told)


def _dependencies_key(checkout: Path, toolchain: Toolchain) -> str | None:
    """Name the dependencies after all that decides about them; None where a build must not reuse another's.

    That is so where nothing is pinned, and where the installation takes in files of the repository itself.
    """
    if not (checkout / "yarn.lock").is_file():
        return None
    try:
        package: dict[str, Any] = json.loads((checkout / "package.json").read_bytes())
        wanted = {**package.get("dependencies", {}), **package.get("devDependencies", {})}
        scripts = package.get("scripts", {})
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # yarn will say what is wrong with it
    own_files = any(str(version).startswith(("file:", "link:", ".", "/", "~/")) for version in wanted.values())
    own_scripts = {"preinstall", "install", "postinstall", "prepare", "prepublish"} & set(scripts)
    if own_files or own_scripts or "workspaces" in package:
        return None
    digest = hashlib.sha256(toolchain.key.encode())
    for name in ("package.json", "yarn.lock", "bower.json", ".yarnrc", ".npmrc", ".bowerrc"):
        file = checkout / name
        contents = file.read_bytes() if file.is_file() else b""
        digest.update(f"\n{name} {len(contents)}\n".encode() + contents)
    return digest.hexdigest()[:32]


def _script_check(node: str) -> Callable[[Path], str | None]:
    """Return a check that lets Node parse a script without running it."""

    def check(script: Path) -> str | None:
        # Through standard input: as a file it would be read as a module if some package.json above it says so.
        try:
            with script.open("rb") as source:
                done = subprocess.run(
                    [node, "--check", "-"],
                    stdin=source,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                    timeout=_SCRIPT_CHECK_SECONDS,
                    check=False,
                )
        except subprocess.TimeoutExpired:
            raise BuildPlatformError(f"Node did not read {script.name} within {_SCRIPT_CHECK_SECONDS} s.") from None
        if done.returncode == 0:
            return None
        reasons = [line for line in done.stderr.splitlines() if "Error:" in line]
        if not any("SyntaxError" in line for line in reasons):
            raise BuildPlatformError(f"Node could not read {script.name}: {done.stderr[-500:]}")
        return reasons[0].strip()

    return check


@contextlib.contextmanager
def _disk_errors(doing: str) -> Generator[None]:
    """Tell an error of the machine as ours: what a player does wrong arrives as an exit status."""
    try:
        yield
    except OSError as error:
        raise BuildPlatformError(f"This machine could not {doing}: {error}.") from error
