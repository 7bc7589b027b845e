"""An outbox mail becomes a message: subject, text and HTML from Jinja2 templates, with links to the platform."""

from __future__ import annotations

from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from functools import cache
from urllib.parse import urljoin

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from domain.models import BuildKind, OutboxMail


@dataclass(frozen=True, slots=True)
class Links:
    """Where the platform's pages are: bases of URLs, each with a slash at its end."""

    platform: str
    studies: str
    previews: str

    def study(self, uuid: str) -> str:
        """The page on which researchers work on the study."""
        return urljoin(self.platform, f"exp/studies/{uuid}/")

    def built(self, kind: str, uuid: str) -> str:
        """The built study itself: as families meet it, or as a preview."""
        return urljoin(self.previews if kind == BuildKind.PREVIEW else self.studies, f"studies/{uuid}/")


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("domain.mail"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@dataclass(frozen=True, slots=True)
class Composer:
    """Renders mails from one sender. `sender` is an e-mail address; its host also names the Message-IDs."""

    sender: str
    links: Links

    def __call__(self, mail: OutboxMail) -> EmailMessage:
        """The message: multipart text and HTML, with a Message-ID that stays the same over attempts."""
        context = {**mail.context, "recipient": mail.recipient, "links": self.links}
        if study := mail.context.get("study"):  # the name stands in the subject, which is the first line
            context["study"] = {**study, "name": _one_line(study["name"])}
        subject, text = _templates().get_template(f"{mail.template}.txt.j2").render(context).split("\n", 1)
        message = EmailMessage()
        message["Subject"] = " ".join(subject.removeprefix("Subject:").split())
        message["From"] = Address("Lookit", addr_spec=self.sender)
        message["To"] = Address(_one_line(mail.recipient.name), addr_spec=mail.recipient.email)
        message["Message-ID"] = f"<outbox-{mail.uuid}@{self.sender.rpartition('@')[2]}>"
        message["Date"] = mail.created_at
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text.strip() + "\n")
        html = _templates().get_template(f"{mail.template}.html.j2").render(context)
        message.add_alternative(html, subtype="html")
        return message


def _one_line(text: str) -> str:
    return " ".join(text.split())
