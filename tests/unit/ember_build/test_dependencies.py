"""What may be shared of an installation: only what a few hashed files decide about, each of which changes the key."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from ember_build.docker.dependency_cache import SharedDependencies
from ember_build.source.dependencies import Inputs, NotShared, inputs_of

LOCK = """# yarn lockfile v1


a@^1.0.0:
  version "1.0.0"
  resolved "https://registry.example/a/-/a-1.0.0.tgz#0123456789012345678901234567890123456789"

b@~2.0.0:
  version "2.0.0"
  resolved "b/-/b-2.0.0.tgz"
  integrity sha512-abc==
  dependencies:
    a "^1.0.0"
"""
OWN_IN_LOCK = '\n"ours@file:./lib/ours":\n  version "1.0.0"\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    package = {"name": "player", "dependencies": {"a": "^1.0.0", "b": "~2.0.0"}, "scripts": {"build": "ember build"}}
    (tmp_path / "package.json").write_text(json.dumps(package))
    (tmp_path / "yarn.lock").write_text(LOCK)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "app.js").write_text("1")
    return tmp_path


def package(checkout: Path, **changes: object) -> None:
    file = checkout / "package.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def own_package(checkout: Path, where: str = "file:./lib/ours") -> None:
    package(checkout, dependencies={"ours": where})
    (checkout / "yarn.lock").write_text(LOCK + OWN_IN_LOCK)
    (checkout / "lib" / "ours").mkdir(parents=True)
    (checkout / "lib" / "ours" / "package.json").write_text('{"name": "ours", "version": "1.0.0"}')
    (checkout / "lib" / "ours" / "index.js").write_text("1")


def found(checkout: Path) -> Inputs:
    inputs = inputs_of(checkout)
    assert isinstance(inputs, Inputs)
    return inputs


def test_a_plain_player_is_decided_by_its_lock_file_and_package(checkout: Path) -> None:
    inputs = found(checkout)
    assert inputs.files == ("package.json", "yarn.lock")
    assert (inputs.own_files, inputs.own_files_for_bower) == (False, False)


def test_other_files_of_the_player_change_nothing(checkout: Path) -> None:
    before = found(checkout)
    (checkout / "app" / "app.js").write_text("2")
    assert found(checkout) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("yarn.lock", LOCK + "\n"),
        ("bower.json", '{"dependencies": {"jquery": "1.11"}}'),
        (".yarnrc", 'registry "https://registry.example/"\n'),
        (".npmrc", "# mine\n@lab:registry=https://registry.example/\n"),
        (".bowerrc", '{"analytics": false, "directory": "bower_components"}'),
    ],
)
def test_each_input_changes_the_key(checkout: Path, name: str, text: str) -> None:
    before = found(checkout)
    (checkout / name).write_text(text)
    assert found(checkout).digest != before.digest
    assert (found(checkout).settings != before.settings) == name.startswith(".")


def test_a_package_of_the_repository_is_an_input_with_all_its_files(checkout: Path) -> None:
    own_package(checkout)
    before = found(checkout)
    assert before.own_files
    assert before.files == ("package.json", "yarn.lock", "lib/ours/index.js", "lib/ours/package.json")
    (checkout / "lib" / "ours" / "index.js").write_text("2")
    changed = found(checkout)
    assert changed.digest != before.digest
    (checkout / "lib" / "ours" / "index.js").chmod(0o755)
    assert found(checkout).digest not in {before.digest, changed.digest}


def _script(name: str) -> Callable[[Path], None]:
    return lambda checkout: package(checkout, scripts={name: "node setup.js"})


def _writes(name: str, text: str) -> Callable[[Path], None]:
    return lambda checkout: (checkout / name).write_text(text) and None


def _bower(settings: str) -> Callable[[Path], None]:
    def spoil(checkout: Path) -> None:
        (checkout / "bower.json").write_text("{}")
        (checkout / ".bowerrc").write_text(settings)

    return spoil


def _in_lock(resolved: str) -> Callable[[Path], None]:
    return _writes("yarn.lock", f'{LOCK}\nc@1.0.0:\n  version "1.0.0"\n  resolved "{resolved}"\n')


def _links_within_own(checkout: Path) -> None:
    own_package(checkout)
    (checkout / "lib" / "ours" / "more.js").symlink_to("../../app/app.js")


def _links_to_own(checkout: Path) -> None:
    own_package(checkout, "file:./linked")
    (checkout / "linked").symlink_to("lib/ours")


def _nested(checkout: Path) -> None:
    own_package(checkout)
    (checkout / "lib" / "ours" / "package.json").write_text('{"name": "o", "dependencies": {"x": "file:../../app"}}')


def _without(name: str) -> Callable[[Path], None]:
    return lambda checkout: (checkout / name).unlink()


@pytest.mark.parametrize(
    "spoil",
    [
        _without("yarn.lock"),
        _without("package.json"),
        _writes("package.json", "not json"),
        _writes("package.json", '{"dependencies": "none"}'),
        *map(_script, ["preinstall", "install", "postinstall", "prepare", "prepublish"]),
        _writes("binding.gyp", "{}"),
        lambda checkout: package(checkout, workspaces=["lib/*"]),
        lambda checkout: (checkout / "node_modules").mkdir(),
        lambda checkout: (checkout / "bower_components").mkdir(),
        _writes(".yarnrc", 'yarn-path "./evil.js"\n'),
        _writes(".yarnrc", "--cache-folder /yarn-cache\n"),
        _writes(".yarnrc", "yarn-offline-mirror ./mirror\n"),
        _writes(".npmrc", "script-shell=./evil\n"),
        _writes(".npmrc", "a setting of later years\n"),
        _bower('{"scripts": {"preinstall": "./evil"}}'),
        _bower('{"directory": "../elsewhere"}'),
        _bower('{"resolvers": ["evil"]}'),
        _in_lock("https://registry.example/c-1.0.0.tgz"),
        _in_lock("git+https://git.example/c.git#0123456789012345678901234567890123456789"),
        _in_lock("https://git.example/c.git#0123456789012345678901234567890123456789"),
        _in_lock("git@git.example:c#0123456789012345678901234567890123456789"),
        lambda checkout: own_package(checkout, "link:./lib/ours"),
        lambda checkout: own_package(checkout, "file:../outside"),
        lambda checkout: own_package(checkout, "/etc"),
        lambda checkout: own_package(checkout, "~/ours"),
        lambda checkout: own_package(checkout, "file:./lib/missing"),
        _links_within_own,
        _links_to_own,
        _nested,
        _writes("yarn.lock", LOCK + OWN_IN_LOCK),
    ],
)
def test_what_something_else_decides_about_is_not_shared(checkout: Path, spoil: Callable[[Path], object]) -> None:
    spoil(checkout)
    found = inputs_of(checkout)
    assert isinstance(found, NotShared)
    assert len(found.reason) > 10


SHA = "0123456789" * 4


@pytest.mark.parametrize(
    "resolved",
    [
        f"https://codeload.github.com/eligrey/FileSaver.js/tar.gz/{SHA}",
        f"https://github.com/eligrey/FileSaver.js/archive/{SHA}.tar.gz",
        f"https://github.com/eligrey/FileSaver.js/tarball/{SHA}",
    ],
)
def test_githubs_archive_of_a_full_sha_is_pinned_by_it(checkout: Path, resolved: str) -> None:
    assert found(checkout).archives == {}
    _in_lock(resolved)(checkout)
    assert found(checkout).archives == {"c 1.0.0": resolved}


def test_an_archive_with_a_hash_of_its_own_needs_no_comparison(checkout: Path) -> None:
    _in_lock(f"https://codeload.github.com/eligrey/FileSaver.js/tar.gz/{SHA}#{SHA}")(checkout)
    assert found(checkout).archives == {}


def test_two_archives_of_one_version_are_not_shared_since_yarn_would_take_one_for_both(checkout: Path) -> None:
    lock = checkout / "yarn.lock"
    for sha in ("a" * 40, "b" * 40):
        where = f"https://codeload.github.com/eligrey/FileSaver.js/tar.gz/{sha}"
        lock.write_text(f'{lock.read_text()}\n"c@{where}":\n  version "1.0.0"\n  resolved "{where}"\n')
    refused = inputs_of(checkout)
    assert isinstance(refused, NotShared)
    assert "two archives without a hash of c 1.0.0" in refused.reason


def test_a_package_is_told_apart_by_its_own_name_not_by_what_a_dependency_calls_it(checkout: Path) -> None:
    where = f"https://codeload.github.com/eligrey/FileSaver.js/tar.gz/{SHA}"
    lock = checkout / "yarn.lock"
    lock.write_text(
        f'{lock.read_text()}\n"saver@{where}":\n  name file-saver\n  version "1.0.0"\n  resolved "{where}"\n'
    )
    assert found(checkout).archives == {"file-saver 1.0.0": where}


@pytest.mark.parametrize(
    ("resolved", "hashed"),
    [
        (f"https://registry.example/c.tgz#{SHA}", True),
        (f"https://codeload.github.com/eligrey/FileSaver.js/tar.gz/{SHA}", False),
    ],
)
def test_what_is_not_shared_may_be_hashed_all_the_same(checkout: Path, resolved: str, hashed: bool) -> None:
    _in_lock(resolved)(checkout)
    package(checkout, scripts={"postinstall": "true"})
    refused = inputs_of(checkout)
    assert isinstance(refused, NotShared)
    assert refused.is_hashed is hashed


def shared(inputs: Inputs) -> SharedDependencies:
    return SharedDependencies("test", "lab/player", Path("/nowhere"), inputs, "layers", {}, nullcontext)


def test_downloads_with_other_archives_are_kept_apart_and_those_with_hashes_together(checkout: Path) -> None:
    without = shared(found(checkout))
    package(checkout, version="2.0.0")
    assert shared(found(checkout)).cache_key == without.cache_key
    keys = {without.cache_key}
    for sha in ("a" * 40, "b" * 40):
        _in_lock(f"https://codeload.github.com/eligrey/FileSaver.js/tar.gz/{sha}")(checkout)
        keys.add(shared(found(checkout)).cache_key)
    assert len(keys) == 3, "yarn would take the one for the other: it names them after their version"


def test_downloads_of_two_packages_that_swap_their_archives_are_kept_apart(checkout: Path) -> None:
    lock = (checkout / "yarn.lock").read_text()
    addresses = [f"https://codeload.github.com/lab/sounds/tar.gz/{sha}" for sha in ("a" * 40, "b" * 40)]
    keys = set()
    for first, second in (addresses, addresses[::-1]):
        entries = [
            f'"{name}@{at}":\n  version "1.0.0"\n  resolved "{at}"\n' for name, at in (("c", first), ("d", second))
        ]
        (checkout / "yarn.lock").write_text("\n".join([lock, *entries]))
        keys.add(shared(found(checkout)).cache_key)
    assert len(keys) == 2


@pytest.mark.parametrize(
    "resolved",
    [
        "https://codeload.github.com/eligrey/FileSaver.js/tar.gz/master",
        f"https://codeload.github.com/eligrey/FileSaver.js/tar.gz/{SHA[:10]}",
        f"http://codeload.github.com/eligrey/FileSaver.js/tar.gz/{SHA}",
        f"https://codeload.github.com.evil.example/eligrey/FileSaver.js/tar.gz/{SHA}",
        f"https://evil.example/tar.gz/{SHA}",
    ],
)
def test_no_other_archive_without_a_hash_is(checkout: Path, resolved: str) -> None:
    _in_lock(resolved)(checkout)
    refused = inputs_of(checkout)
    assert isinstance(refused, NotShared)
    assert "yarn.lock does not pin c@" in refused.reason


def test_a_lock_file_that_is_a_link_is_not_followed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "yarn.lock"
    elsewhere.write_text(LOCK)
    (checkout / "yarn.lock").unlink()
    (checkout / "yarn.lock").symlink_to(elsewhere)
    assert isinstance(inputs_of(checkout), NotShared)


@pytest.mark.parametrize(
    ("where", "own"), [("~1.11", False), ("lab/jquery#1", False), ("./lib/ours", True), ("..\\ours", True)]
)
def test_bower_may_want_files_of_the_repository(checkout: Path, where: str, own: bool) -> None:
    (checkout / "bower.json").write_text(json.dumps({"dependencies": {"ours": where}}))
    assert found(checkout).own_files_for_bower is own


def test_the_example_player_can_be_shared() -> None:
    example = Path(__file__).parents[3] / "examples" / "frameplayer"
    inputs = found(example)
    assert inputs.files == ("package.json", "yarn.lock", ".bowerrc")
