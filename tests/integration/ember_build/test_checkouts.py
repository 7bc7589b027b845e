"""From an archive to a checkout: honest archives, hostile ones, and two builds at once."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import struct
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ember_build.errors import BuildCancelled, BuildPlatformError, InvalidPlayer
from ember_build.source.checkouts import ArchiveLimits, Checkouts
from ember_build.source.github import GitHub
from ember_build.source.repository import Repository, ResolvedCommit
from lookit_ops.demo.github_server import Commit, GitHubServer
from tests.support.faulty_github import Faults, archive_of, body, cut_silently, entry, status

PLAYER = Repository("lookit", "player")
COMMIT = Commit(
    {"package.json": b"{}", "app/app.js": b"play()\n" * 100, "bin/run.sh": b"#!/bin/sh\n", "app/ä b.txt": b""},
    "a player",
    executables=frozenset({"bin/run.sh"}),
)
RESOLVED = ResolvedCommit(PLAYER, COMMIT.sha, substituted=False, reason="It was asked for.")
TOP = f"player-{COMMIT.sha}"


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def github(faults) -> Iterator[GitHub]:
    with GitHubServer({"lookit/player": [COMMIT]}, on_request=faults) as server:
        yield GitHub(server.url, server.url, attempts=2, timeout=(2, 2), sleep=lambda _: None)


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "checkouts"


@pytest.fixture
def checkouts(root, github) -> Checkouts:
    return Checkouts(root, github)


class Archive(GitHub):
    """Hands out one archive of ours, without a network in between."""

    content = b""

    def download_archive(self, repository, sha, destination, max_bytes):
        destination.write_bytes(self.content)
        return len(self.content)


def fetch(root: Path, content: bytes, limits: ArchiveLimits | None = None):
    github = Archive("https://api.invalid", "https://invalid")
    type(github).content = content
    return Checkouts(root, github, limits).fetch(RESOLVED)


def left_over(root: Path) -> list[str]:
    """All that is in the folder of checkouts but the locks."""
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and ".locks" not in path.parts
    )


def test_the_tree_is_the_commits_without_the_top_folder(checkouts, root):
    checkout = checkouts.fetch(RESOLVED)
    assert checkout.path == root / "lookit__player" / COMMIT.sha == checkouts.path_of(PLAYER, COMMIT.sha)
    found = {p.relative_to(checkout.path).as_posix(): p.read_bytes() for p in checkout.path.rglob("*") if p.is_file()}
    assert found == COMMIT.tree
    assert checkout.file_count == 4
    assert checkout.size_bytes == sum(map(len, COMMIT.tree.values()))
    assert not checkout.reused
    assert not list(root.glob(".incoming-*"))


def test_only_the_executable_bit_is_kept_whatever_the_umask(root):
    names = {"run": 0o4755, "plain": 0o666, "sticky": 0o1644, "group": 0o2775, "hidden": 0o000}
    entries = [(entry(f"top/{name}", stat.S_IFREG | mode), b"") for name, mode in names.items()]
    before = os.umask(0o077)
    try:
        path = fetch(root, archive_of([*entries, ("top/folder/file", b"")])).path
    finally:
        os.umask(before)
    modes = {p.relative_to(path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in (path, *path.rglob("*"))}
    assert modes == {
        ".": 0o755,
        "run": 0o755,
        "group": 0o755,
        "plain": 0o644,
        "sticky": 0o644,
        "hidden": 0o644,
        "folder": 0o755,
        "folder/file": 0o644,
    }


def test_the_second_time_nothing_is_downloaded_and_the_checkout_looks_young(checkouts, faults):
    first = checkouts.fetch(RESOLVED)
    old = time.time() - 90_000
    os.utime(first.path, (old, old))
    second = checkouts.fetch(RESOLVED)
    assert second.reused
    assert (second.path, second.file_count, second.size_bytes) == (first.path, first.file_count, first.size_bytes)
    assert len(faults.paths("/archive/")) == 1
    assert time.time() - second.path.stat().st_mtime < 60


def break_by_a_missing_file(path: Path) -> None:
    (path / "package.json").unlink()


def break_by_a_cut_file(path: Path) -> None:
    (path / "app/app.js").write_bytes(b"")


def break_by_a_missing_tree(path: Path) -> None:
    shutil.rmtree(path)


def break_by_a_missing_manifest(path: Path) -> None:
    path.with_name(f"{path.name}.json").unlink()


def break_by_an_unreadable_manifest(path: Path) -> None:
    path.with_name(f"{path.name}.json").write_text('{"file_count"')


def break_by_a_manifest_of_another_kind(path: Path) -> None:
    path.with_name(f"{path.name}.json").write_text('{"files": 3}')


@pytest.mark.parametrize(
    "damage",
    [
        break_by_a_missing_file,
        break_by_a_cut_file,
        break_by_a_missing_tree,
        break_by_a_missing_manifest,
        break_by_an_unreadable_manifest,
        break_by_a_manifest_of_another_kind,
    ],
)
def test_a_checkout_that_does_not_agree_with_its_manifest_is_made_anew(checkouts, faults, damage):
    damage(checkouts.fetch(RESOLVED).path)
    again = checkouts.fetch(RESOLVED)
    assert not again.reused
    assert len(faults.paths("/archive/")) == 2
    assert checkouts.fetch(RESOLVED).reused
    assert {p.relative_to(again.path).as_posix() for p in again.path.rglob("*") if p.is_file()} == set(COMMIT.tree)


def test_many_at_once_share_one_download(root, github, faults):
    barrier = threading.Barrier(8)

    def build(_):
        barrier.wait()
        return Checkouts(root, github).fetch(RESOLVED)

    with ThreadPoolExecutor(8) as pool:
        checkouts = list(pool.map(build, range(8)))
    assert sorted(checkout.reused for checkout in checkouts) == [False] + [True] * 7
    assert len({checkout.path for checkout in checkouts}) == 1
    assert len(faults.paths("/archive/")) == 1


def test_a_broken_archive_is_downloaded_once_more(checkouts, faults):
    faults.on("/archive/", cut_silently, times=1)
    assert checkouts.fetch(RESOLVED).file_count == 4
    assert len(faults.paths("/archive/")) == 2


def with_a_wrong_checksum() -> bytes:
    content = bytearray(archive_of({"top/file": b"0123456789" * 50}))
    content[content.index(b"PK\x01\x02") + 16] ^= 0xFF  # the CRC in the list of entries
    content[14] ^= 0xFF  # and at the entry
    return bytes(content)


BROKEN = {
    "nothing": b"",
    "a web page": b"<html>Sign in</html>",
    "half": COMMIT.archive("player")[:300],
    "no end": archive_of({"top/file": b"x"})[:-30],
    "a wrong checksum": with_a_wrong_checksum(),
    "another commit's": archive_of({"top/file": b"x"}, comment=b"0" * 40),
    "an offset before the beginning": archive_of({"top/file": b"x"}).replace(
        struct.pack("<L", 46 + 8), struct.pack("<L", 2**31)
    ),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_an_archive_that_stays_broken_is_refused_and_leaves_nothing(checkouts, faults, root, content):
    faults.on("/archive/", body(content))
    with pytest.raises(InvalidPlayer, match="broken archive"):
        checkouts.fetch(RESOLVED)
    assert len(faults.paths("/archive/")) == 2
    assert left_over(root) == []


def encrypted() -> bytes:
    content = bytearray(archive_of({"top/file": b"secret"}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def compressed_with(method: int) -> bytes:
    info = entry("top/file")
    info.compress_type = method
    return archive_of([(info, b"x" * 100)])


def file(name: str) -> bytes:
    return archive_of([(entry("top/innocent"), b""), (entry(name), b"evil")])


HOSTILE = {
    "parent": file("top/../../evil"),
    "parent first": file("../evil"),
    "parent last": file("top/.."),
    "absolute": file("/etc/passwd"),
    "doubly absolute": file("//host/share"),
    "backslash": file("top\\..\\..\\evil"),
    "backslash within": file("top/a\\b"),
    "drive": file("C:/evil"),
    "drive within": file("top/C:evil"),
    "nul": file("top/evil\0.txt"),
    "newline": file("top/evil\n.txt"),
    "escape sequence": file("top/\x1b[2Jevil"),
    "dot": file("top/./evil"),
    "empty part": file("top//evil"),
    "outside of the top folder": file("evil"),
    "two top folders": file("top2/evil"),
    "long name": file("top/" + "e" * 256),
    "long name in bytes": file("top/" + "é" * 128),
    "long path": file("top/" + "e/" * 600 + "evil"),
    "symbolic link": archive_of([(entry("top/link", stat.S_IFLNK | 0o777), b"/etc/passwd")]),
    "symbolic link as a folder": archive_of([(entry("top/link/", stat.S_IFLNK | 0o777), b"/etc")]),
    "device": archive_of([(entry("top/null", stat.S_IFCHR | 0o666), b"")]),
    "pipe": archive_of([(entry("top/pipe", stat.S_IFIFO | 0o666), b"")]),
    "socket": archive_of([(entry("top/socket", stat.S_IFSOCK | 0o666), b"")]),
    "file that says it is a folder": archive_of([(entry("top/file", stat.S_IFDIR | 0o755), b"")]),
    "folder that says it is a file": archive_of([(entry("top/folder/", stat.S_IFREG | 0o755), b"")]),
    "case": archive_of({"top/Readme": b"1", "top/README": b"2"}),
    "case of folders": archive_of({"top/App/a": b"1", "top/app/b": b"2"}),
    "composed letters": archive_of({"top/\u00e9": b"1", "top/e\u0301": b"2"}),
    "file and folder": archive_of({"top/a": b"1", "top/a/b": b"2"}),
    "folder and file": archive_of({"top/a/b": b"1", "top/a": b"2"}),
    "encrypted": encrypted(),
    "bzip2": compressed_with(zipfile.ZIP_BZIP2),
    "lzma": compressed_with(zipfile.ZIP_LZMA),
    "no entry": archive_of({}),
    "only folders": archive_of([(entry("top/", stat.S_IFDIR | 0o755), b"")]),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(root, tmp_path, content):
    with pytest.raises(InvalidPlayer, match=f"lookit/player at {COMMIT.sha} is refused"):
        fetch(root, content)
    assert left_over(root) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkouts"]
    assert sorted(path.name for path in root.iterdir()) == [".locks", "lookit__player"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("C:evil", "drive letter, which is another disk on some systems"),
        ("/evil", "is absolute"),
        ("\x1b[2J", "control characters or a backslash"),
        ("\udc80", "is not in UTF-8"),
    ],
)
def test_a_refusal_tells_the_true_reason(root, name, told):
    if name.isprintable() or "\x1b" in name:
        content = archive_of([(entry(f"top/{name}" if not name.startswith("/") else name), b"")])
    else:  # a name in an old encoding, as git writes it: without the flag for UTF-8
        content = archive_of({"top/caf_.png": b"x"}).replace(b"caf_", b"caf\xe9")
    with pytest.raises(InvalidPlayer, match=told):
        fetch(root, content)


def test_names_in_utf_8_and_with_colons_are_kept(root):
    fetched = fetch(root, archive_of({"top/caf\u00e9.png": b"x", "top/12:30 break.mp3": b"y"}))
    assert sorted(path.name for path in fetched.path.iterdir()) == ["12:30 break.mp3", "caf\u00e9.png"]


def test_an_entry_that_is_there_twice_is_refused(root):
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = archive_of([(entry("top/a"), b"1"), (entry("top/a"), b"2")])
    with pytest.raises(InvalidPlayer, match="two entries"):
        fetch(root, content)


def test_the_limit_of_entries(root):
    content = archive_of({f"top/{number}": b"" for number in range(11)})
    with pytest.raises(InvalidPlayer, match=r"11 files and folders .* 10 are allowed"):
        fetch(root, content, ArchiveLimits(entries=10))
    assert fetch(root, content, ArchiveLimits(entries=11)).file_count == 11


def test_the_folders_that_names_imply_count_as_entries(root):
    content = archive_of({f"top/{number}/a/b/c/file": b"" for number in range(4)})
    with pytest.raises(InvalidPlayer, match=r"20 files and folders .* 19 are allowed"):
        fetch(root, content, ArchiveLimits(entries=19))
    assert not left_over(root)
    assert fetch(root, content, ArchiveLimits(entries=20)).file_count == 4


def test_a_very_deep_folder_is_made_once_not_once_for_each_of_its_files(root, monkeypatch):
    deep = "d/" * 450
    made: list[Path] = []
    chmod = Path.chmod
    monkeypatch.setattr(Path, "chmod", lambda path, mode, **more: (made.append(path), chmod(path, mode, **more)))
    assert fetch(root, archive_of({f"top/{deep}{number}": b"" for number in range(3_000)})).file_count == 3_000
    assert len(made) < 500  # it was 1.35 million


def test_a_cancellation_is_heard_while_an_archive_is_unpacked(root):
    content = archive_of({f"top/{number}": bytes(1000) for number in range(5_000)})
    stop = threading.Event()

    class Cancelling(Archive):
        def download_archive(self, repository, sha, destination, max_bytes):
            stop.set()
            return super().download_archive(repository, sha, destination, max_bytes)

    Cancelling.content = content
    checkouts = Checkouts(root, Cancelling("https://api.invalid", "https://invalid")).cancelled_by(stop)
    with pytest.raises(BuildCancelled, match="unpacked"):
        checkouts.fetch(RESOLVED)
    assert not left_over(root)


def test_a_list_of_entries_that_would_fill_the_memory_is_not_even_read(root, monkeypatch):
    content = archive_of({f"top/{'long-name' * 20}{number}": b"" for number in range(500)})
    monkeypatch.setattr(zipfile.ZipFile, "infolist", lambda _: pytest.fail("it was read"))
    with pytest.raises(InvalidPlayer, match="list of entries takes"):
        fetch(root, content, ArchiveLimits(entries=10))


def test_zip64_is_refused(root):
    info = entry("top/file")
    content = archive_of([(info, b"x")])
    end = content.index(b"PK\x05\x06")
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    with pytest.raises(InvalidPlayer, match="ZIP64"):
        fetch(root, content[:end] + locator + content[end:])


def test_the_limit_of_extracted_bytes(root):
    content = archive_of({"top/a": os.urandom(600), "top/b": os.urandom(600)})
    with pytest.raises(InvalidPlayer, match="more than the 1,000 bytes"):
        fetch(root, content, ArchiveLimits(extracted_bytes=1000))
    assert left_over(root) == []
    assert fetch(root, content, ArchiveLimits(extracted_bytes=1200)).size_bytes == 1200


def test_a_bomb_is_stopped_by_its_ratio_though_its_header_lies(root):
    content = bytearray(archive_of({"top/bomb": b"\0" * 30 * 2**20}))
    with pytest.raises(InvalidPlayer, match="it grows to more than"):
        fetch(root, bytes(content), ArchiveLimits(ratio=100))
    listed = content.index(b"PK\x01\x02")
    content[22:26] = content[listed + 24 : listed + 28] = struct.pack("<L", 10)
    with pytest.raises(InvalidPlayer):
        fetch(root, bytes(content), ArchiveLimits(ratio=100))
    assert left_over(root) == []


def test_a_small_repetitive_file_is_no_bomb(root):
    assert fetch(root, archive_of({"top/a": b"\0" * 2**20}), ArchiveLimits(ratio=2)).size_bytes == 2**20


def test_the_limit_of_the_archive(root, github):
    limits = ArchiveLimits(archive_bytes=100)
    with pytest.raises(InvalidPlayer, match="more than the 100 bytes"):
        Checkouts(root, github, limits).fetch(RESOLVED)


def test_a_github_in_trouble_leaves_nothing(checkouts, faults, root):
    faults.on("/archive/", status(503))
    with pytest.raises(BuildPlatformError):
        checkouts.fetch(RESOLVED)
    assert left_over(root) == []


@pytest.mark.parametrize("fault", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_nothing(checkouts, root, monkeypatch, fault):
    def interrupt(*_):
        raise fault

    monkeypatch.setattr(zipfile.ZipExtFile, "read", interrupt)
    with pytest.raises(fault):
        checkouts.fetch(RESOLVED)
    assert left_over(root) == []
    assert not list(root.glob(".incoming-*"))


def test_a_full_disk_is_the_platforms_trouble(checkouts, root, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(BuildPlatformError, match="is full; free some space"):
        checkouts.fetch(RESOLVED)
    assert left_over(root) == []


def test_a_root_that_cannot_be_is_the_platforms_trouble(github, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildPlatformError, match="check the folder"):
        Checkouts(tmp_path / "file", github).fetch(RESOLVED)


hostile_parts = st.one_of(
    st.sampled_from(["", ".", "..", "a", "A", "top", "C:", "\\", "\0", "nul", "~", "-rf", "con.txt", "é", "e\u0301"]),
    st.text(max_size=12),
)
hostile_names = st.lists(hostile_parts, min_size=1, max_size=5).map("/".join)


@given(st.lists(hostile_names, min_size=1, max_size=6, unique=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_whatever_the_names_nothing_is_written_outside(tmp_path, names):
    place = tmp_path / "place"
    shutil.rmtree(place, ignore_errors=True)
    try:
        content = archive_of([(entry(f"top/{name}"), b"x") for name in names])
    except UnicodeEncodeError:
        return
    try:
        checkout = fetch(place / "a" / "checkouts", content)
    except InvalidPlayer:
        checkout = None
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert [path.name for path in place.iterdir()] == ["a"]
    assert [path.name for path in (place / "a").iterdir()] == ["checkouts"]
    root = place / "a" / "checkouts"
    if checkout is None:
        assert left_over(root) == []
    else:
        inside = {path.relative_to(checkout.path).as_posix() for path in checkout.path.rglob("*") if path.is_file()}
        assert inside == {name for name in names if not name.endswith("/")}


@given(st.binary(max_size=400), st.integers(0, 10**6), st.integers(0, 10))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_whatever_the_bytes_the_answer_is_a_checkout_or_a_refusal(tmp_path, noise, at, length):
    root = tmp_path / "checkouts"
    shutil.rmtree(root, ignore_errors=True)
    honest = COMMIT.archive("player")
    at %= len(honest)
    try:
        fetch(root, honest[:at] + noise + honest[at + length :])
    except InvalidPlayer:
        assert left_over(root) == []


def test_a_commit_from_a_folder_is_the_same_each_time_and_leaves_builds_out(tmp_path):
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    for name in ("app/a.js", "node_modules/x/y.js", "dist/z.js", "bower_components/b", "tmp/t"):
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    (base / "run.sh").write_text("#!/bin/sh")
    (base / "run.sh").chmod(0o755)
    (base / "link").symlink_to("/etc/passwd")
    (overlay / "app").mkdir(parents=True)
    (overlay / "app/a.js").write_text("new")
    plain = Commit.from_folder(base, message="first")
    laid_over = Commit.from_folder(base, overlay, "second")
    assert set(plain.tree) == {"app/a.js", "run.sh"}
    assert plain.executables == {"run.sh"}
    assert laid_over.tree["app/a.js"] == b"new"
    assert plain.sha != laid_over.sha
    assert plain.sha == Commit.from_folder(base, message="first").sha
    assert plain.archive("player") == Commit.from_folder(base, message="first").archive("player")


def test_a_cancellation_is_heard_while_another_build_fetches_the_same_commit(root, github, checkouts):
    checkouts.fetch(RESOLVED)
    lock = root / ".locks" / f"lookit__player@{COMMIT.sha}"
    stop = threading.Event()
    with lock.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.5, stop.set).start()
        began = time.monotonic()
        with pytest.raises(BuildCancelled, match="another one fetched the same commit"):
            checkouts.cancelled_by(stop).fetch(RESOLVED)
        assert time.monotonic() - began < 0.5 + 2


def test_commits_of_two_repositories_never_wait_for_each_other(root, checkouts):
    """Their SHAs began with the same two digits, and one waited for the other's download."""
    other = root / ".locks" / f"stranger__player@{COMMIT.sha}"
    other.parent.mkdir(parents=True)
    with other.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert checkouts.fetch(RESOLVED).file_count == 4


def test_locks_of_checkouts_that_are_gone_are_removed_but_not_those_that_are_held(root, checkouts):
    checkouts.fetch(RESOLVED)
    locks = root / ".locks"
    kept, gone, held = (
        locks / f"lookit__player@{COMMIT.sha}",
        locks / ("a__b@" + "1" * 40),
        locks / ("a__b@" + "2" * 40),
    )
    gone.touch()
    with held.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        checkouts.clean(0, lambda _: True, dry_run=True)
        assert gone.exists()
        checkouts.clean(0, lambda _: True, dry_run=False)
    assert sorted(locks.iterdir()) == sorted([kept, held])
