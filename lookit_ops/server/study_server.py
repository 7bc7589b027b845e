"""Serves built studies out of the bucket as the platform's proxy does (docs/serving.md), to look at them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from domain.models import BuildKind
from lookit_ops.deployments.manifest import REVALIDATED, folder_of
from lookit_ops.deployments.publish import content_type_of
from lookit_ops.server.local_server import LocalServer
from lookit_ops.storage.errors import StorageError
from lookit_ops.storage.experiments import check_key
from lookit_ops.storage.local.experiments import HIDDEN, LocalExperimentBucket

_STUDY = re.compile(r"/studies/(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?P<path>/.*)?", re.IGNORECASE)
_PLACEHOLDER = "{uuid}"
INDEX = "index.html"
SANDBOX = "sandbox allow-scripts allow-forms allow-modals allow-popups allow-downloads"
"""The policy of previews that share an origin: a page without an origin of its own reads nothing of another preview."""


class StudyServer(LocalServer):
    """Serves `/studies/{uuid}/…` from that study's folder in the bucket, deployed or preview. A context manager.

    `per_study` is a host name with `{uuid}`, such as `{uuid}.localhost`: each study is served under its own name alone,
    and any other name leads there. Without it, previews share one origin and are sent with `SANDBOX`.
    """

    def __init__(
        self,
        bucket: LocalExperimentBucket,
        kind: BuildKind,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        per_study: str | None = None,
    ) -> None:
        self._bucket, self._kind, self._per_study = bucket, kind, per_study
        super().__init__(self._handler(), f"{kind}-server", host, port)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        bucket, kind, per_study = self._bucket, self._kind, self._per_study
        policy = {"Content-Security-Policy": SANDBOX} if kind is BuildKind.PREVIEW and per_study is None else {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = _STUDY.fullmatch(unquote(urlsplit(self.path).path))
                if found is None:
                    self._answer(HTTPStatus.NOT_FOUND, b"There is no study at this address.\n")
                elif (own := self._own_address(found["uuid"].lower())) is not None:
                    self._elsewhere(own)
                elif not found["path"]:
                    self._answer(HTTPStatus.MOVED_PERMANENTLY, b"", Location=f"/studies/{found['uuid']}/")
                elif "/." in found["path"]:  # what a deployment keeps for itself
                    self._answer(HTTPStatus.NOT_FOUND, b"This file is not part of the study.\n")
                else:
                    self._file(folder_of(kind, found["uuid"].lower()), found["path"][1:] or INDEX)

            do_HEAD = do_GET  # noqa: N815 - the base class calls it so

            def _own_address(self, uuid: str) -> str | None:
                """Return the address of this path under the study's own name, if it was asked for under another one."""
                if per_study is None:
                    return None
                name, _, port = self.headers.get("Host", "").lower().partition(":")
                own = per_study.replace(_PLACEHOLDER, uuid)
                return None if name == own else f"http://{own}{f':{port}' if port else ''}{self.path}"

            def _elsewhere(self, own: str) -> None:
                """Lead a person who typed the bare name to the study's own; another study's page gets nothing there."""
                name = self.headers.get("Host", "").lower().partition(":")[0]
                if name.endswith(per_study.replace(_PLACEHOLDER, "") if per_study else ""):
                    self._answer(HTTPStatus.NOT_FOUND, b"There is no study at this address.\n")
                else:
                    self._answer(HTTPStatus.FOUND, b"", Location=own)

            def _file(self, folder: str, path: str) -> None:
                key = f"{folder}/{path}"
                try:
                    if not _stays_within(bucket, folder, key):
                        raise StorageError(f"{key} is a link that leads somewhere else")
                    content, headers = bucket.read(key), _headers(bucket, key)
                except StorageError:
                    self._answer(HTTPStatus.NOT_FOUND, b"This file is not part of the study.\n")
                    return
                self._answer(HTTPStatus.OK, content, **headers)

            def _answer(self, status: HTTPStatus, body: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in ({"Content-Type": "text/plain; charset=utf-8"} | policy | headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        return Handler


def _stays_within(bucket: LocalExperimentBucket, folder: str, key: str) -> bool:
    """Whether the file is in its study's folder, or in the bucket's own versions of that folder's pages.

    A folder can hold a symbolic link, which anybody who may write there can lead anywhere on this machine; the bucket
    makes none itself but for its pages. Raises StorageError.
    """
    root = bucket.root.resolve()
    try:
        real = (root / check_key(key)).resolve()
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise StorageError(f"{key} cannot be followed: {error}") from error
    return any(real.is_relative_to(place) for place in (root / folder, root / HIDDEN / "pages" / folder))


def _headers(bucket: LocalExperimentBucket, key: str) -> Mapping[str, str]:
    """What the file was stored with. Of one that came there otherwise nothing is noted: then what is always safe."""
    noted = bucket.headers(key)
    return {
        "Content-Type": noted.get("content_type") or content_type_of(PurePosixPath(key)),
        "Cache-Control": noted.get("cache_control") or REVALIDATED,
    }
