"""An outbox mail becomes a message: subject, text and HTML from Jinja2 templates, with links to the platform."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import format_datetime
from functools import cache
from urllib.parse import urljoin

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from domain.errors import InvalidRequest
from domain.escaping import deliverable_address, mail_phrase, mail_subject, one_line
from domain.mail.outbox import MailDelayed, MailRefused
from domain.models import BuildKind, OutboxMail


@dataclass(frozen=True, slots=True)
class Links:
    """Where the platform's pages are: bases of URLs, each with a slash at its end.

    `previews` may hold `{uuid}`: then each study's preview has an origin of its own.
    """

    platform: str
    studies: str
    previews: str

    def study(self, uuid: str) -> str:
        """The page on which researchers work on the study."""
        return urljoin(self.platform, f"exp/studies/{uuid}/")

    def built(self, kind: str, uuid: str) -> str:
        """The built study itself: as families meet it, or as a preview."""
        base = self.previews.replace("{uuid}", uuid) if kind == BuildKind.PREVIEW else self.studies
        return urljoin(base, f"studies/{uuid}/")


@dataclass(frozen=True, slots=True)
class Download:
    """A link that anyone who has it can follow: for how long from the moment when it was made, and so until when."""

    url: str
    valid_for: timedelta
    until: datetime

    @property
    def minutes(self) -> int:
        """Whole minutes for which the link is good."""
        return int(self.valid_for / timedelta(minutes=1))

    @property
    def last_minute(self) -> str:
        """The last whole minute of it, for people anywhere."""
        return self.until.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


Downloads = Callable[[OutboxMail], Download]
"""Makes the link of a mail whose context names an `archive`, after asking whether its recipient may still have it.

Called once for each attempt to deliver. Raises MailWithdrawn if not, MailDelayed if no link can be made now.
"""


def no_downloads(mail: OutboxMail) -> Download:
    """Where no bucket of archives is at hand, their mails wait for a worker that has one."""
    raise MailDelayed(f"mail {mail.id} offers an archive, and this worker cannot make links to archives")


class _Verbatim(EmailPolicy):
    """Keeps each header as it was written here: encoded, folded, and in ASCII.

    The standard library would parse it, and in doing so decode the encoded words that a name may pretend to be, and
    fold it anew, and in doing so lose the quotes of a long name.
    """

    def header_store_parse(self, name: str, value: str) -> tuple[str, str]:
        return name, value


_VERBATIM = _Verbatim(message_factory=EmailMessage, refold_source="none")


def _encodable(text: str) -> str:
    """Return the text without halves of surrogate pairs, which JSON can hold and no message."""
    return text.encode("utf-8", "replace").decode()


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("domain.mail"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["one_line"] = one_line
    return environment


@dataclass(frozen=True, slots=True)
class Composer:
    """Renders mails from one sender. `sender` is an e-mail address; its host also names the Message-IDs."""

    sender: str
    links: Links
    downloads: Downloads = no_downloads

    def __call__(self, mail: OutboxMail) -> EmailMessage:
        """The message: multipart text and HTML, with a Message-ID that stays the same over attempts.

        It is dated now, since it is composed to be sent: what it says of time counts from then.

        Raises:
            MailRefused: no mail can be delivered to the recipient's address.
        """
        try:
            to = deliverable_address(mail.recipient.email)
        except InvalidRequest as error:
            raise MailRefused(str(error)) from error
        sender = deliverable_address(self.sender)
        name = one_line(mail.recipient.name)
        context = {**mail.context, "recipient": {"name": name, "email": to}, "links": self.links}
        if study := mail.context.get("study"):  # the name stands in the subject, which is the first line
            context["study"] = {**study, "name": one_line(study["name"])}
        if "archive" in mail.context:
            context["download"] = self.downloads(mail)
        subject, text = _templates().get_template(f"{mail.template}.txt.j2").render(context).split("\n", 1)
        message = EmailMessage(policy=_VERBATIM)
        message["Subject"] = mail_subject(subject.removeprefix("Subject:"))
        message["From"] = f"Lookit <{sender}>"
        # An encoded word is no longer than its line; the address has one of its own.
        message["To"] = f"{mail_phrase(name)}\n <{to}>" if name else to
        message["Message-ID"] = f"<outbox-{mail.uuid}@{sender.rpartition('@')[2]}>"
        message["Date"] = format_datetime(datetime.now(UTC))
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(_encodable(text.strip()) + "\n")
        html = _templates().get_template(f"{mail.template}.html.j2").render(context)
        message.add_alternative(_encodable(html), subtype="html")
        return message
