"""Mail leaves the house: over SMTP, or into a folder as .eml files."""

from __future__ import annotations

import contextlib
import os
import smtplib
import socket
import ssl
import threading
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from domain.mail.outbox import MailDelayed, MailRefused

PERMANENT = 500
"""SMTP replies from here on are final; those below ask to try again later."""


@dataclass(frozen=True, slots=True)
class SmtpTransport:
    """Sends over SMTP, one connection a message.

    Times in seconds. `timeout` is for each answer until the login, `answers_within` for each answer about the message:
    a server that takes longer over its filters accepts the mail all the same, and a client that no longer listened
    would send it again (RFC 5321, 4.5.3.2). `attempt_within` is for the whole attempt, however slowly the server
    answers: it is shorter than the lease of an attempt, so that no other worker begins a second one meanwhile.
    """

    host: str
    port: int
    security: Literal["starttls", "tls", "none"]
    user: str = ""
    password: SecretStr | None = None
    timeout: float = 30
    answers_within: float = 600
    attempt_within: float = 720

    def send(self, message: EmailMessage) -> None:
        """Hand the message over. Raises MailRefused when the server says never, MailDelayed when it says later."""
        deadline = _Deadline(self.attempt_within)
        try:
            with deadline, contextlib.closing(self._connected(deadline)) as server:
                self._listen(server, self.answers_within)
                # Given outright: smtplib would read them from the headers, in which people's names stand as well.
                server.send_message(message, _address(message, "From"), [_address(message, "To")])
                self._listen(server, self.timeout)
                with contextlib.suppress(smtplib.SMTPException, OSError):  # it has the mail, whatever it says to this
                    server.quit()
        except smtplib.SMTPRecipientsRefused as error:
            ((code, reply),) = error.recipients.values()
            raise _error(code, f"{message['To']} was refused: {_text(reply)}") from error
        except smtplib.SMTPResponseException as error:
            if deadline.is_over:  # the connection was cut in the middle of an answer
                raise MailDelayed(
                    f"{self.host}:{self.port} did not take the mail within {self.attempt_within:,.0f} s"
                ) from error
            # A refused login or sender is the operator's to mend, not the recipient's fate: the mail waits.
            final = isinstance(error, smtplib.SMTPDataError)
            text = f"{self.host}:{self.port} answered {error.smtp_code} {_text(error.smtp_error)}"
            raise _error(error.smtp_code if final else 0, text) from error
        except (OSError, smtplib.SMTPException, UnicodeError) as error:
            if deadline.is_over:
                raise MailDelayed(
                    f"{self.host}:{self.port} did not take the mail within {self.attempt_within:,.0f} s"
                ) from error
            raise MailDelayed(f"{self.host}:{self.port} cannot be used: {error}") from error

    def _connected(self, deadline: _Deadline) -> smtplib.SMTP:
        # smtplib itself would take any certificate, and so hand the password to whoever stands in between.
        verified = ssl.create_default_context()
        server = (
            _OverTls(deadline, self.host, self.port, self.timeout, verified)
            if self.security == "tls"
            else _Plain(deadline, self.host, self.port, self.timeout)
        )
        try:
            if self.security == "starttls":
                server.starttls(context=verified)
            if self.user:
                server.login(self.user, self.password.get_secret_value() if self.password else "")
        except BaseException:
            server.close()
            raise
        return server

    @staticmethod
    def _listen(server: smtplib.SMTP, seconds: float) -> None:
        """How long to wait for each answer from now on."""
        if server.sock is not None:
            server.sock.settimeout(seconds)


class _Deadline:
    """Cuts a connection when the time of the attempt is over: a server that drips bytes resets every other timeout."""

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def opened(self, connection: socket.socket) -> None:
        """Watch a connection, by a descriptor of its own: TLS takes over the other one."""
        with self._lock:
            self._connection = socket.socket(fileno=os.dup(connection.fileno()))
            if self.is_over:
                self._connection.shutdown(socket.SHUT_RDWR)

    def _cut(self) -> None:
        with self._lock:
            self.is_over = True
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)


class _Plain(smtplib.SMTP):
    """An SMTP connection under a deadline, from its first byte."""

    def __init__(self, deadline: _Deadline, host: str, port: int, timeout: float) -> None:
        self._deadline = deadline
        super().__init__(host, port, timeout=timeout)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connection = socket.create_connection((host, port), timeout)
        self._deadline.opened(connection)
        return connection


class _OverTls(smtplib.SMTP_SSL):
    """The same over TLS."""

    def __init__(self, deadline: _Deadline, host: str, port: int, timeout: float, verified: ssl.SSLContext) -> None:
        self._deadline = deadline
        self._verified = verified
        super().__init__(host, port, timeout=timeout, context=verified)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connection = socket.create_connection((host, port), timeout)
        self._deadline.opened(connection)
        return self._verified.wrap_socket(connection, server_hostname=host)


@dataclass(frozen=True, slots=True)
class MailFolder:
    """Keeps each message as an .eml file that any mail program opens; its name is the Message-ID's."""

    folder: Path

    def send(self, message: EmailMessage) -> None:
        """Write the file whole. Raises MailDelayed when the folder cannot be written."""
        name = str(message["Message-ID"]).strip("<>").partition("@")[0]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f".{name}.partial"
            partial.write_bytes(message.as_bytes())
            partial.replace(self.folder / f"{name}.eml")
        except OSError as error:
            raise MailDelayed(f"the mail folder {self.folder} cannot be written: {error}") from error


def _address(message: EmailMessage, header: str) -> str:
    (address,) = message[header].addresses
    return address.addr_spec


def _error(code: int, text: str) -> MailRefused | MailDelayed:
    return MailRefused(text) if code >= PERMANENT else MailDelayed(text)


def _text(reply: bytes | str) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply
