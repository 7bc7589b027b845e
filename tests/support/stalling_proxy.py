"""A proxy for any TCP service that can fall silent: it accepts connections, and passes nothing on in any direction."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

HOST = "127.0.0.1"
_BLOCK = 65_536


class StallingProxy:
    """Stands before a service at `(host, port)`, or at the path of a Unix socket; use it as a context manager."""

    def __init__(self, service: tuple[str, int] | str) -> None:
        self._service = service
        self._listener = socket.create_server((HOST, 0))
        self._passing = threading.Event()
        self._passing.set()
        self._held: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]

    def stall(self) -> None:
        """Pass nothing on from now on; connections stay open."""
        self._passing.clear()

    def go_on(self) -> None:
        """Pass on what was held back, and all that comes."""
        self._passing.set()

    def __enter__(self) -> StallingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_on()
        for held in [self._listener, *self._held]:
            _end(held)

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            self._held.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._passing.wait()
        unix = isinstance(self._service, str)
        service = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self._held.append(service)
        try:
            service.connect(self._service)
        except OSError:
            _end(client)
            return
        for source, sink in ((client, service), (service, client)):
            threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(_BLOCK):
                self._passing.wait()
                sink.sendall(block)
        for side in (source, sink):
            _end(side)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
