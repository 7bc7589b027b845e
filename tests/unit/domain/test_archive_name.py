"""Names of archives and their members: they tell the contents, and no system trips over them."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile
from datetime import date
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.models import ArchiveKind
from domain.videos.archive_names import LONGEST_NAME, MANIFEST_NAME, archive_key, download_name, member_names

STUDY = UUID("0d6a8a0c-5b0e-4b5f-9f1e-1d2c3b4a5f60")
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}

etags = st.text("0123456789abcdef-", min_size=1, max_size=34)
videos = st.dictionaries(st.text(), etags, max_size=12)
awkward = st.one_of(
    st.text(max_size=300),
    st.text("aAbB._-/\\ :*?\x00\n\u202e\u00e9", max_size=8),
    st.sampled_from(
        ["con", "CON.mp4", "nul .webm", "lpt1.a.b", "MANIFEST.csv", "manifest.CSV", "..", ".hidden", "-rf"]
    ),
    st.builds(lambda stem: f"{stem}.mp4", st.text("xX", min_size=190, max_size=260)),
)


def key_of(pairs: list[tuple[str, str]], kind: ArchiveKind = ArchiveKind.ALL, missing: tuple[str, ...] = ()) -> str:
    return archive_key(STUDY, kind, pairs, missing)


def test_the_name_is_study_digest_and_kind() -> None:
    lines = "a.mp4\t11\nb.mp4\t22"
    digest = hashlib.sha256(lines.encode()).hexdigest()
    pairs = [("b.mp4", "22"), ("a.mp4", "11")]
    assert key_of(pairs) == f"{STUDY}/{STUDY}_{digest}_all.zip"
    assert key_of(pairs, ArchiveKind.CONSENT) == f"{STUDY}/{STUDY}_{digest}_consent.zip"
    assert len(key_of(pairs, ArchiveKind.CONSENT)) <= 300  # the request's column


def test_quotation_marks_around_an_etag_change_nothing() -> None:
    assert key_of([("a.mp4", '"11"')]) == key_of([("a.mp4", "11")])


def test_a_changed_video_gives_a_new_name() -> None:
    assert key_of([("a.mp4", "11")]) != key_of([("a.mp4", "12")])


def test_the_names_of_what_is_missing_count_since_the_manifest_tells_them() -> None:
    pairs = [("a.mp4", "11")]
    assert len({key_of(pairs), key_of(pairs, missing=("b.mp4",)), key_of([*pairs, ("b.mp4", "22")])}) == 3
    assert key_of(pairs, missing=("b", "c")) == key_of(pairs, missing=("c", "b", "c"))


def test_one_key_with_two_etags_is_an_error() -> None:
    with pytest.raises(ValueError, match="two ETags"):
        key_of([("a.mp4", "11"), ("a.mp4", "12")])
    with pytest.raises(ValueError, match="two ETags"):
        key_of([("a.mp4", "11")], missing=("a.mp4",))


@given(videos, st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(etag_of: dict[str, str], chance: random.Random) -> None:
    pairs = list(etag_of.items())
    again = [*pairs, *pairs[:3]]
    chance.shuffle(again)
    assert key_of(again) == key_of(pairs)


tricky = st.text("ab\t\n\\", max_size=6)


@given(st.dictionaries(tricky, tricky, max_size=4), st.dictionaries(tricky, tricky, max_size=4))
def test_two_lists_have_one_name_only_if_they_are_the_same(one: dict[str, str], other: dict[str, str]) -> None:
    assert (key_of(list(one.items())) == key_of(list(other.items()))) == (one == other)


def test_a_tab_in_a_key_is_not_taken_for_the_one_before_the_etag() -> None:
    assert key_of([("a\tb", "c")]) != key_of([("a", "b\tc")])
    assert key_of([("a\t1\nb", "2")]) != key_of([("a", "1"), ("b", "2")])


@pytest.mark.parametrize(
    ("study", "name"),
    [
        ("Apples & oranges", "Apples_oranges_all_videos_2026-03-01.zip"),
        ("../../etc/passwd", "etc_passwd_all_videos_2026-03-01.zip"),
        ('a"; filename="b.exe', "a_filename_b.exe_all_videos_2026-03-01.zip"),
        ("りんご", "study_all_videos_2026-03-01.zip"),
        ("x" * 500, f"{'x' * 80}_all_videos_2026-03-01.zip"),
    ],
)
def test_the_file_on_a_researchers_disk_is_called_after_the_study(study: str, name: str) -> None:
    assert download_name(study, ArchiveKind.ALL, date(2026, 3, 1)) == name


def test_a_key_as_the_recorder_writes_it_stays_as_it_is() -> None:
    key = f"consent-videoStream_{STUDY}_1-video-consent_{STUDY}_1519757400123_417.mp4"
    assert member_names([key]) == {key: key}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("a/b\\c.mp4", "a_b_c.mp4"),
        ("../../etc/passwd", "__.._etc_passwd"),
        (".hidden.mp4", "_hidden.mp4"),
        ("-rf.mp4", "_rf.mp4"),
        ("a\x00b\nc.mp4", "a_b_c.mp4"),
        ("a\u202egpm.4pm", "a_gpm.4pm"),
        ("trailing. .", "trailing"),
        ("", "_"),
        ("...", "_"),
        ("CON", "_CON"),
        ("nul.mp4", "_nul.mp4"),
        ("Com1 .tar.gz", "_Com1 .tar.gz"),
        ("console.mp4", "console.mp4"),
    ],
)
def test_what_a_system_would_trip_over_is_replaced(key: str, name: str) -> None:
    assert member_names([key]) == {key: name}


def test_the_manifests_name_is_taken() -> None:
    (name,) = member_names(["manifest.CSV"]).values()
    assert name.lower() != MANIFEST_NAME.lower()
    assert name.endswith(".CSV")


def test_names_that_two_would_share_get_a_digest_and_others_none() -> None:
    names = member_names(["a/b.mp4", "a_b.mp4", "A_B.MP4", "c.mp4"])
    assert names["c.mp4"] == "c.mp4"
    digest = hashlib.sha256(b"a/b.mp4").hexdigest()[:12]
    assert names["a/b.mp4"] == f"a_b_{digest}.mp4"
    assert len({name.lower() for name in names.values()}) == 4


def test_who_calls_a_key_as_anothers_marked_name_gets_a_digest_too() -> None:
    marked = member_names(["a/b.mp4", "a_b.mp4"])["a/b.mp4"]
    names = member_names(["a/b.mp4", "a_b.mp4", marked])
    assert names["a/b.mp4"] == marked
    assert len(set(names.values())) == 3


def test_long_names_are_cut_before_the_extension_and_stay_apart() -> None:
    keys = [f"{'x' * 400}{number}.mp4" for number in range(3)]
    names = member_names(keys)
    assert len(set(names.values())) == 3
    assert all(len(name) == LONGEST_NAME and name.endswith(".mp4") for name in names.values())


def test_digests_that_begin_alike_are_lengthened(monkeypatch: pytest.MonkeyPatch) -> None:
    real = hashlib.sha256

    class Alike:
        def __init__(self, data: bytes) -> None:
            self.rest = real(data).hexdigest()

        def hexdigest(self) -> str:
            return "0" * 12 + self.rest[12:]

    monkeypatch.setattr("domain.videos.archive_names.hashlib.sha256", Alike)
    for keys in (["a/b", "a_b", "a:b"], [f"{'x' * 400}{number}.mp4" for number in range(3)]):
        assert len(set(member_names(keys).values())) == 3


@given(st.lists(awkward, max_size=12), st.randoms(use_true_random=False))
def test_members_names_are_safe_unique_and_independent_of_the_order(keys: list[str], chance: random.Random) -> None:
    names = member_names(keys)
    assert names.keys() == set(keys)
    assert len({name.lower() for name in (*names.values(), MANIFEST_NAME)}) == len(names) + 1
    for name in names.values():
        assert 0 < len(name) <= LONGEST_NAME
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set('/\\:*?"<>|')
        assert name[0] not in ".- "
        assert name[-1] not in ". "
        assert name.partition(".")[0].rstrip().lower() not in RESERVED
    chance.shuffle(keys)
    assert member_names([*keys, *keys]) == names


def test_a_zip_keeps_the_names_and_unpacks_flat(tmp_path) -> None:
    keys = ["../up.mp4", "/root.mp4", "C:\\windows.mp4", "a/b.mp4", "a_b.mp4", "é.mp4"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, name in member_names(keys).items():
            archive.writestr(name, key)
    with zipfile.ZipFile(buffer) as archive:
        archive.extractall(tmp_path)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == sorted(keys)
