"""What counts as a built player, and what is said of a folder that does not."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from ember_build.bundle import check_bundle
from ember_build.errors import PlayerBuildFailed

PREFIX = "/studies/1b2c3d/"


def named_by_content(name: str, contents: bytes) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"{stem}-{hashlib.md5(contents, usedforsecurity=False).hexdigest()}.{suffix}"


class Folder:
    """A complete bundle, for each test to spoil in one way."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root.with_name("source")
        self.assets = root / "assets"
        self.assets.mkdir(parents=True)
        self.script = self.asset("player.js", b"start();")
        self.vendor = self.asset("vendor.js", b"var Ember = {};")
        self.style = self.asset("vendor.css", b"")
        self.picture = self.asset("star.png", b"\x89PNG star")
        self.page()

    def asset(self, name: str, contents: bytes) -> str:
        path = self.assets / named_by_content(name, contents)
        path.write_bytes(contents)
        return f"{PREFIX}assets/{path.name}"

    def page(self, head: str = "", body: str = "") -> None:
        (self.root / "index.html").write_text(
            f'<!DOCTYPE html><html><head><link rel="stylesheet" href="{self.style}">{head}</head>'
            f'<body>{body}<script src="{self.vendor}"></script><script src="{self.script}"></script></body></html>',
            encoding="utf-8",
        )

    def file(self, address: str) -> Path:
        return self.root / address.removeprefix(PREFIX)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "dist")


def refusal(
    folder: Folder, check_script: Callable[[Path], str | None] | None = None, checkout: Path | None = None
) -> str:
    with pytest.raises(PlayerBuildFailed) as caught:
        check_bundle(folder.root, PREFIX, check_script, checkout=checkout)
    return str(caught.value)


def test_a_complete_folder_is_listed_file_by_file(folder: Folder) -> None:
    bundle = check_bundle(folder.root, PREFIX)
    assert [file.path for file in bundle.files] == sorted(file.path for file in bundle.files)
    assert bundle.file_count == 5
    assert bundle.size_bytes == sum(path.stat().st_size for path in folder.root.rglob("*") if path.is_file())
    by_name = {file.path: file for file in bundle.files}
    script = by_name[PurePosixPath(folder.script.removeprefix(PREFIX))]
    assert (script.size_bytes, script.sha256) == (8, hashlib.sha256(b"start();").hexdigest())
    assert script.fingerprinted
    assert not by_name[PurePosixPath("index.html")].fingerprinted


def test_a_name_with_a_short_number_does_not_pass_for_a_fingerprint(folder: Folder) -> None:
    (folder.assets / "photo-2016.jpg").write_bytes(b"x")
    photo = next(file for file in check_bundle(folder.root, PREFIX).files if file.path.name == "photo-2016.jpg")
    assert not photo.fingerprinted


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlayerBuildFailed, match="left no folder of its own"):
        check_bundle(tmp_path / "dist", PREFIX)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlayerBuildFailed, match="left no files"):
        check_bundle(tmp_path, PREFIX)


def test_a_folder_without_a_page_is_refused(folder: Folder) -> None:
    (folder.root / "index.html").unlink()
    assert "no index.html" in refusal(folder)


def test_an_empty_page_is_refused(folder: Folder) -> None:
    (folder.root / "index.html").write_bytes(b"")
    assert "no index.html, or an empty one" in refusal(folder)


def test_a_page_for_another_study_is_refused(folder: Folder) -> None:
    page = folder.root / "index.html"
    page.write_text(page.read_text().replace(PREFIX, "/studies/other/"))
    assert f"prefix {PREFIX} is not in index.html" in refusal(folder)


@pytest.mark.parametrize("which", ["script", "vendor", "style"])
def test_a_named_asset_that_is_not_there_is_refused_by_name(folder: Folder, which: str) -> None:
    address: str = getattr(folder, which)
    folder.file(address).unlink()
    message = refusal(folder)
    assert address in message
    assert "did not make it" in message


def test_a_relative_reference_is_looked_up_too(folder: Folder) -> None:
    folder.page(body='<img src="assets/gone.png?v=2">')
    assert "assets/gone.png" in refusal(folder)


def test_a_reference_with_escapes_query_and_dots_finds_its_file(folder: Folder) -> None:
    (folder.assets / "two words.png").write_bytes(b"x")
    folder.page(body='<img src="./assets/../assets/two%20words.png?v=1#top">')
    assert check_bundle(folder.root, PREFIX).file_count == 6


def test_a_base_element_moves_relative_references(folder: Folder) -> None:
    folder.page(head=f'<base href="{PREFIX}assets/">', body='<img src="gone.png">')
    assert "gone.png" in refusal(folder)
    (folder.assets / "gone.png").write_bytes(b"x")
    assert check_bundle(folder.root, PREFIX).file_count == 6


