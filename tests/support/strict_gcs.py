"""A Google Cloud Storage of our own for tests: what the emulators let pass it refuses, and it fails on request.

The part of the JSON API that deals with objects, kept in memory: insert (multipart and resumable), get, download with
ranges, list by pages, patch, delete, copy, rewrite, compose. Generations are never used twice, every precondition is
enforced in the same moment as the change, and a checksum that the client sends along must be that of what arrived.
With an `Account`, whoever wants something logs in with its key, or has a link that this key signed (V4) and that is
not too old. What it does not do: other rights, versions, buckets beyond being there or not.

A `Fault` is one thing that goes wrong with the next requests that it fits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from uuid import uuid4

import google_crc32c
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

MOST_RESULTS = 1000
CHUNK_MULTIPLE = 256 * 1024

Kind = Literal["status", "cut", "lost", "late", "slow", "damaged", "altered"]


@dataclass
class Fault:
    """What goes wrong.

    status    answered with `status`, nothing done
    cut       the connection is reset after `bytes` of the request's body, nothing done
    lost      carried out, and the connection is reset instead of an answer
    late      the connection is reset, and the request is carried out `seconds` afterwards
    slow      answered `seconds` later
    damaged   a bit of what arrives is turned over on its way
    altered   a bit of what is stored is turned over after the checks
    """

    kind: Kind
    method: str = ""
    holds: str = ""
    """Text that the request's path and query, unquoted, or an upload's name holds."""
    times: int = 1
    after: int = 0
    """How many fitting requests pass before."""
    status: int = 503
    bytes: int = 0
    seconds: float = 0.0
    seen: int = field(default=0, init=False)


class Account:
    """A service account, made on the spot."""

    email = "archivist@lookit.example"

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def key_file(self, folder: Path, server_url: str) -> Path:
        """The file that Google Cloud would give out for it."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        said = {
            "type": "service_account",
            "project_id": "none",
            "private_key_id": "1",
            "private_key": pem.decode(),
            "client_email": self.email,
            "token_uri": f"{server_url}/token",
        }
        file = folder / "service-account.json"
        file.write_text(json.dumps(said))
        return file

    def has_signed(self, text: str, signature: bytes) -> bool:
        """Whether the signature is this account's."""
        try:
            self._key.public_key().verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class StoredObject:
    pieces: tuple[bytes, ...]
    """Its content, as it arrived or was composed: as with Google, composing moves no byte."""
    resource: Mapping[str, Any]

    @property
    def content(self) -> bytes:
        return b"".join(self.pieces)

    def between(self, first: int, last: int) -> bytes:
        """These bytes, without putting the whole together: it may have gigabytes."""
        found, begin = [], 0
        for piece in self.pieces:
            found.append(piece[max(0, first - begin) : max(0, last + 1 - begin)])
            begin += len(piece)
        return b"".join(found)

    @property
    def generation(self) -> int:
        return int(self.resource["generation"])


