"""`lookit-ops serve`: what is in folders is served where the settings' addresses lead; what is in the cloud is not."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import requests

from domain.errors import InvalidRequest
from lookit_ops.cli.commands.serve import serve_folders
from lookit_ops.mail_delivery import LINK_VALID_FOR
from lookit_ops.services import Services
from lookit_ops.settings import Settings
from tests.integration.cli.conftest import Shown
from tests.support.site import Site

STUDY = UUID("12345678-1234-4234-8234-123456789012")
IN_GOOGLE = {"bucket": "gs://lookit-studies", "archives_bucket": "gs://lookit-archives"}
Run = Callable[..., Shown]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def outside(tmp_path: Path, **settings: Any) -> Services:
    """A platform whose addresses lead to ports that are free."""
    urls = {name: f"http://127.0.0.1:{free_port()}/" for name in ("studies_url", "previews_url", "archives_url")}
    return Services(Settings(_env_file=None, **{"home": tmp_path, **urls, **settings}))


def archive_of(services: Services) -> str:
    """A link to an archive that was just made."""
    part = services.archives.put_part(".parts/1-1/0", iter([b"PK\x05\x06"]), 4)
    services.archives.compose("study/all.zip", [part], ".parts/1-1")
    return services.archives.link("study/all.zip", "all.zip", LINK_VALID_FOR)


def page_of(services: Services) -> str:
    """The address of a study that is there."""
    folder = services.settings.local_bucket / "experiments" / str(STUDY)
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("a study")
    return f"{services.settings.studies_url}studies/{STUDY}/"


def test_studies_and_archives_in_folders_are_served_where_their_links_lead(tmp_path: Path) -> None:
    services = outside(tmp_path)
    page, link = page_of(services), archive_of(services)
    with ExitStack() as servers:
        serve_folders(services, servers)
        assert requests.get(page, timeout=10).text == "a study"
        assert requests.get(link, timeout=10).content == b"PK\x05\x06"


def test_archives_in_a_folder_are_served_though_the_studies_are_in_google(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services = outside(tmp_path, bucket=IN_GOOGLE["bucket"])
    link = archive_of(services)
    with ExitStack() as servers:
        serve_folders(services, servers)
        assert requests.get(link, timeout=10).content == b"PK\x05\x06"
        with pytest.raises(requests.ConnectionError):
            requests.get(services.settings.studies_url, timeout=10)


def test_nothing_in_folders_is_a_refusal(site: Site, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in IN_GOOGLE.items():
        monkeypatch.setenv(f"LOOKIT_{name.upper()}", value)
    shown = run("serve")
    assert shown.status == 1
    said = " ".join(shown.err.split())
    assert "gs://lookit-studies is served by the platform's proxy" in said
    assert "gs://lookit-archives have links of Google's" in said


@pytest.mark.parametrize("setting", ["studies_url", "archives_url"])
def test_an_address_that_only_a_proxy_can_answer_is_refused(tmp_path: Path, setting: str) -> None:
    services = outside(tmp_path, **{setting: "https://lookit.example/"})
    with ExitStack() as servers, pytest.raises(InvalidRequest, match=f"LOOKIT_{setting.upper()} is .* no https"):
        serve_folders(services, servers)


def test_an_address_without_a_port_means_that_of_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_port()
    monkeypatch.setattr("lookit_ops.cli.commands.serve.HTTP_PORT", free)
    services = outside(tmp_path, studies_url="http://127.0.0.1/")
    page = page_of(services).replace("127.0.0.1", f"127.0.0.1:{free}")
    with ExitStack() as servers:
        serve_folders(services, servers)
        assert requests.get(page, timeout=10).text == "a study"