@pytest.mark.parametrize(
    "address", ["https://cdn.example.org/pipe.js", "//cdn.example.org/pipe.js", "data:text/javascript,1"]
)
def test_what_comes_from_elsewhere_is_not_looked_for(folder: Folder, address: str) -> None:
    folder.page(head=f'<script src="{address}"></script>')
    assert check_bundle(folder.root, PREFIX).file_count == 5


def test_a_script_outside_the_prefix_is_refused(folder: Folder) -> None:
    (folder.assets / "recorder.js").write_bytes(b"record();")
    folder.page(head='<script src="/assets/recorder.js"></script>')
    assert "/assets/recorder.js, which is outside the study's prefix" in refusal(folder)


def test_the_platforms_own_icon_is_left_alone(folder: Folder) -> None:
    folder.page(head='<link rel="icon" href="/favicon.ico">')
    assert check_bundle(folder.root, PREFIX).file_count == 5


def test_a_page_without_any_script_of_its_own_is_refused(folder: Folder) -> None:
    (folder.root / "index.html").write_text(f'<link rel="stylesheet" href="{folder.style}">')
    assert "would stay blank" in refusal(folder)


def test_an_empty_script_is_refused_though_its_md5_fits(folder: Folder) -> None:
    folder.vendor = folder.asset("vendor.js", b"")
    folder.page()
    assert "is empty" in refusal(folder)


def test_an_empty_picture_that_the_page_names_is_refused(folder: Folder) -> None:
    folder.page(body=f'<img src="{folder.asset("moon.png", b"")}">')
    assert "is empty" in refusal(folder)


@pytest.mark.parametrize("which", ["vendor", "picture"])
def test_a_file_that_was_cut_off_is_told_by_its_name(folder: Folder, which: str) -> None:
    path = folder.file(getattr(folder, which))
    path.write_bytes(path.read_bytes()[:-2])
    folder.source.mkdir()
    (folder.source / "star.png").touch()
    message = refusal(folder, checkout=folder.source)
    assert path.name in message
    assert "cut off or changed" in message


def test_code_that_names_other_code_may_differ_from_its_fingerprint(folder: Folder) -> None:
    """Ember-cli writes the final names of scripts into scripts that it has named already."""
    other = folder.file(folder.vendor).name
    folder.file(folder.script).write_text(f'load("{PREFIX}assets/{other}");')
    assert check_bundle(folder.root, PREFIX).file_count == 5


def test_a_name_that_the_source_has_already_promises_nothing(folder: Folder) -> None:
    """A file of `public/` that somebody has named after a hash: the build did not make the name."""
    name = f"tts-{'0' * 32}.mp3"
    (folder.assets / name).write_bytes(b"ID3")
    (folder.source / "public" / "assets").mkdir(parents=True)
    (folder.source / "public" / "assets" / name).touch()
    for checkout in (None, folder.source):
        assert check_bundle(folder.root, PREFIX, checkout=checkout).file_count == 6


def test_a_player_with_a_hash_of_its_own_may_have_a_font_that_carries_its_md5(folder: Folder) -> None:
    for which in ("script", "vendor", "style"):
        path = folder.file(getattr(folder, which))
        renamed = path.rename(path.with_name(f"{which}-{'a' * 32}{path.suffix}"))
        setattr(folder, which, f"{PREFIX}assets/{renamed.name}")
    folder.asset("font.woff2", b"wOF2")
    folder.page()
    assert check_bundle(folder.root, PREFIX).file_count == 6


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 81234\n"


@pytest.mark.parametrize("name", ["audio.mp3", "assets/star.png"])
def test_a_pointer_of_git_lfs_is_never_served_in_place_of_its_file(folder: Folder, name: str) -> None:
    (folder.root / name).write_bytes(POINTER)
    message = refusal(folder)
    assert f"Git LFS pointers in place of {name}" in message


def test_a_text_that_speaks_of_git_lfs_is_no_pointer(folder: Folder) -> None:
    (folder.root / "notes.txt").write_bytes(b"# " + POINTER)
    (folder.root / "spec.txt").write_bytes(POINTER * 20)
    assert check_bundle(folder.root, PREFIX).file_count == 7


def digest(algorithm: str, contents: bytes) -> str:
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, contents).digest()).decode()}"


