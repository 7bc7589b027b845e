"""`install.sh compare`: GitHub's archives are held to what they held when they came for the first time."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "ember_build" / "docker" / "image" / "install.sh"
ADDRESS = f"https://codeload.github.com/lab/sounds/tar.gz/{'a' * 40}"
OTHER = f"https://codeload.github.com/lab/sounds/tar.gz/{'b' * 40}"


class Downloads:
    """A cache as yarn leaves it, and what is remembered beside it."""

    def __init__(self, root: Path) -> None:
        self.cache, self.first_seen = root / "cache", root / "first-seen"
        self.cache.mkdir()
        self.first_seen.mkdir()

    def fetch(self, address: str, version: str = "1.0.0", **files: str) -> Path:
        """As yarn puts a package of this address into its cache."""
        folder = self.cache / "v6" / f"npm-sounds-{version}" / "node_modules" / "sounds"
        folder.mkdir(parents=True, exist_ok=True)
        remote = {"resolved": address, "type": "tarball", "reference": address, "hash": "", "registry": "npm"}
        (folder / ".yarn-metadata.json").write_text(json.dumps({"manifest": {}, "remote": remote}, indent=2))
        (folder / ".yarn-tarball.tgz").write_bytes(b"compressed in some way")
        for name, text in {"index.js": "1", **files}.items():
            (folder / name).write_text(text)
        return folder

    def compare(self, *addresses: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": path,
            "YARN_CACHE_FOLDER": str(self.cache),
            "FIRST_SEEN_DIR": str(self.first_seen),
            "GITHUB_ARCHIVES": " ".join(addresses),
        }
        command = ["/bin/bash", str(SCRIPT), "compare"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def downloads(tmp_path: Path) -> Downloads:
    return Downloads(tmp_path)


def test_the_first_is_remembered_and_the_same_again_is_fine_however_it_was_compressed(downloads: Downloads) -> None:
    folder = downloads.fetch(ADDRESS)
    assert downloads.compare(ADDRESS).returncode == 0
    (remembered,) = downloads.first_seen.iterdir()
    assert remembered.read_text().split()[1] == ADDRESS
    (folder / ".yarn-tarball.tgz").write_bytes(b"compressed in another way")
    again = downloads.compare(ADDRESS)
    assert (again.returncode, again.stderr) == (0, "")
    assert list(downloads.first_seen.iterdir()) == [remembered]


def change_a_file(folder: Path) -> None:
    (folder / "index.js").write_text("2")


def add_a_file(folder: Path) -> None:
    (folder / "more.js").touch()


def rename_a_file(folder: Path) -> None:
    (folder / "index.js").rename(folder / "main.js")


def make_a_file_executable(folder: Path) -> None:
    (folder / "index.js").chmod(0o755)


def add_a_link(folder: Path) -> None:
    (folder / "link.js").symlink_to("/etc/hosts")


@pytest.mark.parametrize("change", [change_a_file, add_a_file, rename_a_file, make_a_file_executable, add_a_link])
def test_anything_else_than_the_first_is_refused_and_not_remembered(downloads: Downloads, change) -> None:
    folder = downloads.fetch(ADDRESS)
    assert downloads.compare(ADDRESS).returncode == 0
    (remembered,) = downloads.first_seen.iterdir()
    before = remembered.read_text()
    change(folder)
    for _ in range(2):
        refused = downloads.compare(ADDRESS)
        assert refused.returncode == 1
        assert f"error: {ADDRESS} holds something else than at the first time, which was 2" in refused.stdout
    assert remembered.read_text() == before


def test_a_record_that_a_loss_of_power_left_empty_is_written_again(downloads: Downloads) -> None:
    downloads.fetch(ADDRESS)
    assert downloads.compare(ADDRESS).returncode == 0
    (remembered,) = downloads.first_seen.iterdir()
    before = remembered.read_text()
    remembered.write_text("")
    assert downloads.compare(ADDRESS).returncode == 0
    assert remembered.read_text() == before
    assert list(downloads.first_seen.iterdir()) == [remembered]


def test_a_record_that_cannot_be_made_is_not_told_as_other_contents(downloads: Downloads, tmp_path: Path) -> None:
    """As on a volume without hard links."""
    downloads.fetch(ADDRESS)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ln").write_text("#!/bin/sh\necho 'ln: Operation not permitted' >&2\nexit 1\n")
    (tools / "ln").chmod(0o755)
    refused = downloads.compare(ADDRESS, path=f"{tools}:/usr/bin:/bin")
    assert refused.returncode == 1
    assert "cannot be remembered: ln: Operation not permitted" in refused.stdout
    assert "something else" not in refused.stdout
    assert list(downloads.first_seen.iterdir()) == []


def test_what_nothing_needs_any_more_is_left_out(downloads: Downloads) -> None:
    downloads.fetch(ADDRESS)
    assert downloads.compare(OTHER).returncode == 0
    assert list(downloads.first_seen.iterdir()) == []


def test_of_many_at_once_the_first_counts(downloads: Downloads) -> None:
    downloads.fetch(ADDRESS)
    downloads.fetch(OTHER, version="2.0.0", **{"index.js": "2"})
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: downloads.compare(ADDRESS, OTHER).returncode, range(6)))
    assert done == [0] * 6
    assert len(list(downloads.first_seen.iterdir())) == 2
