"""Serves the archives of a folder to whoever has a link that is still good, as Google Cloud Storage does."""

from __future__ import annotations

import shutil
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from lookit_ops.server.local_server import LocalServer
from lookit_ops.storage.archives import ZIP
from lookit_ops.storage.local.archives import LocalArchiveBucket

_CHUNK_BYTES = 2**20
_REFUSED = b"This link is not good, or no longer: ask for a new one.\n"


class ArchiveServer(LocalServer):
    """One origin that answers the links of one bucket, and nothing else. A context manager."""

    def __init__(self, bucket: LocalArchiveBucket, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(_handler(bucket), "archive-server", host, port)


def _handler(bucket: LocalArchiveBucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            name = asked.get("name", "")
            path = bucket.opened(unquote(parts.path[1:]), asked.get("expires", ""), name, asked.get("signature", ""))
            if path is None:
                self._begin(HTTPStatus.FORBIDDEN, "text/plain; charset=utf-8", len(_REFUSED))
                if self.command != "HEAD":
                    self.wfile.write(_REFUSED)
                return
            with path.open("rb") as file:
                disposition = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
                self._begin(HTTPStatus.OK, ZIP, path.stat().st_size, **disposition)
                if self.command != "HEAD":
                    shutil.copyfileobj(file, self.wfile, _CHUNK_BYTES)

        do_HEAD = do_GET  # noqa: N815 - the base class calls it so

        def _begin(self, status: HTTPStatus, content_type: str, length: int, **headers: str) -> None:
            self.send_response(status)
            for header, value in {"Content-Type": content_type, "Content-Length": str(length), **headers}.items():
                self.send_header(header, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """A link is a secret, and so stands in no log."""

    return Handler