@pytest.mark.parametrize("which", ["script", "style"])
@pytest.mark.parametrize(
    ("integrity", "is_good"),
    [
        (lambda contents: digest("sha256", contents), True),
        (lambda contents: digest("sha512", contents), True),
        (lambda contents: f"{digest('sha384', b'other')} {digest('sha384', contents)}", True),
        (lambda contents: f"{digest('sha256', b'other')} {digest('sha512', contents)}?option", True),
        (lambda _: "md5-unknown-algorithms-count-for-nothing", True),
        (lambda _: "", True),
        (lambda _: digest("sha256", b"other"), False),
        (lambda contents: f"{digest('sha256', contents)} {digest('sha512', b'other')}", False),
    ],
)
def test_a_script_or_style_that_browsers_would_refuse_is_refused(
    folder: Folder, which: str, integrity: Callable[[bytes], str], is_good: bool
) -> None:
    folder.style = folder.asset("app.css", b"p { color: red }")
    address = getattr(folder, which)
    folder.page()
    page = (folder.root / "index.html").read_text()
    says = integrity(folder.file(address).read_bytes())
    (folder.root / "index.html").write_text(page.replace(f'"{address}"', f'"{address}" integrity="{says}"'))
    if is_good:
        check_bundle(folder.root, PREFIX)
    else:
        message = refusal(folder)
        assert folder.file(address).name in message
        assert "Browsers would refuse it" in message


def test_the_integrity_of_what_comes_from_elsewhere_is_not_asked(folder: Folder) -> None:
    folder.page(head=f'<script src="https://cdn.example.org/p.js" integrity="{digest("sha256", b"x")}"></script>')
    check_bundle(folder.root, PREFIX)


@pytest.mark.parametrize(
    "names", [("Star.png", "star.PNG"), ("é.png", "e\u0301.png"), ("Sounds/a.mp3", "sounds/b.mp3"), ("ß.png", "SS.png")]
)
def test_two_names_that_some_systems_take_for_one_are_refused(folder: Folder, names: tuple[str, str]) -> None:
    for name in names:
        (folder.assets / name).parent.mkdir(exist_ok=True)
        (folder.assets / name).write_bytes(b"x")
    message = refusal(folder)
    assert "differ in upper and lower case only, or in how a letter is composed" in message


@pytest.mark.parametrize(
    "name",
    [
        "Screenshot 2026-03-01 at 10.32.07\u202fAM.png",
        "no-break\u00a0space.png",
        "ideographic\u3000space.png",
        "family 👨\u200d👩\u200d👧.png",
        "12:30 break.mp3",
        "right-to-left\u202e.png",
    ],
)
def test_names_as_people_and_systems_give_them_are_served(folder: Folder, name: str) -> None:
    (folder.assets / name).write_bytes(b"x")
    assert f"assets/{name}" in [str(file.path) for file in check_bundle(folder.root, PREFIX).files]


def test_names_made_by_another_hash_than_md5_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    for name in (f"app-{'1' * 32}.js", f"vendor-{'2' * 32}.js"):
        (tmp_path / "assets" / name).write_text("go();")
    (tmp_path / "index.html").write_text(f'<script src="{PREFIX}assets/app-{"1" * 32}.js"></script>')
    assert check_bundle(tmp_path, PREFIX).file_count == 3


def test_a_script_that_the_check_cannot_read_is_refused_with_its_reason(folder: Folder) -> None:
    message = refusal(folder, lambda script: "SyntaxError: )" if script.name.startswith("vendor") else None)
    assert "vendor-" in message
    assert "SyntaxError: )" in message


def test_only_classic_scripts_of_the_bundle_are_checked(folder: Folder) -> None:
    module = folder.asset("late.js", b"export default 1;")
    data = folder.asset("data.js", b"{}")
    folder.page(
        head='<script src="https://cdn.example.org/pipe.js"></script>'
        f'<script type="module" src="{module}"></script><script type="application/json" src="{data}"></script>'
    )
    seen: list[str] = []
    check_bundle(folder.root, PREFIX, lambda script: seen.append(script.name))
    assert seen == [folder.file(folder.vendor).name, folder.file(folder.script).name]


def test_a_symbolic_link_to_a_file_is_refused(folder: Folder) -> None:
    (folder.assets / "hosts").symlink_to("/etc/hosts")
    assert "symbolic link, 'hosts'" in refusal(folder)


def test_a_symbolic_link_to_a_folder_is_refused(folder: Folder) -> None:
    (folder.root / "more").symlink_to(folder.assets)
    assert "symbolic link, 'more'" in refusal(folder)


def test_a_bundle_that_is_itself_a_link_is_refused(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder.root)
    with pytest.raises(PlayerBuildFailed, match="left no folder of its own"):
        check_bundle(tmp_path / "link", PREFIX)


def test_a_pipe_is_refused_without_being_opened(folder: Folder) -> None:
    os.mkfifo(folder.assets / "pipe")
    assert "'pipe', which is neither a file nor a folder" in refusal(folder)


def test_a_file_name_with_a_line_break_is_refused(folder: Folder) -> None:
    (folder.assets / "two\nlines.png").write_bytes(b"x")
    assert "cannot be served" in refusal(folder)
