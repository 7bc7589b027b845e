"""A mail transport for tests: it remembers what it was given, and refuses or delays whom it is told to."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from email.message import EmailMessage

from domain.mail.outbox import MailDelayed, MailRefused


@dataclass
class FakeTransport:
    """Takes every message, but for the addresses of `refuses` and `delays`. Safe between threads."""

    refuses: set[str] = field(default_factory=set)
    delays: set[str] = field(default_factory=set)
    is_down: bool = False
    sent: list[EmailMessage] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: EmailMessage) -> None:
        address = message["To"].addresses[0].addr_spec
        with self._lock:
            self.tried.append(str(message["Message-ID"]))
            if self.is_down:
                raise MailDelayed("the server is down")
            if address in self.refuses:
                raise MailRefused(f"{address} was refused: no such mailbox")
            if address in self.delays:
                raise MailDelayed(f"{address}: mailbox busy, try again later")
            self.sent.append(message)

    @property
    def recipients(self) -> Counter[str]:
        """How many messages each address got."""
        return Counter(message["To"].addresses[0].addr_spec for message in self.sent)
