"""A way to an S3 server that fails on request: it passes everything on, and lets answers break.

A `Fault` is one thing that goes wrong with the next requests that it fits.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

Kind = Literal["status", "cut", "short", "act"]
_CHUNK = 256 * 1024


@dataclass
class Fault:
    """What goes wrong.

    status   answered with `status`, and never passed on
    cut      the connection is reset after `bytes` of the answer
    short    the answer ends after `bytes`, politely
    act      `act` is called first
    """

    kind: Kind
    holds: str = ""
    """Text that the path holds."""
    times: int = 1
    after: int = 0
    status: int = 503
    bytes: int = 0
    act: Callable[[], object] = lambda: None
    seen: int = field(default=0, init=False)


class FaultyS3:
    """The detour; use it as a context manager, and `url` as the endpoint."""

    def __init__(self, upstream: str, latency: float = 0.0, bytes_per_second: float = 0.0) -> None:
        """As a network does, each request may take `latency` seconds longer, and a connection bring only so much."""
        self.upstream = urlsplit(upstream).netloc
        self.latency, self.bytes_per_second = latency, bytes_per_second
        self.requests: list[str] = []
        """Method, path and range of all requests."""
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.detour = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultyS3:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fault(self, kind: Kind, holds: str = "", **options: Any) -> Fault:
        """Let something go wrong from now on."""
        fault = Fault(kind, holds, **options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        with self._lock:
            self._faults.clear()

    def fault_for(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.holds in path:
                    fault.seen += 1
                    if fault.after < fault.seen <= fault.after + fault.times:
                        return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    detour: FaultyS3

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        detour = self.server.detour
        path = unquote(self.path)
        detour.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".rstrip())
        fault = detour.fault_for(path)
        time.sleep(detour.latency)
        if fault and fault.kind == "act":
            fault.act()
            fault = None
        if fault and fault.kind == "status":
            code = {403: "AccessDenied", 404: "NoSuchKey", 503: "SlowDown"}.get(fault.status, "InternalError")
            body = f"<Error><Code>{code}</Code><Message>on request</Message></Error>".encode()
            self.send_response(fault.status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        upstream = http.client.HTTPConnection(detour.upstream, timeout=30)
        try:
            upstream.putrequest("GET", self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            answer = upstream.getresponse()
            self.send_response_only(answer.status, answer.reason)
            length = answer.getheader("Content-Length")
            for name, value in answer.getheaders():
                if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                    self.send_header(name, value)
            whole = b"" if length else answer.read()
            self.send_header("Content-Length", length or str(len(whole)))
            self.end_headers()
            self._pass_on(answer, whole, fault)
        finally:
            upstream.close()

    def _pass_on(self, answer: http.client.HTTPResponse, whole: bytes, fault: Fault | None) -> None:
        left = fault.bytes if fault else None
        rate, began, sent = self.server.detour.bytes_per_second, time.monotonic(), 0
        if whole:
            self.wfile.write(whole if left is None else whole[:left])
        while (left is None or left > 0) and (chunk := answer.read(_CHUNK if left is None else min(left, _CHUNK))):
            self.wfile.write(chunk)
            sent += len(chunk)
            if rate:
                time.sleep(max(0.0, sent / rate - (time.monotonic() - began)))
            left = None if left is None else left - len(chunk)
        if fault is None:
            return
        if fault.kind == "cut":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
        self.connection.close()
