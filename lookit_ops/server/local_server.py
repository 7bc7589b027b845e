"""One origin on this machine, served from a thread while its context lasts."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Self

from domain.errors import InvalidRequest


class LocalServer:
    """Serves with one kind of handler. A context manager; making it raises InvalidRequest if the address is taken."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], name: str, host: str, port: int) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise InvalidRequest(
                f"{host}:{port} cannot be listened on: {error.strerror}; is it running already?"
            ) from error
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), name=name, daemon=True)

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
