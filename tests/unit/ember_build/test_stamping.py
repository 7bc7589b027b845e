"""Stamping: the bundle of one study becomes what a build for another one makes, byte for byte, or is refused."""

from __future__ import annotations

import base64
import gzip
import hashlib
import uuid
from collections.abc import Callable, Mapping
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember_build.errors import NotStampable
from ember_build.templates.stamping import first_difference, stamp
from tests.support.tool_chain import build

A, B = "5c1c3f0e-6f0b-4d2c-9a7e-1b8d4e2f7a90", "e7d20b54-93aa-4f61-8c3d-70f5b6a1c2d8"


def prefix_of(study: str) -> str:
    return f"/studies/{study}/"


SOURCES = {
    "index.html": '<meta content="{config}"><link href="assets/app.css"><script src="assets/vendor.js"></script>'
    '<script src="assets/app.js"></script>',
    "assets/vendor.js": "vendor()",
    "assets/app.js": 'root="{root}"; lazy="assets/lazy.js"; picture="assets/logo.png"',
    "assets/lazy.js": 'font="assets/icons.woff"; back="assets/app.js"',
    "assets/app.css": "a{background:url(assets/logo.png)}@font-face{src:url(assets/icons.woff)}",
    "assets/logo.png": "\x89PNG",
    "assets/icons.woff": "wOFF",
    "robots.txt": "User-agent: *",
}


def bundle(study: str, extra: Mapping[str, str] | None = None, *, integrity: bool = False) -> dict[str, bytes]:
    config = quote(f'{{"rootURL":"{prefix_of(study)}","locationType":"auto"}}', safe="")
    sources = {path: text.replace("{config}", config) for path, text in {**SOURCES, **(extra or {})}.items()}
    return build(sources, prefix_of(study), integrity=integrity)


@pytest.mark.parametrize("integrity", [False, True])
def test_the_stamp_is_what_the_build_makes(integrity: bool) -> None:
    built, wanted = bundle(A, integrity=integrity), bundle(B, integrity=integrity)
    assert built.keys() != wanted.keys(), "names follow from contents"
    assert stamp(built, prefix_of(A), prefix_of(B)) == wanted
    assert stamp(wanted, prefix_of(B), prefix_of(A)) == built
    assert stamp(built, prefix_of(A), prefix_of(A)) == built


def test_a_list_of_files_to_cache_tells_their_new_contents() -> None:
    def with_list(study: str) -> dict[str, bytes]:
        files = bundle(study)
        lines = [f"{path} {hashlib.md5(content, usedforsecurity=False).hexdigest()}" for path, content in files.items()]
        return {**files, "worker.js": "\n".join(lines).encode()}

    assert stamp(with_list(A), prefix_of(A), prefix_of(B)) == with_list(B)


def test_names_follow_over_three_files() -> None:
    def chain(study: str) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        named = prefix_of(study)
        for name in ("one", "two", "three"):
            content = f"import '{named}'".encode()
            named = f"{name}-{hashlib.md5(content, usedforsecurity=False).hexdigest()}.mjs"
            files[named] = content
        return {**files, "index.html": named.encode()}

    assert stamp(chain(A), prefix_of(A), prefix_of(B)) == chain(B)


def hidden_in(name: str, content: Callable[[str], bytes]) -> dict[str, bytes]:
    return {**bundle(A), name: content(A)}


