"""The Docker builder keeps the port's promises: what a build gets and gives, and how each of its ends is told."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import docker
import pytest

from ember_build.builder import BuildCancelled, Builder, BuildOrder
from ember_build.docker.confinement import Limits
from ember_build.errors import BuildPlatformError, PlayerBuildFailed
from tests.support.docker_engine import GOOD_DIST, PREFIX, REPOSITORY, Engine, Yard

pytestmark = pytest.mark.docker


def test_a_good_build_appears_whole_and_is_told_line_by_line(yard: Yard) -> None:
    builder: Builder = yard.builder()
    bundle = builder.build(yard.order(), yard.said.append)
    assert bundle.root == yard.output
    assert [str(file.path) for file in bundle.files] == ["assets/player.js", "index.html"]
    assert f"{PREFIX}assets/player.js" in (bundle.root / "index.html").read_text()
    assert [line for line in yard.said if line.startswith("==>")] == [
        "==> copy the checkout",
        f"==> put the study's prefix in place: {PREFIX}",
        "==> yarn install --pure-lockfile",
        "==> put the environment file in place",
        "==> ember build --environment=production",
        "==> copy dist to the output folder",
    ]
    assert list(yard.output.parent.iterdir()) == [yard.output]
    assert yard.left_on_the_engine() == []


def test_output_arrives_while_the_build_runs(yard: Yard) -> None:
    yard.player.write(ember=f"echo early; sleep 2; echo late\n{GOOD_DIST}")
    heard: dict[str, float] = {}
    yard.build(on_line=lambda line: heard.setdefault(line, time.monotonic()))
    assert heard["late"] - heard["early"] > 1.5


def test_an_unchanged_image_costs_about_a_second(yard: Yard, image: str) -> None:
    said: list[str] = []
    again = yard.builder().prepare(said.append, yard.player.folder)
    assert again.name == image
    assert again.seconds < 2
    assert any("Using cache" in line for line in said)


def test_an_image_names_the_build_that_it_was_made_for(yard: Yard, client: docker.DockerClient) -> None:
    made = yard.builder().prepare(lambda line: None, yard.player.folder, {"study": "5b2c", "request": "77"})
    labels = client.images.get(made.name).labels
    assert labels["lookit-ops.system"] == "lookit-ops"
    assert labels["lookit-ops.deployment"] == yard.deployment
    assert (labels["lookit-ops.study"], labels["lookit-ops.request"]) == ("5b2c", "77")


def test_values_reach_the_player_and_nobody_who_inspects_the_container(yard: Yard, client: docker.DockerClient) -> None:
    inspected: list[str] = []

    def look(line: str) -> None:
        if line == "ready":
            found = client.containers.list(filters={"label": f"lookit-ops.deployment={yard.deployment}"})
            inspected.extend(str(container.attrs) for container in found)

    yard.player.write(ember=f"echo ready; sleep 1; cp .env dist-env; {GOOD_DIST} cp .env dist/env.txt", install="env")
    bundle = yard.build(on_line=look, S3_SECRET_ACCESS_KEY="geheim", PATH="/evil")
    assert "S3_SECRET_ACCESS_KEY=geheim" in (bundle.root / "env.txt").read_text()
    assert inspected
    assert "geheim" not in "".join([*inspected, *yard.said])
    assert not any("/evil" in line for line in yard.said)


def test_the_environment_of_a_build_is_the_images_and_ours_and_nothing_of_this_process(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "must-not-be-seen")
    monkeypatch.setenv("HTTPS_PROXY", "http://must-not-be-seen:1")
    monkeypatch.setenv("NO_PROXY", "*")
    yard.player.write(ember=f"env\n{GOOD_DIST}")
    yard.build(SENTRY_DSN="a-value")
    names = {line.partition("=")[0] for line in yard.said if "=" in line and not line.startswith("==>")}
    assert "must-not-be-seen" not in "\n".join(yard.said)
    assert names == {
        *("CHECKOUT_DIR", "CI", "ENVIRONMENT_FILE", "HOME", "HOSTNAME", "LANG", "NODE_OPTIONS", "NO_COLOR"),
        *("OLDPWD", "OUTPUT_DIR", "PATH", "PREPEND_FINGERPRINT", "PWD", "SENTRY_DSN", "SHLVL", "SSL_CERT_FILE"),
        *("STUDY_PREFIX", "TMPDIR", "WORK_DIR", "_", "npm_config_nodedir"),
    }


def test_an_output_folder_that_exists_is_never_overwritten(yard: Yard) -> None:
    yard.output.mkdir(parents=True)
    (yard.output / "index.html").write_text("old")
    with pytest.raises(BuildPlatformError, match="exists already"):
        yard.build()
    assert (yard.output / "index.html").read_text() == "old"


def test_a_checkout_that_is_gone_is_the_platforms_fault(yard: Yard) -> None:
    order = BuildOrder(yard.root / "nowhere", PREFIX, {}, yard.output)
    with pytest.raises(BuildPlatformError, match="fetched again"):
        yard.builder().build(order, print)


# --- builds that fail


@pytest.mark.parametrize(
    ("ember", "told"),
    [
        ("exit 0", "made no dist folder"),
        ("mkdir dist", "dist folder is empty"),
        ("mkdir dist; echo x > dist/a.txt", r"no index\.html"),
        (GOOD_DIST + 'echo "var a = ;" > dist/assets/player.js', "SyntaxError"),
        (GOOD_DIST + 'echo "<script src=/else/a.js></script>" > dist/index.html', "prefix"),
        (
            "for n in {1..50}; do echo line $n; done; exit 3",
            r"`ember build .*` ended with status 3.*\n.*\n[^$]*line 50",
        ),
    ],
)
def test_a_build_without_a_usable_bundle_fails_as_the_players(yard: Yard, ember: str, told: str) -> None:
    yard.player.write(ember=ember)
    with pytest.raises(PlayerBuildFailed, match=told):
        yard.build()
    assert yard.nothing_is_left()


def test_a_syntax_of_later_years_is_not_taken_for_an_error(yard: Yard) -> None:
    script = "const b = {...window}; const c = b?.d ?? 1; class D { #e = 1n ** 2n; static {} }"
    yard.player.write(ember=f"{GOOD_DIST}\necho '{script}' > dist/assets/player.js")
    assert yard.build().file_count == 2


def test_a_package_from_a_registry_that_cannot_be_reached_is_the_networks_fault(yard: Yard) -> None:
    yard.engine = Engine(yard.engine.url, None)
    (yard.player.folder / ".npmrc").write_text("registry=http://registry.invalid/\n")
    yard.player.write()
    text = (
        (yard.player.folder / "package.json").read_text().replace('"devDep', '"dependencies": {"a": "1.0.0"}, "devDep')
    )
    (yard.player.folder / "package.json").write_text(text)
    with pytest.raises(BuildPlatformError, match="registry could not be reached") as error:
        yard.build()
    assert "did not reach: getaddrinfo ENOTFOUND registry.invalid" in str(error.value)
    assert yard.nothing_is_left()


@pytest.mark.parametrize(
    ("part", "fault"), [({"install": "sleep 99"}, BuildPlatformError), ({"ember": "sleep 99"}, PlayerBuildFailed)]
)
def test_an_installation_that_takes_too_long_is_the_platforms_fault_and_ember_build_the_players(
    yard: Yard, part: dict[str, str], fault: type[Exception]
) -> None:
    yard.player.write(**part)
    with pytest.raises(fault, match="time limit of 0:00:06"):
        yard.build(builder=yard.builder(seconds=6))
    assert yard.nothing_is_left()


def test_an_image_that_is_missing_is_told(yard: Yard) -> None:
    order = BuildOrder(yard.player.folder, PREFIX, {}, yard.output, image="sha256:" + "0" * 64)
    with pytest.raises(BuildPlatformError, match="image that builds run in is missing"):
        yard.builder().build(order, print)
    with pytest.raises(BuildPlatformError, match="is missing on the Docker engine; the next build makes it"):
        Yard(yard.engine, "elsewhere", yard.root / "elsewhere").build()
    assert yard.nothing_is_left()


def test_an_engine_that_does_not_answer_is_told(tmp_path: Path) -> None:
    yard = Yard(Engine(f"unix://{tmp_path}/no.sock", None), "elsewhere", tmp_path)
    with pytest.raises(BuildPlatformError, match=r"no\.sock does not answer"):
        yard.builder().prepare(print)
    with pytest.raises(BuildPlatformError, match="does not answer"):
        yard.build()


def test_a_player_for_a_node_that_nobody_has_is_told_so(yard: Yard) -> None:
    (yard.player.folder / ".nvmrc").write_text("v20\n")
    with pytest.raises(PlayerBuildFailed, match=r"'v20' in its \.nvmrc"):
        yard.builder().prepare(print, yard.player.folder)


def test_a_player_of_later_years_is_built_in_the_later_image(yard: Yard, image: str) -> None:
    (yard.player.folder / ".nvmrc").write_text("12\n")
    made = yard.builder().prepare(yard.said.append, yard.player.folder)
    assert made.name != image
    assert "Node 12.22.12" in made.description
    tools = "node --version; python2 --version; python --version; g++ --version | head -n 1; yarn --version"
    yard.player.write(ember=f"({tools}) 2>&1; which ember\n{GOOD_DIST}")
    assert yard.build().file_count == 2
    said = "\n".join(yard.said)
    assert "\nv12.22.12\nPython 2.7.18\nPython 2.7.18\ng++ " in said
    assert "\n1.22.22\n/work/node_modules/.bin/ember" in said


# --- ends


@pytest.mark.parametrize("phase", ["install", "ember"])
def test_cancelling_ends_the_build_within_seconds(yard: Yard, phase: str) -> None:
    yard.player.write(**{phase: "echo ready; setsid sleep 300 & sleep 300"})
    cancelled = threading.Event()
    at: list[float] = []

    def listen(line: str) -> None:
        if line == "ready":
            at.append(time.monotonic())
            cancelled.set()

    with pytest.raises(BuildCancelled):
        yard.build(on_line=listen, cancelled=cancelled)
    assert time.monotonic() - at[0] < 8
    assert yard.nothing_is_left()


class Interrupted(BaseException):
    """As an orchestrator interrupts a step."""


def test_an_interrupt_ends_the_build_and_goes_on_up(yard: Yard) -> None:
    yard.player.write(ember="echo ready; sleep 300")

    def interrupt(line: str) -> None:
        if line == "ready":
            raise Interrupted

    with pytest.raises(Interrupted):
        yard.build(on_line=interrupt)
    assert yard.nothing_is_left()


# --- the real thing


@pytest.mark.ember
def test_a_real_player_is_built_in_the_seeds_image(yard: Yard) -> None:
    builder = yard.builder(limits=Limits(), seconds=900)
    order = BuildOrder(REPOSITORY / "examples" / "frameplayer", PREFIX, {"PIPE_ENVIRONMENT": "staging"}, yard.output)
    bundle = builder.build(order, yard.said.append)
    names = [str(file.path) for file in bundle.files]
    script = next(
        (bundle.root / name).read_text()
        for name in names
        if name.startswith("assets/frameplayer-") and name.endswith(".js")
    )
    assert f'"{PREFIX}assets/images/boat-' in script
    assert "staging" in script
