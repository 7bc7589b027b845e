"""One contract for every way out of the house: the fake of the tests, the mail folder, and a real SMTP server."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from typing import Protocol

import pytest
from pydantic import SecretStr

from domain.mail.outbox import ATTEMPT_LEASE, MailDelayed, MailRefused, Transport
from lookit_ops.storage.smtp import MailFolder, SmtpTransport
from tests.support.mail import FakeTransport
from tests.support.smtp_server import HOST, Mailboxes, free_port, self_signed, smtp_server

PASSWORD = "open sesame 4711"


class Way(Protocol):
    """A transport, and the other end of it."""

    @property
    def transport(self) -> Transport: ...
    def arrived(self) -> list[EmailMessage]: ...
    def answer(self, address: str, code: int) -> None: ...
    def break_down(self) -> None: ...


class ByFake:
    def __init__(self) -> None:
        self.transport = FakeTransport()

    def arrived(self) -> list[EmailMessage]:
        return self.transport.sent

    def answer(self, address: str, code: int) -> None:
        (self.transport.refuses if code >= 500 else self.transport.delays).add(address)

    def break_down(self) -> None:
        self.transport.is_down = True


class ByFolder:
    def __init__(self, folder: Path) -> None:
        self.transport = MailFolder(folder / "deep" / "mail")

    def arrived(self) -> list[EmailMessage]:
        return [parsed(path.read_bytes()) for path in sorted(self.transport.folder.iterdir())]

    def break_down(self) -> None:
        self.transport.folder.parent.parent.mkdir(exist_ok=True)
        self.transport.folder.parent.write_text("a file where the folder should be")


class BySmtp:
    def __init__(self, mailboxes: Mailboxes) -> None:
        self.mailboxes = mailboxes
        self.transport = SmtpTransport(HOST, mailboxes.port, "none", timeout=10)

    def arrived(self) -> list[EmailMessage]:
        return [parsed(message) for message in self.mailboxes.messages]

    def answer(self, address: str, code: int) -> None:
        self.mailboxes.replies[address] = f"{code} the server's own words"

    def break_down(self) -> None:
        self.transport = replace(self.transport, port=free_port())


def parsed(message: bytes) -> EmailMessage:
    return BytesParser(policy=policy.default).parsebytes(message)


def message(to: str = "rita@example.org", number: int = 1) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = "Äpfel & Birnen are deployed"
    message["From"] = "Lookit <lookit@example.org>"
    message["To"] = f"Zoë Büchner <{to}>"
    message["Message-ID"] = f"<outbox-{number}@example.org>"
    message.set_content("Grüße\n.\na line with a dot alone stands above\n")
    message.add_alternative("<p>Grüße</p>", subtype="html")
    return message


@pytest.fixture
def mailboxes() -> Iterator[Mailboxes]:
    with smtp_server(Mailboxes()) as running:
        yield running


@pytest.fixture(params=["fake", "folder", "smtp"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    """Every way out."""
    if request.param == "smtp":
        return BySmtp(request.getfixturevalue("mailboxes"))
    return ByFake() if request.param == "fake" else ByFolder(tmp_path)


@pytest.fixture(params=["fake", "smtp"])
def way_that_answers(request: pytest.FixtureRequest) -> Way:
    """Every way out on which somebody answers for an address; a folder takes all."""
    return BySmtp(request.getfixturevalue("mailboxes")) if request.param == "smtp" else ByFake()


def test_a_message_arrives_as_it_was_written(way: Way) -> None:
    way.transport.send(message())
    (arrived,) = way.arrived()
    assert arrived["Subject"] == "Äpfel & Birnen are deployed"
    assert str(arrived["To"]) == "Zoë Büchner <rita@example.org>"
    assert arrived["Message-ID"] == "<outbox-1@example.org>"
    text, html = arrived.get_body(("plain",)), arrived.get_body(("html",))
    assert text is not None
    assert html is not None
    assert text.get_content().splitlines() == ["Grüße", ".", "a line with a dot alone stands above"]
    assert html.get_content().strip() == "<p>Grüße</p>"


def test_several_messages_arrive_one_by_one(way: Way) -> None:
    for number in range(3):
        way.transport.send(message(number=number))
    assert {arrived["Message-ID"] for arrived in way.arrived()} == {f"<outbox-{n}@example.org>" for n in range(3)}


def test_a_way_that_is_broken_asks_to_try_again_later(way: Way) -> None:
    way.break_down()
    with pytest.raises(MailDelayed):
        way.transport.send(message())


@pytest.mark.parametrize(
    ("code", "error"), [(550, MailRefused), (553, MailRefused), (451, MailDelayed), (421, MailDelayed)]
)
def test_a_recipient_is_refused_for_good_or_for_now(way_that_answers: Way, code: int, error: type[Exception]) -> None:
    way = way_that_answers
    way.answer("rita@example.org", code)
    with pytest.raises(error, match=r"rita@example\.org"):
        way.transport.send(message())
    way.transport.send(message("other@example.org", number=2))
    assert [arrived["Message-ID"] for arrived in way.arrived()] == ["<outbox-2@example.org>"]


# -- the folder -------------------------------------------------------------------------------------------------------


def test_the_folder_keeps_one_file_for_each_message_id_and_nothing_half_written(tmp_path: Path) -> None:
    folder = MailFolder(tmp_path / "mail")
    folder.send(message())
    folder.send(message())
    assert [path.name for path in folder.folder.iterdir()] == ["outbox-1.eml"]


# -- the SMTP server --------------------------------------------------------------------------------------------------


def test_the_servers_words_reach_the_operator(mailboxes: Mailboxes) -> None:
    mailboxes.replies["rita@example.org"] = "550 no such mailbox here"
    with pytest.raises(MailRefused, match="no such mailbox here"):
        SmtpTransport(HOST, mailboxes.port, "none").send(message())


@pytest.mark.parametrize(("reply", "error"), [("554 looks like spam", MailRefused), ("452 disk full", MailDelayed)])
def test_a_message_that_is_refused_after_its_data_is_so_for_good_or_for_now(
    mailboxes: Mailboxes, reply: str, error: type[Exception]
) -> None:
    mailboxes.after_data = reply
    with pytest.raises(error, match=reply):
        SmtpTransport(HOST, mailboxes.port, "none").send(message())


def test_a_refused_sender_is_the_operators_to_mend_so_the_mail_waits(mailboxes: Mailboxes) -> None:
    mailboxes.to_sender = "550 not your domain"
    with pytest.raises(MailDelayed, match="not your domain"):
        SmtpTransport(HOST, mailboxes.port, "none").send(message())


@pytest.mark.parametrize("farewell", ["421 shutting down", "500 what?"])
def test_a_server_that_has_the_message_has_it_however_it_parts(mailboxes: Mailboxes, farewell: str) -> None:
    mailboxes.to_quit = farewell
    SmtpTransport(HOST, mailboxes.port, "none").send(message())
    assert len(mailboxes.messages) == 1


def test_a_recipients_refusal_counts_however_the_server_parts(mailboxes: Mailboxes) -> None:
    mailboxes.replies["rita@example.org"], mailboxes.to_quit = "550 no such mailbox", "421 shutting down"
    with pytest.raises(MailRefused, match="no such mailbox"):
        SmtpTransport(HOST, mailboxes.port, "none").send(message())


def test_a_server_that_thinks_about_the_message_is_listened_to_or_it_would_get_another(mailboxes: Mailboxes) -> None:
    mailboxes.late = 1.5
    SmtpTransport(HOST, mailboxes.port, "none", timeout=0.5).send(message())
    assert len(mailboxes.messages) == 1


def test_a_server_that_thinks_for_ever_is_given_up(mailboxes: Mailboxes) -> None:
    mailboxes.late = 3
    with pytest.raises(MailDelayed, match="timed out"):
        SmtpTransport(HOST, mailboxes.port, "none", answers_within=0.5).send(message())


def test_a_server_that_says_nothing_is_not_waited_for_for_ever() -> None:
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(MailDelayed, match=rf"{re.escape(HOST)}:{port} cannot be used: .*timed out"):
            SmtpTransport(HOST, port, "none", timeout=0.2).send(message())


def test_a_host_that_does_not_exist_asks_to_try_again_later() -> None:
    with pytest.raises(MailDelayed, match=r"no-such-host\.invalid:25 cannot be used"):
        SmtpTransport("no-such-host.invalid", 25, "none", timeout=5).send(message())


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_server_without_the_wanted_security_gets_no_message(mailboxes: Mailboxes, security: str) -> None:
    with pytest.raises(MailDelayed):
        SmtpTransport(HOST, mailboxes.port, security, "lookit", SecretStr(PASSWORD), timeout=5).send(message())
    assert (mailboxes.messages, mailboxes.logins) == ([], [])


def test_a_login_over_a_verified_connection_lets_mail_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls, certificate = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with smtp_server(Mailboxes(password=PASSWORD), tls) as mailboxes:
        SmtpTransport(HOST, mailboxes.port, "starttls", "lookit", SecretStr(PASSWORD)).send(message())
    assert mailboxes.logins == [PASSWORD]
    assert len(mailboxes.messages) == 1


def test_a_certificate_that_nobody_vouches_for_never_sees_the_password(tmp_path: Path) -> None:
    tls, _ = self_signed(tmp_path)
    with (
        smtp_server(Mailboxes(password=PASSWORD), tls) as mailboxes,
        pytest.raises(MailDelayed, match="certificate"),
    ):
        SmtpTransport(HOST, mailboxes.port, "starttls", "lookit", SecretStr(PASSWORD)).send(message())
    assert (mailboxes.messages, mailboxes.logins) == ([], [])


@pytest.mark.parametrize("wrong", ["wrong password 0815", "grün-wie-die-hoffnung"])
def test_a_refused_login_waits_and_its_error_tells_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    tls, certificate = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with smtp_server(Mailboxes(password=PASSWORD), tls) as mailboxes:
        transport = SmtpTransport(HOST, mailboxes.port, "starttls", "lookit", SecretStr(wrong))
        with pytest.raises(MailDelayed) as delay:
            transport.send(message())
    assert wrong not in str(delay.value)
    assert wrong not in repr(transport)
    assert mailboxes.messages == []


def test_a_dead_server_is_told_without_the_password() -> None:
    with pytest.raises(MailDelayed) as delay:
        SmtpTransport(HOST, free_port(), "none", "lookit", SecretStr(PASSWORD), timeout=5).send(message())
    assert PASSWORD not in str(delay.value)


@pytest.mark.parametrize("begins", [b"", b"220 slow\r\n"], ids=["from the greeting on", "after the greeting"])
def test_a_server_that_drips_bytes_for_ever_is_given_up_in_time(begins: bytes) -> None:
    """Each byte resets the timeout of the connection; the attempt has a time of its own."""
    done = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(begins)
            while not done.wait(0.1):
                connection.sendall(b"2")

    with socket.create_server((HOST, 0)) as listener:
        server = threading.Thread(target=drip, args=(listener,))
        server.start()
        port = listener.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(MailDelayed, match=r"did not take the mail within 1 s"):
            SmtpTransport(HOST, port, "none", timeout=5, attempt_within=1).send(message())
        assert time.monotonic() - began < 4
        done.set()
        server.join()


def test_an_attempt_is_shorter_than_its_lease() -> None:
    assert SmtpTransport(HOST, 25, "none").attempt_within < ATTEMPT_LEASE.total_seconds()