@dataclass
class _Session:
    """A resumable upload."""

    bucket: str
    resource: dict[str, Any]
    query: dict[str, str]
    pieces: list[bytes] = field(default_factory=list)
    length: int = 0
    answer: tuple[int, bytes] | None = None


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StrictGcs:
    """The server; use it as a context manager."""

    def __init__(
        self,
        *buckets: str,
        latency: float = 0.0,
        bytes_per_second: float = 0.0,
        account: Account | None = None,
        tells_md5: bool = True,
    ) -> None:
        """`latency` is how many seconds each request takes longer, as on a real network.

        `bytes_per_second` is what one connection brings, 0 for as much as it can. `tells_md5` is off where the server
        shares the client's CPU and the client is measured: MD5 takes longer than all else that is done here.
        """
        self._tells_md5 = tells_md5
        self.latency = latency
        self.bytes_per_second = bytes_per_second
        self.account = account
        self._token = uuid4().hex
        self.requests: list[str] = []
        """Method and path of all requests, in the order of their beginning."""
        self._buckets: dict[str, dict[str, StoredObject]] = {name: {} for name in buckets}
        self._sessions: dict[str, _Session] = {}
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._generation = 0
        self._late: list[threading.Thread] = []
        self.late_answers: list[int] = []
        """What the requests that came late would have been answered."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.gcs = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def now(self) -> datetime:
        """The server's clock; a test may put it forward."""
        return datetime.now(UTC)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StrictGcs:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.wait_for_late()

    def fault(self, kind: Kind, method: str = "", holds: str = "", **options: Any) -> Fault:
        """Let something go wrong from now on."""
        fault = Fault(kind, method, holds, **options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._faults.clear()

    def wait_for_late(self) -> None:
        """Wait until the requests that come late have been carried out."""
        for thread in list(self._late):
            thread.join()

    def objects(self, bucket: str) -> dict[str, StoredObject]:
        """What is stored at this moment."""
        with self._lock:
            return dict(self._buckets[bucket])

    @property
    def open_sessions(self) -> int:
        """Resumable uploads that were begun and neither finished nor cancelled."""
        with self._lock:
            return sum(session.answer is None for session in self._sessions.values())

    def insert(self, bucket: str, name: str, content: bytes) -> StoredObject:
        """Store an object as another program would have done."""
        with self._lock:
            return self._keep(bucket, name, (content,), {})

    # -- for the handler ------------------------------------------------------------------------------------------

    def fault_for(self, method: str, target: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.method in {"", method} and fault.holds in target:
                    fault.seen += 1
                    if fault.after < fault.seen <= fault.after + fault.times:
                        return fault
        return None

    def note(self, method: str, target: str) -> None:
        with self._lock:
            self.requests.append(f"{method} {target}")

    def later(self, seconds: float, request: _Request) -> None:
        def run() -> None:
            time.sleep(seconds)
            self.late_answers.append(self.answer(request).status)

        thread = threading.Thread(target=run)
        self._late.append(thread)
        thread.start()

    def answer(self, request: _Request, *, spoiled: str = "") -> _Answer:
        """Carry a request out, in one moment."""
        with self._lock:
            try:
                return self._route(request, spoiled=spoiled)
            except _Refused as refused:
                error = {"error": {"code": refused.status, "message": str(refused)}}
                return _Answer(refused.status, json.dumps(error).encode(), {"Content-Type": "application/json"})

    def _route(self, request: _Request, *, spoiled: str) -> _Answer:
        method, path, query = request.method, request.path, request.query
        if path == "/token" and method == "POST":
            return self._log_in(request)
        if "X-Goog-Signature" in query and method == "GET":
            return self._signed(request)
        if self.account is not None and request.headers.get("authorization") != f"Bearer {self._token}":
            raise _Refused(401, "Anonymous caller does not have storage access.")
        if upload := re.fullmatch(r"(?:/resumable)?/upload/storage/v1/b/([^/]+)/o", path):
            bucket = unquote(upload[1])
            if method == "POST":
                return self._begin_or_insert(bucket, request, spoiled=spoiled)
            if method == "PUT" and "upload_id" in query:
                return self._continue(query["upload_id"], request, spoiled=spoiled)
            if method == "DELETE" and "upload_id" in query:
                return self._cancel(query["upload_id"])
        if listing := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            if method == "GET":
                return self._list(unquote(listing[1]), query)
        elif bucket_path := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            if method == "GET":
                self._objects_of(unquote(bucket_path[1]))
                return _json(200, {"kind": "storage#bucket", "name": unquote(bucket_path[1])})
        elif two := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)/(copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)", path):
            if method == "POST":
                names = [unquote(two[number]) for number in (1, 2, 4, 5)]
                return self._copy(*names, query, request.json(), rewrite=two[3] == "rewriteTo")
        elif composed := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)/compose", path):
            if method == "POST":
                return self._compose(unquote(composed[1]), unquote(composed[2]), query, request.json())
        elif one := re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)", path):
            bucket, name = unquote(one[1]), unquote(one[2])
            if method == "GET":
                return self._get(bucket, name, request)
            if method == "DELETE":
                self._existing(bucket, name, query)
                del self._buckets[bucket][name]
                return _Answer(204, b"", {})
            if method == "PATCH":
                return self._patch(bucket, name, query, request.json())
        raise _Refused(501, f"{method} {path} is not what this server does")

    def _log_in(self, request: _Request) -> _Answer:
        head, claims, signature = dict(parse_qsl(request.body.decode()))["assertion"].split(".")
        account, said = self.account, json.loads(_unpadded(claims))
        if (
            account is None
            or said["iss"] != account.email
            or not account.has_signed(f"{head}.{claims}", _unpadded(signature))
        ):
            raise _Refused(401, "there is no such account")
        return _json(200, {"access_token": self._token, "expires_in": 3600, "token_type": "Bearer"})

    def _signed(self, request: _Request) -> _Answer:
        """What a link of version 4 leads to (https://cloud.google.com/storage/docs/authentication/signatures)."""
        query = dict(request.query)
        signature = bytes.fromhex(query.pop("X-Goog-Signature"))
        credential, _, scope = query["X-Goog-Credential"].partition("/")
        wanted = "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in sorted(query.items()))
        names = query["X-Goog-SignedHeaders"].split(";")
        headers = "".join(f"{name}:{request.headers.get(name, '')}\n" for name in names)
        canonical = "\n".join(("GET", request.path, wanted, headers, ";".join(names), "UNSIGNED-PAYLOAD"))
        begun = query["X-Goog-Date"]
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join(("GOOG4-RSA-SHA256", begun, scope, digest))
        if self.account is None or credential != self.account.email or not self.account.has_signed(text, signature):
            raise _Refused(403, "SignatureDoesNotMatch")
        since = datetime.strptime(begun, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if self.now() > since + timedelta(seconds=int(query["X-Goog-Expires"])):
            raise _Refused(400, "ExpiredToken")
        _, bucket, name = request.path.split("/", 2)
        answer = self._get(unquote(bucket), unquote(name), replace(request, query={"alt": "media"}))
        said = {"Content-Disposition": "response-content-disposition", "Content-Type": "response-content-type"}
        instead = {header: query[asked] for header, asked in said.items() if asked in query}
        return replace(answer, headers={**answer.headers, **instead})

    def _objects_of(self, bucket: str) -> dict[str, StoredObject]:
        if bucket not in self._buckets:
            raise _Refused(404, "The specified bucket does not exist.")
        return self._buckets[bucket]

    def _existing(self, bucket: str, name: str, query: Mapping[str, str]) -> StoredObject:
        found = self._objects_of(bucket).get(name)
        if found is None or query.get("generation", found.resource["generation"]) != found.resource["generation"]:
            raise _Refused(404, f"No such object: {bucket}/{name}")
        self._check_preconditions(found, query)
        return found

    def _check_preconditions(self, found: StoredObject | None, query: Mapping[str, str], prefix: str = "if") -> None:
        generation = found.generation if found else 0
        metageneration = int(found.resource["metageneration"]) if found else 0
        checks = (
            ("GenerationMatch", generation, True),
            ("GenerationNotMatch", generation, False),
            ("MetagenerationMatch", metageneration, True),
            ("MetagenerationNotMatch", metageneration, False),
        )
        for condition, value, wanted in checks:
            expected = query.get(prefix + condition)
            if expected is not None and (int(expected) == value) != wanted:
                raise _Refused(412, "At least one of the pre-conditions you specified did not hold.")

    def _begin_or_insert(self, bucket: str, request: _Request, *, spoiled: str) -> _Answer:
        query = request.query
        if query.get("uploadType") == "multipart":
            resource, content_type, content = _multipart(request)
            resource.setdefault("contentType", content_type)
            stored = self._insert(bucket, resource, (content,), query, request.headers, spoiled=spoiled)
            return _json(200, stored.resource)
        if query.get("uploadType") == "resumable":
            self._objects_of(bucket)
            resource = request.json()
            resource.setdefault("name", query.get("name"))
            resource.setdefault("contentType", request.headers.get("x-upload-content-type"))
            # Google checks the conditions when an upload begins, and once more when it ends.
            self._check_preconditions(self._buckets[bucket].get(resource["name"]), query)
            upload_id = uuid4().hex
            self._sessions[upload_id] = _Session(bucket, resource, dict(query))
            place = f"{self.url}/upload/storage/v1/b/{quote(bucket)}/o?uploadType=resumable&upload_id={upload_id}"
            return _Answer(200, b"", {"Location": place, "X-GUploader-UploadID": upload_id})
        raise _Refused(400, "uploadType must be multipart or resumable here")

    def _continue(self, upload_id: str, request: _Request, *, spoiled: str) -> _Answer:
        session = self._sessions.get(upload_id)
        if session is None:
            raise _Refused(410, "this upload was cancelled, or there never was one")
        if session.answer is not None:
            return _Answer(session.answer[0], session.answer[1], {"Content-Type": "application/json"})
        asked = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", request.headers.get("content-range", ""))
        if asked is None:
            raise _Refused(400, "an upload's piece must say its Content-Range")
        total = None if asked[3] == "*" else int(asked[3])
        if asked[1] is not None:
            first, last = int(asked[1]), int(asked[2])
            if last - first + 1 != len(request.body):
                raise _Refused(400, "the piece has another length than its Content-Range says")
            if first > session.length:
                raise _Refused(503, f"{session.length} bytes are here; the piece begins at {first}")
            if total is None and (last + 1) % CHUNK_MULTIPLE:
                raise _Refused(400, "a piece that is not the last must end at a multiple of 256 KiB")
            # A piece that was sent before: what is here stays, and only what is new is added.
            new = request.body[session.length - first :]
            session.pieces.append(new)
            session.length += len(new)
        if total is None or session.length < total:
            headers = {"Range": f"bytes=0-{session.length - 1}"} if session.length else {}
            return _Answer(308, b"", headers)
        stored = self._insert(
            session.bucket, session.resource, tuple(session.pieces), session.query, request.headers, spoiled=spoiled
        )
        session.answer = (200, json.dumps(stored.resource).encode())
        session.pieces.clear()
        return _json(200, stored.resource)

    def _cancel(self, upload_id: str) -> _Answer:
        if self._sessions.pop(upload_id, None) is None:
            raise _Refused(404, "there is no such upload")
        return _Answer(499, b"", {})

    def _insert(
        self,
        bucket: str,
        resource: Mapping[str, Any],
        pieces: tuple[bytes, ...],
        query: Mapping[str, str],
        headers: Mapping[str, str],
        *,
        spoiled: str = "",
    ) -> StoredObject:
        name = resource.get("name") or query.get("name")
        if not name:
            raise _Refused(400, "Required")
        objects = self._objects_of(bucket)
        self._check_preconditions(objects.get(name), query)
        if spoiled == "damaged":
            pieces = _turned(pieces)
        said = {"crc32c": resource.get("crc32c"), "md5": resource.get("md5Hash")}
        for pair in filter(None, headers.get("x-goog-hash", "").split(",")):
            kind, _, value = pair.strip().partition("=")
            said[kind] = value
        for kind, digest in (("crc32c", _crc32c), ("md5", _md5)):
            if said[kind] is not None and said[kind] != (value := digest(pieces)):
                raise _Refused(400, f'Provided {kind} "{said[kind]}" doesn\'t match calculated {kind} "{value}".')
        return self._keep(bucket, name, _turned(pieces) if spoiled == "altered" else pieces, resource)

    def _keep(
        self, bucket: str, name: str, pieces: tuple[bytes, ...], resource: Mapping[str, Any], *, composed: int = 0
    ) -> StoredObject:
        self._generation = max(self._generation + 1, time.time_ns() // 1000)
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        kept = {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{self._generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(self._generation),
            "metageneration": "1",
            "contentType": resource.get("contentType") or "application/octet-stream",
            "cacheControl": resource.get("cacheControl"),
            "contentDisposition": resource.get("contentDisposition"),
            "metadata": dict(resource["metadata"]) if resource.get("metadata") else None,
            "size": str(sum(map(len, pieces))),
            "crc32c": _crc32c(pieces),
            "md5Hash": _md5(pieces) if self._tells_md5 and not composed else None,
            "componentCount": composed or None,
            "etag": base64.b64encode(str(self._generation).encode()).decode(),
            "timeCreated": now,
            "updated": now,
            "storageClass": "STANDARD",
        }
        stored = StoredObject(pieces, {key: value for key, value in kept.items() if value is not None})
        self._objects_of(bucket)[name] = stored
        return stored

    def _get(self, bucket: str, name: str, request: _Request) -> _Answer:
        found = self._existing(bucket, name, request.query)
        if request.query.get("alt") != "media":
            return _json(200, found.resource)
        headers = {
            "Content-Type": found.resource["contentType"],
            "X-Goog-Generation": found.resource["generation"],
            "X-Goog-Hash": ",".join(
                filter(
                    None,
                    [
                        f"crc32c={found.resource['crc32c']}",
                        f"md5={found.resource['md5Hash']}" if "md5Hash" in found.resource else "",
                    ],
                )
            ),
            "Cache-Control": found.resource.get("cacheControl", "private, max-age=0"),
            "ETag": found.resource["etag"],
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None:
            return _Answer(200, found.content, headers)
        size = int(found.resource["size"])
        first, last = int(asked[1]), int(asked[2] or size - 1)
        if first >= size:
            raise _Refused(416, "The requested range cannot be satisfied.")
        piece = found.between(first, last)
        headers["Content-Range"] = f"bytes {first}-{first + len(piece) - 1}/{size}"
        return _Answer(206, piece, headers)

    def _list(self, bucket: str, query: Mapping[str, str]) -> _Answer:
        unknown = query.keys() - {"prefix", "maxResults", "pageToken", "projection", "fields", "prettyPrint", "alt"}
        if unknown:
            raise _Refused(501, f"this server lists without {', '.join(sorted(unknown))}")
        prefix = query.get("prefix", "")
        after = base64.urlsafe_b64decode(query["pageToken"]).decode() if "pageToken" in query else ""
        most = min(int(query.get("maxResults", MOST_RESULTS)), MOST_RESULTS)
        names = sorted(
            (name for name in self._objects_of(bucket) if name.startswith(prefix) and name > after),
            key=lambda name: name.encode(),
        )
        answer: dict[str, Any] = {
            "kind": "storage#objects",
            "items": [self._buckets[bucket][name].resource for name in names[:most]],
        }
        if len(names) > most:
            answer["nextPageToken"] = base64.urlsafe_b64encode(names[most - 1].encode()).decode()
        return _json(200, answer)

    def _patch(self, bucket: str, name: str, query: Mapping[str, str], changes: Mapping[str, Any]) -> _Answer:
        found = self._existing(bucket, name, query)
        resource = {**found.resource}
        for key in ("contentType", "cacheControl", "contentDisposition"):
            if key in changes:
                resource[key] = changes[key]
        if "metadata" in changes:
            merged = {**resource.get("metadata", {}), **(changes["metadata"] or {})}
            resource["metadata"] = {key: value for key, value in merged.items() if value is not None}
        resource["metageneration"] = str(int(resource["metageneration"]) + 1)
        resource["updated"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        resource = {key: value for key, value in resource.items() if value is not None}
        self._buckets[bucket][name] = StoredObject(found.pieces, resource)
        return _json(200, resource)

    def _copy(
        self,
        bucket: str,
        name: str,
        to_bucket: str,
        to_name: str,
        query: Mapping[str, str],
        changes: Mapping[str, Any],
        *,
        rewrite: bool,
    ) -> _Answer:
        source = self._objects_of(bucket).get(name)
        if source is None:
            raise _Refused(404, f"No such object: {bucket}/{name}")
        self._check_preconditions(source, query, "ifSource")
        self._check_preconditions(self._objects_of(to_bucket).get(to_name), query)
        # A body replaces the metadata of the source as a whole; without one they are copied.
        resource = changes or source.resource
        stored = self._keep(to_bucket, to_name, source.pieces, resource)
        if not rewrite:
            return _json(200, stored.resource)
        done = {"done": True, "totalBytesRewritten": stored.resource["size"], "objectSize": stored.resource["size"]}
        return _json(200, {"kind": "storage#rewriteResponse", **done, "resource": stored.resource})

    def _compose(self, bucket: str, name: str, query: Mapping[str, str], body: Mapping[str, Any]) -> _Answer:
        sources: list[StoredObject] = []
        components = 0
        wanted: Iterable[Mapping[str, Any]] = body.get("sourceObjects", [])
        for source in wanted:
            found = self._objects_of(bucket).get(source["name"])
            if found is None or str(source.get("generation") or found.generation) != str(found.generation):
                raise _Refused(404, f"No such object: {bucket}/{source['name']}")
            conditions = source.get("objectPreconditions", {})
            self._check_preconditions(found, {key: str(value) for key, value in conditions.items()})
            components += int(found.resource.get("componentCount", 1))
            sources.append(found)
        if not 1 <= len(sources) <= 32:
            raise _Refused(400, "The number of source components provided must be from 1 to 32.")
        self._check_preconditions(self._objects_of(bucket).get(name), query)
        pieces = tuple(piece for source in sources for piece in source.pieces)
        return _json(200, self._keep(bucket, name, pieces, body.get("destination", {}), composed=components).resource)


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes

    def json(self) -> dict[str, Any]:
        return json.loads(self.body) if self.body else {}


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    gcs: StrictGcs

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    timeout = 60

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        gcs = self.server.gcs
        parts = urlsplit(self.path)
        target = unquote(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        fault = None
        head = b""
        if not parts.path.startswith(("/upload/", "/resumable/")) or self.command != "POST":
            fault = gcs.fault_for(self.command, target)
        else:  # the name of a new object is in the body
            head = self.rfile.read(min(length, 2048))
            named = re.search(rb'"name":\s*("(?:[^"\\]|\\.)*")', head)
            target += f" {json.loads(named[1])}" if named else ""
            fault = gcs.fault_for(self.command, target)
        gcs.note(self.command, target)
        if gcs.latency:
            time.sleep(gcs.latency)
        if fault and fault.kind == "cut":
            self.rfile.read(max(0, min(fault.bytes, length) - len(head)))
            self._reset()
            return
        began = time.monotonic()
        body = head + self.rfile.read(length - len(head))
        if gcs.bytes_per_second:
            time.sleep(max(0.0, length / gcs.bytes_per_second - (time.monotonic() - began)))
        if len(body) < length:
            self.close_connection = True
            return
        request = _Request(
            self.command,
            parts.path,
            dict(parse_qsl(parts.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            body,
        )
        if fault and fault.kind == "status":
            said = json.dumps({"error": {"code": fault.status, "message": "try again later"}}).encode()
            self._send(_Answer(fault.status, said, {"Content-Type": "application/json"}))
            return
        if fault and fault.kind == "late":
            gcs.later(fault.seconds, request)
            self._reset()
            return
        answer = gcs.answer(request, spoiled=fault.kind if fault else "")
        if fault and fault.kind == "slow":
            time.sleep(fault.seconds)
        if fault and fault.kind == "lost":
            self._reset()
            return
        self._send(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815  # as the base class calls them

    def _send(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def _reset(self) -> None:
        """End the connection as a broken network does, without a goodbye."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _json(status: int, body: Mapping[str, Any]) -> _Answer:
    return _Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json; charset=UTF-8"})


def _multipart(request: _Request) -> tuple[dict[str, Any], str, bytes]:
    """The resource, content type and content of a multipart upload."""
    boundary = re.search(r'boundary="?([^";]+)"?', request.headers.get("content-type", ""))
    if boundary is None:
        raise _Refused(400, "a multipart upload must name its boundary")
    mark = b"--" + boundary[1].encode()
    # The content may hold anything, so only the ends are searched for the boundary.
    first = request.body.find(mark)
    second = request.body.find(b"\r\n" + mark, first + len(mark))
    last = request.body.rfind(b"\r\n" + mark + b"--")
    if min(first, second, last) < 0 or last <= second:
        raise _Refused(400, "the parts of the upload cannot be told apart")
    _, _, said = request.body[first:second].partition(b"\r\n\r\n")
    head, _, content = request.body[second + 2 : last].partition(b"\r\n\r\n")
    content_type = re.search(rb"content-type:\s*([^\r\n]+)", head, re.IGNORECASE)
    return json.loads(said), content_type[1].decode() if content_type else "", content


def _turned(pieces: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """With one bit turned over; what is empty gets a byte."""
    content = b"".join(pieces)
    if not content:
        return (b"?",)
    at = len(content) // 2
    return content[:at], bytes([content[at] ^ 1]), content[at + 1 :]


def _crc32c(pieces: Iterable[bytes]) -> str:
    checksum = google_crc32c.Checksum()
    for piece in pieces:
        checksum.update(piece)
    return base64.b64encode(checksum.digest()).decode()


def _md5(pieces: Iterable[bytes]) -> str:
    checksum = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        checksum.update(piece)
    return base64.b64encode(checksum.digest()).decode()
