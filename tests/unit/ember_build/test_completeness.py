"""What GitHub's archives leave out is told: files of Git LFS, and submodules."""

from __future__ import annotations

from pathlib import Path

import pytest

from ember_build.source.completeness import left_out
from tests.unit.ember_build.test_bundle import POINTER


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "star.png").write_bytes(b"\x89PNG")
    return tmp_path


def declare(checkout: Path, *paths: str) -> None:
    sections = "".join(f'[submodule "{path}"]\n\tpath = {path}\n\turl = https://example.org/x\n' for path in paths)
    (checkout / ".gitmodules").write_text(sections)


def test_an_ordinary_source_lacks_nothing(checkout: Path) -> None:
    assert left_out(checkout) == ()


def test_pointers_of_git_lfs_are_named(checkout: Path) -> None:
    for number in range(7):
        (checkout / "public" / f"{number}.mp3").write_bytes(POINTER)
    (told,) = left_out(checkout)
    assert "Git LFS pointers in place of public/0.mp3, public/1.mp3" in told
    assert "and 2 more" in told


def test_submodules_that_are_empty_or_absent_are_named(checkout: Path) -> None:
    declare(checkout, "stimuli", "docs", "lib/filled")
    (checkout / "stimuli").mkdir()
    (checkout / "lib" / "filled").mkdir(parents=True)
    (checkout / "lib" / "filled" / "a.js").touch()
    (told,) = left_out(checkout)
    assert "has nothing in docs, stimuli," in told


@pytest.mark.parametrize("path", ["../outside", "/etc", "a/../../b"])
def test_a_path_that_leads_out_of_the_source_is_not_followed(checkout: Path, path: str) -> None:
    declare(checkout, path)
    assert left_out(checkout) == ()


def test_a_declaration_behind_a_link_is_not_read(checkout: Path) -> None:
    (checkout / "elsewhere").write_text('[submodule "x"]\n\tpath = x\n')
    (checkout / ".gitmodules").symlink_to("elsewhere")
    assert left_out(checkout) == ()


def test_a_declaration_that_is_no_text_is_borne(checkout: Path) -> None:
    (checkout / ".gitmodules").write_bytes(b"path = \xff\xfe\npath =\n" + b"path" * 100_000)
    assert all("has nothing in" in told for told in left_out(checkout))
