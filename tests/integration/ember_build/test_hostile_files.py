"""Files of a repository or a build that keep a parser busy: each ends within seconds, as the researcher's error."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ember_build.bounded import Bounds, run_bounded
from ember_build.bundle import MOST_BYTES_OF_A_PAGE, check_bundle
from ember_build.errors import BuildCancelled, BuildPlatformError, InvalidPlayer, PlayerBuildFailed
from ember_build.source.dependencies import inputs_of
from ember_build.source.node_version import MOST_BYTES, choose_profile
from tests.support.bounded_functions import (
    be_wrong,
    crash,
    eat_memory,
    miss,
    never_end,
    recurse,
    say_much,
    sleep,
    tell_environment,
)

PREFIX = "/studies/1b2c3d/"
SCRIPT = f'<script src="{PREFIX}app.js"></script>'
LIMIT_SECONDS = 60
"""No benchmark: what a hang is told from. CPU time is limited to a part of it."""


def within_limit(read: Callable[[], object]) -> str:
    """Read in another thread; return what is said of the files, or nothing if they pass."""
    said: list[object] = []

    def run() -> None:
        try:
            read()
            said.append("")
        except Exception as error:  # the type is looked at below
            said.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT_SECONDS)
    assert said, f"it was still read after {LIMIT_SECONDS} s"
    error = said[0]
    assert error == "" or isinstance(error, (InvalidPlayer, PlayerBuildFailed)), repr(error)
    return str(error)


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


def engines(node: str) -> str:
    return json.dumps({"engines": {"node": node}})


PACKAGES = {
    "blanks between two marks": engines("!" + " " * 100_000 + "!"),
    "blanks after an operator": engines(">" + " " * 900_000 + "1"),
    "many alternatives": engines("||".join(["1"] * 200_000)),
    "many comparators": engines(" ".join([">=1"] * 200_000)),
    "a long number": engines("9" * 200),
    "letters and dots": engines("1." + "a.-" * 80),
    "nested lists": nested(400_000),
    "nested objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "engines nested": '{"engines": ' + nested(200_000) + "}",
    "a huge number": '{"engines": {"node": ' + "9" * 900_000 + "}}",
    "a huge exponent": '{"engines": {"node": 1e999999999}}',
    "an open string": '"' + "a" * 900_000,
    "backslashes": '"' + "\\" * 900_000,
    "nulls": "\0" * 900_000,
    "no text": "\udcff",
    "more than may be": " " * (MOST_BYTES + 1),
}


@pytest.mark.parametrize("contents", PACKAGES.values(), ids=PACKAGES)
def test_a_package_json_that_keeps_a_parser_busy(tmp_path: Path, contents: str) -> None:
    (tmp_path / "package.json").write_bytes(contents.encode("utf-8", "surrogateescape"))
    within_limit(lambda: choose_profile(tmp_path))


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (PACKAGES["blanks between two marks"], "100,002 characters"),
        (PACKAGES["nested lists"], "nested too deeply"),
        (PACKAGES["more than may be"], "package.json has 1,000,001 bytes"),
    ],
)
def test_what_is_wrong_with_a_package_json_is_said(tmp_path: Path, contents: str, said: str) -> None:
    (tmp_path / "package.json").write_text(contents)
    assert said in within_limit(lambda: choose_profile(tmp_path))


@pytest.mark.parametrize(
    "contents", ["12" + " " * 900_000, "1" * 900_000, "v" * 900_000, "12." * 300_000, "\n" * 10**6]
)
def test_an_nvmrc_that_keeps_a_parser_busy(tmp_path: Path, contents: str) -> None:
    (tmp_path / ".nvmrc").write_text(contents)
    within_limit(lambda: choose_profile(tmp_path))


PINNED = 'a@1:\n  resolved "https://registry.example/a.tgz#' + "0" * 40 + '"\n'
FILES = {
    "a lock of blanks": {"yarn.lock": "a:\n" + " " * 5_000_000},
    "a lock of one line": {"yarn.lock": "a" * 5_000_000},
    "a lock of colons": {"yarn.lock": "a:" * 2_000_000},
    "a lock of entries without an end": {"yarn.lock": "a:\n  b\n" * 500_000},
    "a lock of open quotes": {"yarn.lock": 'a:\n  resolved "' * 300_000},
    "a large lock": {"yarn.lock": PINNED * 200_000},
    "a lock that is larger than may be": {"yarn.lock": "\n" * 51_000_000},
    "settings of blanks": {"yarn.lock": PINNED, ".yarnrc": " " * 90_000 + "x"},
    "settings of many lines": {"yarn.lock": PINNED, ".npmrc": "registry=x\n" * 8_000},
    "large settings": {"yarn.lock": PINNED, ".yarnrc": "x" * 200_000},
    "a nested bower.json": {"yarn.lock": PINNED, "bower.json": nested(1_000_000)},
    "a nested bowerrc": {"yarn.lock": PINNED, "bower.json": "{}", ".bowerrc": '{"a":' * 300_000},
    "a nested package.json": {"yarn.lock": PINNED, "package.json": nested(1_000_000)},
    "dependencies of many own folders": {
        "yarn.lock": PINNED,
        "package.json": json.dumps({"dependencies": {str(n): "file:own" for n in range(100_000)}}),
        "own/package.json": "{}",
        **{f"own/{number}": "" for number in range(200)},
    },
}


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_declared_dependencies_that_keep_a_parser_busy(tmp_path: Path, files: dict[str, str]) -> None:
    for name, contents in {"package.json": "{}", **files}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(contents)
    within_limit(lambda: inputs_of(tmp_path))


PAGES = {
    "open elements": "<a " * 130_000,
    "open comments": "<!--" * 500_000,
    "open declarations": "<!" * 1_000_000,
    "open attributes": "<a b='" * 300_000,
    "processing instructions": "<?" * 1_000_000,
    "closing elements": "</a" * 1_000_000,
    "nested elements": "<div>" * 500_000,
    "nested formatting": "".join(f"<b id={number}>" for number in range(50_000)) + "<p>" * 50_000,
    "misnested formatting": "<a><b><i><p>" * 50_000,
    "open tables": "<table><tr><td>" * 100_000,
    "many attributes": "<a " + " ".join(f"a{number}=1" for number in range(300_000)) + ">",
    "entities": "&" * 2_000_000,
    "scripts": SCRIPT * 30_000,
    "many scripts": "".join(f'<script src="{PREFIX}{number}.js"></script>' for number in range(5_000)),
    "nulls": "\0" * 2_000_000,
    "an address of slashes": f'<script src="{"/" * 2_000_000}"></script>',
    "an address of dots": f'<script src="{PREFIX}{"../" * 600_000}x"></script>',
    "an address of percents": f'<script src="{PREFIX}{"%" * 2_000_000}"></script>',
    "a base of brackets": f'<base href="http://{"[" * 500_000}">',
    "more than may be": " " * (MOST_BYTES_OF_A_PAGE + 1),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_page_that_keeps_a_parser_busy(tmp_path: Path, page: str) -> None:
    (tmp_path / "app.js").write_text("start();")
    (tmp_path / "index.html").write_text(SCRIPT + page)
    within_limit(lambda: check_bundle(tmp_path, PREFIX))


def test_code_that_names_thousands_of_fingerprints(tmp_path: Path) -> None:
    """Each broken file was searched for each name: a few thousand files of a megabyte took hours."""
    (tmp_path / "index.html").write_text(SCRIPT)
    (tmp_path / "app.js").write_text("start();")
    (tmp_path / "fit-d41d8cd98f00b204e9800998ecf8427e.js").write_bytes(b"")
    for number in range(5_000):
        (tmp_path / f"unfit-{number:032x}.js").write_text(f"-{'a' * 31}." * 600 + f"-{number:032x}.js")
    assert within_limit(lambda: check_bundle(tmp_path, PREFIX)) == ""


@pytest.mark.parametrize("name", ["back\\slash.png", "C:autorun.png", "new\nline.png", "c1\x85.png", b"\xe9.png"])
def test_a_name_that_a_bucket_would_refuse_is_found_before_the_upload(tmp_path: Path, name: str | bytes) -> None:
    (tmp_path / "app.js").write_text("start();")
    (tmp_path / "index.html").write_text(SCRIPT)
    (tmp_path / os.fsdecode(name)).write_text("")
    assert "name cannot be served" in within_limit(lambda: check_bundle(tmp_path, PREFIX))


def test_a_path_that_is_too_long_for_a_bucket_is_found_before_the_upload(tmp_path: Path) -> None:
    (tmp_path / "app.js").write_text("start();")
    (tmp_path / "index.html").write_text(SCRIPT)
    folder = tmp_path.joinpath(*["ä" * 100] * 5)
    folder.mkdir(parents=True)
    (folder / "picture.png").write_text("")
    assert "longer than 900 bytes" in within_limit(lambda: check_bundle(tmp_path, PREFIX))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (never_end, "more than 1 s of CPU time"),
        (eat_memory, "more than 300 MB of memory"),
        (say_much, "more than 1 MB of results"),
        (crash, "the parser crashed on it"),
        (recurse, "nested too often"),
    ],
)
def test_each_bound_is_the_researchers_error(function: Callable[..., object], said: str) -> None:
    bounds = Bounds(cpu_seconds=1, memory_mb=300, result_mb=1)
    with pytest.raises(PlayerBuildFailed, match="the file could not be read") as caught:
        run_bounded(function, "x", subject="the file", bounds=bounds)
    assert said in str(caught.value)


def test_a_disk_that_fails_is_ours() -> None:
    with pytest.raises(BuildPlatformError, match=r"could not read the file: .*No such file"):
        run_bounded(miss, "/nonexistent/file", subject="the file")


def test_a_disk_that_hangs_is_ours() -> None:
    with pytest.raises(BuildPlatformError, match="did not read the file within 1 s"):
        run_bounded(sleep, "60", subject="the file", bounds=Bounds(seconds=1))


def test_a_fault_of_the_function_is_not_blamed_on_the_file() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'a fault of ours'"):
        run_bounded(be_wrong, "x", subject="the file")


def test_a_cancellation_is_heard_within_two_seconds() -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    with pytest.raises(BuildCancelled):
        run_bounded(never_end, "x", subject="the file", cancelled=stop)
    assert time.monotonic() - began < 0.5 + 2


def test_the_builds_time_limit_holds_while_a_file_is_read() -> None:
    with pytest.raises(PlayerBuildFailed, match="reached its time limit while the file was read"):
        run_bounded(never_end, "x", subject="the file", deadline=time.monotonic() + 0.5)


def test_the_child_gets_nothing_of_the_platforms_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_SMTP_PASSWORD", "geheim")
    assert "LOOKIT_SMTP_PASSWORD" not in run_bounded(tell_environment, "x", subject="the file")
