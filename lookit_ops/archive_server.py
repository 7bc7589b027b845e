"""Serves the archives of a folder to whoever has a link that is still good, as Google Cloud Storage does."""

from __future__ import annotations

import shutil
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from domain.errors import InvalidRequest
from lookit_ops.storage.archives import ZIP
from lookit_ops.storage.local_archives import LocalArchiveBucket

_CHUNK_BYTES = 2**20
_REFUSED = b"This link is not good, or no longer: ask for a new one.\n"


class ArchiveServer:
    """One origin that answers the links of one bucket, and nothing else. A context manager."""

    def __init__(self, bucket: LocalArchiveBucket, host: str = "127.0.0.1", port: int = 0) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(bucket))
        except OSError as error:
            raise InvalidRequest(
                f"{host}:{port} cannot be listened on: {error.strerror}; is it running already?"
            ) from error
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), name="archive-server", daemon=True)

    @property
    def url(self) -> str:
        """The base address, with a closing slash."""
        host, port = self._server.server_address[:2]
        return f"http://{host}:{port}/"

    def __enter__(self) -> Self:
        """Begin to serve."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(bucket: LocalArchiveBucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            name = asked.get("name", "")
            path = bucket.opened(unquote(parts.path[1:]), asked.get("expires", ""), name, asked.get("signature", ""))
            if path is None:
                self._begin(HTTPStatus.FORBIDDEN, "text/plain; charset=utf-8", len(_REFUSED))
                self.wfile.write(_REFUSED)
                return
            with path.open("rb") as file:
                disposition = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
                self._begin(HTTPStatus.OK, ZIP, path.stat().st_size, **disposition)
                shutil.copyfileobj(file, self.wfile, _CHUNK_BYTES)

        def _begin(self, status: HTTPStatus, content_type: str, length: int, **headers: str) -> None:
            self.send_response(status)
            for header, value in {"Content-Type": content_type, "Content-Length": str(length), **headers}.items():
                self.send_header(header, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """A link is a secret, and so stands in no log."""

    return Handler
