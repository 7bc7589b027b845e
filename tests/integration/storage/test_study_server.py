"""The server of built studies gives out what is the study's, and nothing else of the machine."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import requests

from domain.models import BuildKind
from lookit_ops.deployments.manifest import folder_of
from lookit_ops.server.study_server import SANDBOX, StudyServer
from lookit_ops.storage.local.experiments import HIDDEN, LocalExperimentBucket
from tests.support.browser import chromium

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


@pytest.mark.parametrize("path", ["/", "/assets/app.js", "/assets/missing.js", ""])
def test_a_question_for_the_headers_is_answered_as_by_any_web_server(served: Served, path: str) -> None:
    address = f"{served.server.url}studies/{STUDY}{path}"
    whole = requests.get(address, timeout=10, allow_redirects=False)
    headers = requests.head(address, timeout=10, allow_redirects=False)
    assert (headers.status_code, headers.content) == (whole.status_code, b"")
    for name in ("Content-Type", "Content-Length", "Cache-Control", "Location"):
        assert headers.headers.get(name) == whole.headers.get(name)


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


# -- previews ----------------------------------------------------------------------------------------------------------

SECRET = b"<p id=secret>what the other lab has not published</p>"
HOSTILE = f"""<!doctype html><title>hostile</title><script>
const other = "/studies/{OTHER}/";
const tried = [];
async function attempt(address) {{
  try {{
    const answer = await fetch(address, {{credentials: "include"}});
    tried.push(answer.ok ? await answer.text() : "refused " + answer.status);
  }} catch (error) {{ tried.push("refused " + error.name); }}
}}
async function main() {{
  await attempt(other);
  await attempt(location.href.replaceAll("{STUDY}", "{OTHER}"));
  await new Promise(done => {{
    const frame = document.createElement("iframe");
    frame.src = location.href.replaceAll("{STUDY}", "{OTHER}");
    frame.onload = () => {{
      try {{ tried.push(frame.contentDocument.body.innerHTML); }}
      catch (error) {{ tried.push("refused " + error.name); }}
      done();
    }};
    document.body.append(frame);
  }});
  document.title = "done: " + tried.join(" | ");
}}
addEventListener("load", main);
</script><body></body>"""


@pytest.fixture
def previews(tmp_path: Path) -> LocalExperimentBucket:
    bucket = LocalExperimentBucket(tmp_path / "previews")
    kinds = {"content_type": "text/html; charset=utf-8", "cache_control": "no-cache"}
    for study, content in ((STUDY, HOSTILE.encode()), (OTHER, SECRET)):
        bucket.put(f"{folder_of(BuildKind.PREVIEW, study)}/index.html", content, **kinds)
    return bucket


@pytest.mark.browser
@pytest.mark.parametrize("per_study", ["{uuid}.localhost", None], ids=["an origin each", "one origin with a policy"])
def test_a_hostile_preview_reads_nothing_of_another_one(previews: LocalExperimentBucket, per_study: str | None) -> None:
    with StudyServer(previews, BuildKind.PREVIEW, per_study=per_study) as server, chromium() as browser:
        port = urlsplit(server.url).port
        host = (per_study or "localhost").replace("{uuid}", STUDY)
        page = browser.new_page()
        page.goto(f"http://{host}:{port}/studies/{STUDY}/")
        page.wait_for_function("document.title.startsWith('done')")
        tried = page.title()
        assert tried.count("refused") == 3, tried
        assert "published" not in tried
        page.goto(f"http://localhost:{port}/studies/{OTHER}/")  # who types the bare name gets there all the same
        assert page.inner_text("#secret") == "what the other lab has not published"


def answered(server: StudyServer, host: str, path: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        answer.read()
        return answer.status, dict(answer.headers)
    finally:
        connection.close()


def test_each_name_has_its_own_preview_alone(previews: LocalExperimentBucket) -> None:
    with StudyServer(previews, BuildKind.PREVIEW, per_study="{uuid}.localhost") as server:
        own, other = f"/studies/{STUDY}/", f"/studies/{OTHER}/"
        status, headers = answered(server, f"{STUDY}.localhost:8002", own)
        assert (status, headers.get("Content-Security-Policy")) == (200, None)
        assert answered(server, f"{STUDY}.localhost:8002", other)[0] == 404
        assert answered(server, f"{STUDY.upper()}.LOCALHOST:8002", own)[0] == 200
        status, headers = answered(server, "localhost:8002", own)
        assert (status, headers["Location"]) == (302, f"http://{STUDY}.localhost:8002{own}")
        assert answered(server, f"x.{STUDY}.localhost", own)[0] == 404


@pytest.mark.parametrize(("kind", "policy"), [(BuildKind.PREVIEW, SANDBOX), (BuildKind.DEPLOYMENT, None)])
def test_previews_that_share_an_origin_are_sent_with_a_policy(
    previews: LocalExperimentBucket, kind: BuildKind, policy: str | None
) -> None:
    with StudyServer(previews, kind) as server:
        assert answered(server, "localhost", f"/studies/{STUDY}/")[1].get("Content-Security-Policy") == policy
