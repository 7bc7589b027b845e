"""A real SMTP server in the test's process: it keeps what it takes, and answers addresses as it is told to."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOST = "127.0.0.1"


@dataclass
class Mailboxes:
    """What the server takes and answers. `replies`: to an address; `after_data`: to all mail, `late` seconds late."""

    replies: dict[str, str] = field(default_factory=dict)
    after_data: str = "250 OK"
    late: float = 0
    to_quit: str = "221 Bye"
    to_sender: str = "250 OK"
    password: str = ""
    messages: list[bytes] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    port: int = 0

    async def handle_MAIL(  # noqa: N802 - aiosmtpd calls it by this name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        envelope.mail_from = address
        return self.to_sender

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address in self.replies:
            return self.replies[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.after_data.startswith("250"):
            self.messages.append(bytes(envelope.content or b""))
        await asyncio.sleep(self.late)
        return self.after_data

    async def handle_QUIT(self, _server: SMTP, _session: Session, _envelope: Envelope) -> str:  # noqa: N802
        return self.to_quit

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, login: LoginPassword
    ) -> AuthResult:
        self.logins.append(login.password.decode())
        return AuthResult(success=login.password.decode() == self.password, handled=False)


@contextmanager
def smtp_server(mailboxes: Mailboxes, tls: ssl.SSLContext | None = None) -> Iterator[Mailboxes]:
    """Run the server on the mailboxes' port, or a free one; with `tls` it wants STARTTLS, with a password a login."""
    mailboxes.port = mailboxes.port or free_port()
    controller = Controller(
        mailboxes,
        hostname=HOST,
        port=mailboxes.port,
        tls_context=tls,
        require_starttls=tls is not None,
        authenticator=mailboxes.authenticate,
        auth_required=bool(mailboxes.password),
        auth_require_tls=tls is not None,
    )
    controller.start()
    try:
        yield mailboxes
    finally:
        controller.stop()


def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        return bound.getsockname()[1]


def self_signed(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS with a certificate that nobody vouches for, and that certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate_file, key_file)
    return context, certificate_file
