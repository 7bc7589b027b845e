"""Mail leaves the house: over SMTP, or into a folder as .eml files."""

from __future__ import annotations

import contextlib
import smtplib
import ssl
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

    Both times in seconds: to connect and log in, and for an answer about the message. A server that takes longer over
    its filters accepts the mail all the same, and who no longer listened would send it again (RFC 5321, 4.5.3.2).
    """

    host: str
    port: int
    security: Literal["starttls", "tls", "none"]
    user: str = ""
    password: SecretStr | None = None
    timeout: float = 30
    answers_within: float = 600

    def send(self, message: EmailMessage) -> None:
        """Hand the message over. Raises MailRefused when the server says never, MailDelayed when it says later."""
        try:
            with contextlib.closing(self._connected()) as server:
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
            # A refused login or sender is the operator's to mend, not the recipient's fate: the mail waits.
            final = isinstance(error, smtplib.SMTPDataError)
            text = f"{self.host}:{self.port} answered {error.smtp_code} {_text(error.smtp_error)}"
            raise _error(error.smtp_code if final else 0, text) from error
        except (OSError, smtplib.SMTPException, UnicodeError) as error:
            raise MailDelayed(f"{self.host}:{self.port} cannot be used: {error}") from error

    def _connected(self) -> smtplib.SMTP:
        # smtplib itself would take any certificate, and so hand the password to whoever stands in between.
        verified = ssl.create_default_context()
        server = (
            smtplib.SMTP_SSL(self.host, self.port, timeout=self.timeout, context=verified)
            if self.security == "tls"
            else smtplib.SMTP(self.host, self.port, timeout=self.timeout)
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