REFUSED: dict[str, tuple[str, Callable[[str], bytes], str]] = {
    "base64": ("a.txt", lambda study: base64.b64encode(f"x{prefix_of(study)}".encode()), "base64"),
    "base64 of the UUID": ("a.txt", lambda study: base64.b64encode(study.encode()), "base64"),
    "two strings": ("a.txt", lambda study: f"'/studies/{study[:20]}' + '{study[20:]}/'".encode(), "outside its prefix"),
    "without dashes": ("a.txt", lambda study: study.replace("-", "").encode(), "outside its prefix"),
    "upper case": ("a.txt", lambda study: prefix_of(study).upper().encode(), "outside its prefix"),
    "reversed": ("a.txt", lambda study: prefix_of(study)[::-1].encode(), "outside its prefix"),
    "escaped in a script": ("a.txt", lambda study: prefix_of(study).replace("/", "\\/").encode(), "outside its prefix"),
    "the UUID alone": ("a.txt", lambda study: study.encode(), "outside its prefix"),
    "the key of an object": ("a.txt", lambda study: f'{{"{prefix_of(study)}": 1}}'.encode(), "key of an object"),
    "an encoded key": ("a.txt", lambda study: quote(f'{{"{prefix_of(study)}":1}}', safe="").encode(), "key of an obj"),
    "a binary file": ("a.bin", lambda study: b"\xff\x00" + prefix_of(study).encode(), "not text in UTF-8"),
    "text in Latin-1": ("a.txt", lambda study: f"é {prefix_of(study)}".encode("latin-1"), "not text in UTF-8"),
    "a random name": (f"a-{'0f' * 16}.js", lambda study: prefix_of(study).encode(), "not the md5 of its contents"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_explained_is_refused_with_the_file(what: str) -> None:
    name, content, message = REFUSED[what]
    with pytest.raises(NotStampable, match=f"^{name} .*{message}"):
        stamp(hidden_in(name, content), prefix_of(A), prefix_of(B))


def test_a_uuid_in_a_name_and_a_compressed_copy_are_refused() -> None:
    for name in (f"{A}.js", f"{A.upper()}/x.js"):
        with pytest.raises(NotStampable, match="UUID in its name"):
            stamp({**bundle(A), name: b""}, prefix_of(A), prefix_of(B))
    with pytest.raises(NotStampable, match=r"index\.html\.gz is a compressed copy of index\.html"):
        stamp({**bundle(A), "index.html.gz": gzip.compress(b"x")}, prefix_of(A), prefix_of(B))
    assert stamp({**bundle(A), "robots.txt.gz": b"x"}, prefix_of(A), prefix_of(B)), "that one holds no prefix"


def test_a_uuid_of_the_players_own_stays_and_a_source_map_is_stamped() -> None:
    own = "0b1c2d3e-4f50-4617-8899-aabbccddeeff"

    def player(study: str) -> dict[str, bytes]:
        source_map = f'{{"sources":["app.js"],"sourcesContent":["root = \'{prefix_of(study)}\'; id = \'{own}\'"]}}'
        return bundle(study, {"assets/app.map": source_map.replace("{", "{{").replace("}", "}}")})

    assert stamp(player(A), prefix_of(A), prefix_of(B)) == player(B)
    assert own.encode() in b"".join(player(B).values())


def test_names_that_follow_from_themselves_are_refused() -> None:
    one, two = "1" * 32, "2" * 32
    files = {f"a-{one}.mjs": f"{prefix_of(A)} {two}".encode(), f"b-{two}.mjs": one.encode()}
    with pytest.raises(NotStampable):
        stamp(files, prefix_of(A), prefix_of(B))


def test_what_is_no_prefix_is_an_error() -> None:
    with pytest.raises(ValueError, match="is not the prefix of a study"):
        stamp({}, "/", prefix_of(B))


PATHS = [*(f"assets/{name}.js" for name in "abc"), *(f"assets/{name}.css" for name in "de"), "assets/f.png", "g.svg"]
TEXT = st.lists(st.sampled_from([*PATHS, "{root}", "{root}x/", "word", "é", " "]), max_size=6).map(" ".join)
BUNDLES = st.fixed_dictionaries(
    {"index.html": TEXT.map(lambda text: f'{{root}} {text} "assets/a.js"')}, optional=dict.fromkeys(PATHS, TEXT)
)


@settings(deadline=None, max_examples=300)
@given(BUNDLES, st.uuids(version=4), st.uuids(version=4), st.booleans())
def test_any_bundle_of_the_tool_chain_is_stamped_as_it_would_be_built(
    sources: dict[str, str], one: uuid.UUID, other: uuid.UUID, integrity: bool
) -> None:
    a, b = prefix_of(str(one)), prefix_of(str(other))
    built, wanted = build(sources, a, integrity=integrity), build(sources, b, integrity=integrity)
    assert first_difference(stamp(built, a, b), wanted) is None
    assert stamp(wanted, b, a) == built
