"""The server of built studies gives out what is the study's, and nothing else of the machine."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from domain.models import BuildKind
from lookit_ops.deployments import folder_of
from lookit_ops.storage.local import HIDDEN, LocalExperimentBucket
from lookit_ops.study_server import StudyServer

STUDY = str(uuid4())
OTHER = str(uuid4())


@dataclass(frozen=True)
class Answer:
    status: int
    content: bytes
    type: str | None
    cache: str | None


@dataclass(frozen=True)
class Served:
    """A bucket, and what a browser gets of it."""

    bucket: LocalExperimentBucket
    server: StudyServer

    @property
    def folder(self) -> Path:
        return self.bucket.root / folder_of(BuildKind.DEPLOYMENT, STUDY)

    def get(self, path: str, study: str = STUDY) -> Answer:
        """What is answered to exactly this path: nobody tidies it up on its way."""
        connection = http.client.HTTPConnection(urlsplit(self.server.url).netloc, timeout=10)
        try:
            connection.request("GET", f"/studies/{study}{path}")
            answer = connection.getresponse()
            read = answer.read()
            return Answer(answer.status, read, answer.headers["Content-Type"], answer.headers["Cache-Control"])
        finally:
            connection.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    bucket = LocalExperimentBucket(tmp_path / "bucket")
    for study in (STUDY, OTHER):
        for kind in BuildKind:
            folder = folder_of(kind, study)
            bucket.put(f"{folder}/assets/app.js", b"app();", content_type="text/x-noted", cache_control="immutable")
            bucket.write_page(
                f"{folder}/index.html",
                f"<html>{kind} of {study}</html>".encode(),
                content_type="text/html; charset=utf-8",
                cache_control="no-cache",
                metadata={},
                if_generation=0,
            )
    with StudyServer(bucket, BuildKind.DEPLOYMENT) as server:
        yield Served(bucket, server)


def test_page_and_files_come_with_the_headers_that_they_were_stored_with(served: Served) -> None:
    page = Answer(200, f"<html>deployment of {STUDY}</html>".encode(), "text/html; charset=utf-8", "no-cache")
    assert served.get("/") == page
    assert served.get("/index.html") == page
    assert served.get("/assets/app.js") == Answer(200, b"app();", "text/x-noted", "immutable")
    assert served.get("").status == 301
    assert served.get("/assets/missing.js").status == 404


def test_a_file_of_which_nothing_is_noted_comes_with_safe_headers(served: Served) -> None:
    """Put there by hand, or by a worker that died between the file and the note."""
    (served.folder / "assets" / "added.css").write_text("body {}")
    (served.folder / "unknown.kind-of-file").write_text("?")
    (served.folder / "index.html").unlink()
    (served.folder / "index.html").write_text("<html>by hand</html>")
    added, unknown, page = served.get("/assets/added.css"), served.get("/unknown.kind-of-file"), served.get("/")
    assert (added.status, added.content, added.cache) == (200, b"body {}", "no-cache")
    assert str(added.type).startswith("text/css")
    assert (unknown.status, unknown.type) == (200, "application/octet-stream")
    assert (page.status, page.content) == (200, b"<html>by hand</html>")
    assert str(page.type).startswith("text/html")


def test_a_folder_is_no_file(served: Served) -> None:
    assert served.get("/assets").status == 404
    assert served.get("/assets/").status == 404


@pytest.mark.parametrize("is_page", [False, True])
@pytest.mark.parametrize(
    "target",
    [
        "outside",
        "other study",
        "other study's page",
        "preview",
        "the bucket's notes",
        "itself",
        "a folder outside",
    ],
)
def test_a_link_that_leads_out_of_the_study_is_not_followed(
    served: Served, tmp_path: Path, target: str, is_page: bool
) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret.txt").write_text("secret")
    link = served.folder / ("index.html" if is_page else "link.txt")
    link.unlink(missing_ok=True)
    other = served.bucket.root / folder_of(BuildKind.DEPLOYMENT, OTHER)
    places = {
        "outside": tmp_path / "private" / "secret.txt",
        "other study": other / "assets" / "app.js",
        "other study's page": other / "index.html",
        "preview": served.bucket.root / folder_of(BuildKind.PREVIEW, STUDY) / "index.html",
        "the bucket's notes": next((served.bucket.root / HIDDEN / "objects").rglob("*.json")),
        "itself": link,
        "a folder outside": tmp_path / "private",
    }
    link.symlink_to(places[target])
    below = "/secret.txt" if target == "a folder outside" else ""
    assert served.get(f"/{link.name}{below}").status == 404


def test_a_link_within_the_study_is_followed(served: Served) -> None:
    (served.folder / "again.js").symlink_to(served.folder / "assets" / "app.js")
    assert served.get("/again.js").content == b"app();"


def test_a_bucket_that_is_itself_reached_by_a_link_is_served(served: Served, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(served.bucket.root)
    with StudyServer(LocalExperimentBucket(tmp_path / "elsewhere"), BuildKind.DEPLOYMENT) as server:
        assert Served(served.bucket, server).get("/").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../preview_experiments/x",
        "/%2e%2e/%2e%2e/.bucket/environment",
        "/assets/..%2f..%2findex.html",
        "//etc/passwd",
        "/.deployments/1.json",
        "/a%00b",
        "/a%5cb",
        "/" + "a" * 2000,
        "/%ff",
    ],
)
def test_a_path_that_is_no_name_of_a_file_is_not_found(served: Served, path: str) -> None:
    assert served.get(path).status == 404
