"""How Google Cloud Storage is reached: credentials, connections, how long to wait, what is tried again.

Import this module only where the storage is used: Google's library takes more than a second to load.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google.auth
import requests
from google.api_core import exceptions as google_errors
from google.api_core.retry import Retry
from google.auth import exceptions as auth_errors
from google.auth.credentials import AnonymousCredentials, Credentials, with_scopes_if_required
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from google.oauth2 import service_account
from requests.adapters import HTTPAdapter

from lookit_ops.storage.errors import StorageError

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""
PATIENCE = 120.0
"""Seconds for which a request that fails in passing (5xx, 429, a broken connection) is made again."""
MOST_CONNECTIONS = 32
NO_METADATA_OF_BUCKETS = "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"
"""Google's variable that keeps the client from asking for the bucket's location behind our back, in threads of its own.
It would only be for tracing, and takes a right on the bucket that is needed for nothing else."""
_PASSING_STATUSES = frozenset({408, 429})


@dataclass(frozen=True, slots=True)
class GcsAccess:
    """Whose credentials are used, and against which server."""

    credentials_file: Path | None = None
    """Key of a service account. None: the application default credentials, or none at all with an `endpoint`."""
    endpoint: str = ""
    """Base URL of a server that speaks Google's JSON API; empty: Google's own."""
    patience: float = PATIENCE
    read_timeout: float = READ_TIMEOUT

    @property
    def timeout(self) -> tuple[float, float]:
        """For connecting and for reading, in seconds, as the client wants it."""
        return CONNECT_TIMEOUT, self.read_timeout

    @property
    def retry(self) -> Retry:
        """What is made again and for how long; only for requests that may be made twice."""
        return DEFAULT_RETRY.with_delay(initial=0.25, maximum=8, multiplier=2).with_timeout(self.patience)

    def connect(self) -> storage.Client:
        """A client for many threads; close it after use. Raises StorageError if there are no credentials."""
        os.environ.setdefault(NO_METADATA_OF_BUCKETS, "true")
        credentials = self._credentials()
        session = AuthorizedSession(credentials)
        session.hooks["response"].append(_read_error)
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=MOST_CONNECTIONS))
        return storage.Client(
            project="none",  # belongs to making and listing buckets, which we do not
            credentials=credentials,
            _http=session,
            client_options={"api_endpoint": self.endpoint.rstrip("/")} if self.endpoint else None,
        )

    def signer(self) -> Credentials:
        """The credentials that sign links. Raises StorageError if there are none."""
        return self._credentials()

    def _credentials(self) -> Credentials:
        if self.credentials_file is not None:
            try:
                return service_account.Credentials.from_service_account_file(
                    str(self.credentials_file.expanduser()), scopes=storage.Client.SCOPE
                )
            except (OSError, ValueError, auth_errors.GoogleAuthError) as error:
                raise StorageError(
                    f"{self.credentials_file} cannot be used as the key of a service account ({error}); it must be the"
                    " JSON file that Google Cloud gives out for one"
                ) from error
        if self.endpoint:
            return AnonymousCredentials()
        try:
            credentials, _ = google.auth.default(scopes=storage.Client.SCOPE)
        except auth_errors.GoogleAuthError as error:
            raise StorageError(
                "there are no credentials for Google Cloud Storage: set LOOKIT_GCS_CREDENTIALS_FILE to the file of a"
                " service account's key, or log in with `gcloud auth application-default login`"
            ) from error
        return with_scopes_if_required(credentials, storage.Client.SCOPE)


def _read_error(response: requests.Response, **_options: Any) -> None:
    """Read what an error says at once, so that its connection goes back to the others.

    A download that Google's client makes again drops the answer unread, and with it the connection.
    """
    if not response.ok:
        _ = response.content


UPLOAD_FORGOTTEN = frozenset({404, 410})
"""What a resumable upload is answered whose session is not known any more (Google, "Resumable uploads")."""


def is_passing(error: BaseException) -> bool:
    """Whether this is trouble of the moment, after which nobody knows if the request was carried out."""
    if isinstance(error, google_errors.RetryError):
        return True
    if isinstance(error, google_errors.GoogleAPICallError):
        return error.code is None or error.code >= 500 or error.code in _PASSING_STATUSES
    if isinstance(error, InvalidResponse):
        return error.response.status_code >= 500 or error.response.status_code in _PASSING_STATUSES
    return isinstance(error, (requests.RequestException, auth_errors.TransportError, ConnectionError, TimeoutError))


@contextmanager
def translated(bucket: str, key: str) -> Generator[None, None, None]:
    """Our errors for Google's; what needs an answer of its own (not found, precondition) is caught before."""
    try:
        yield
    except google_errors.RetryError as error:
        raise StorageError(
            f"Google Cloud Storage did not get through with {key} in {bucket}, however often it was tried:"
            f" {said_by(error.cause or error)}"
        ) from error
    except auth_errors.TransportError as error:  # a kind of GoogleAuthError, but no refusal
        raise StorageError(f"Google's login cannot be reached for {key} in {bucket}: {said_by(error)}") from error
    except (google_errors.Forbidden, google_errors.Unauthorized, auth_errors.GoogleAuthError) as error:
        raise StorageError(
            f"Google Cloud Storage does not let these credentials use {key} in {bucket}: {said_by(error)};"
            " check the account and its rights on the bucket"
        ) from error
    except (
        google_errors.GoogleAPICallError,
        InvalidResponse,
        DataCorruption,
        requests.RequestException,
        OSError,
    ) as error:
        raise StorageError(f"Google Cloud Storage failed at {key} in {bucket}: {said_by(error)}") from error


def said_by(error: BaseException) -> str:
    """The one sentence of an error, without the body of the server's answer around it."""
    response = getattr(error, "response", None)
    text = str(error)
    if response is not None and isinstance(getattr(response, "text", None), str):
        try:
            text = str(json.loads(response.text)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            text = response.text or text
        text = f"{response.status_code} {text}"
    return " ".join(text.split())[:300] or type(error).__name__
