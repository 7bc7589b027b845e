"""Which image a player asks for, and that an image's name tells what it is made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ember_build.docker.images import image_context, image_tag
from ember_build.errors import PlayerBuildFailed
from ember_build.source.node_version import _LTS, NODE_8, NODE_12, choose_profile


def declare(folder: Path, nvmrc: str | None = None, engines: object = None) -> Path:
    if nvmrc is not None:
        (folder / ".nvmrc").write_text(nvmrc)
    if engines is not None:
        (folder / "package.json").write_text(json.dumps({"engines": {"node": engines}}))
    return folder


@pytest.mark.parametrize(
    "wanted", ["", "*", ">= 4", "^4.5 || 6.* || >= 7.*", "8", "8.x", "~8.2.0", "6 - 8", "<9", "node"]
)
def test_the_seeds_image_is_the_default_and_taken_where_it_fits(tmp_path: Path, wanted: str) -> None:
    assert choose_profile(declare(tmp_path, engines=wanted)) is NODE_8


@pytest.mark.parametrize("wanted", ["12", "12.*", "^12.0.0", ">=10", "10.* || >= 12", "~12.22.1", "12.22.12", ">8.2.1"])
def test_a_later_node_gets_the_later_image(tmp_path: Path, wanted: str) -> None:
    assert choose_profile(declare(tmp_path, engines=wanted)) is NODE_12


@pytest.mark.parametrize("wanted", ["12", "v12.22.12", "lts/erbium", "12 # since 2020"])
def test_nvmrc_decides_over_engines(tmp_path: Path, wanted: str) -> None:
    assert choose_profile(declare(tmp_path, nvmrc=wanted, engines=">= 4")) is NODE_12


@pytest.mark.parametrize("wanted", ["\ufeff12", "# the recorder wants it\n\nv12.22.12\n", "\ufefflts/erbium\r\n"])
def test_nvmrc_may_have_a_mark_and_comments(tmp_path: Path, wanted: str) -> None:
    assert choose_profile(declare(tmp_path, nvmrc=wanted)) is NODE_12


def test_a_package_may_have_a_mark(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('\ufeff{"engines": {"node": "12"}}', encoding="utf-8")
    assert choose_profile(tmp_path) is NODE_12


@pytest.mark.parametrize("line", [*sorted(set(_LTS) - {"carbon", "erbium"}), "unobtainium"])
def test_a_line_of_node_that_no_image_has_is_refused_or_left_to_engines(tmp_path: Path, line: str) -> None:
    with pytest.raises(PlayerBuildFailed, match=rf"Node 'lts/{line}' in its \.nvmrc"):
        choose_profile(declare(tmp_path, nvmrc=f"lts/{line}"))
    assert choose_profile(declare(tmp_path, nvmrc=f"lts/{line}", engines=">=12 <13")) is NODE_12
    with pytest.raises(PlayerBuildFailed, match=r"engines\.node"):
        choose_profile(declare(tmp_path, nvmrc=f"lts/{line}", engines=">=14"))


@pytest.mark.parametrize("wanted", ["what?", "iojs", "lts/-1", "lts/"])
def test_an_nvmrc_that_says_nothing_known_is_never_silently_the_default(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(PlayerBuildFailed, match=r"in its \.nvmrc"):
        choose_profile(declare(tmp_path, nvmrc=wanted))


@pytest.mark.parametrize("wanted", [True, None, [], {}])
def test_engines_that_are_no_version_are_refused(tmp_path: Path, wanted: object) -> None:
    (tmp_path / "package.json").write_text(json.dumps({"engines": {"node": wanted}}))
    with pytest.raises(PlayerBuildFailed, match=r"engines\.node"):
        choose_profile(tmp_path)


@pytest.mark.parametrize("wanted", ["lts/*", "node", "", "system"])
def test_an_nvmrc_without_a_number_decides_nothing(tmp_path: Path, wanted: str) -> None:
    assert choose_profile(declare(tmp_path, nvmrc=wanted, engines="12")) is NODE_12


@pytest.mark.parametrize("wanted", ["20", ">=14", "^16.0.0", "0.10", "9.x", "what?"])
def test_a_node_that_no_image_has_is_refused_by_name(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(PlayerBuildFailed, match=r"Node '.*' in its package\.json .*8\.2\.1 and 12\.22\.12"):
        choose_profile(declare(tmp_path, engines=wanted))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"engines": []}', '{"engines": {"node": 8}}'])
def test_a_package_that_declares_nothing_readable_gets_the_default(tmp_path: Path, text: str) -> None:
    (tmp_path / "package.json").write_text(text)
    assert choose_profile(tmp_path) is NODE_8


def test_a_declaration_behind_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("12")
    (tmp_path / ".nvmrc").symlink_to("elsewhere")
    assert choose_profile(tmp_path) is NODE_8


def test_a_tag_tells_deployment_profile_and_contents() -> None:
    context = image_context()
    assert context == image_context()
    tags = {
        image_tag(*of)
        for of in (
            ("a", NODE_8, context),
            ("a", NODE_12, context),
            ("b", NODE_8, context),
            ("a", NODE_8, context + b"x"),
        )
    }
    assert len(tags) == 4
    assert image_tag("a", NODE_8, context).startswith("lookit-ops-build-a:node8-")
