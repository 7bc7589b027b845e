"""Delivery of mails, and the links to archives that they offer: made, and asked for again, when the mail leaves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from domain.mail.compose import Composer, Download
from domain.mail.outbox import Delivery, MailDelayed, MailWithdrawn, deliver
from domain.models import OutboxMail
from domain.requests.archive_links import ArchiveOffer
from lookit_ops.services import Services
from lookit_ops.storage.errors import StorageError

LINK_VALID_FOR = timedelta(minutes=30)
"""How long a link to an archive is good."""


def deliver_mails(services: Services, limit: int = 200) -> Delivery:
    """Deliver the mails that are due, at most so many.

    One that offers an archive gets a fresh link, if its recipient still may have it.
    """

    def download_of(mail: OutboxMail) -> Download:
        offer = services.archive_links.offer_of_mail(mail)
        try:
            download = download_for(services, offer)
        except StorageError as error:
            raise MailDelayed(str(error)) from error
        if download is None:
            gone = f"{offer.archive_key} is no longer in {services.archives.name}"
            raise MailWithdrawn(f"{gone}; ask for the archive again")
        return download

    composer = Composer(services.settings.mail_sender, services.links, download_of)
    withdrawn = services.archive_links.record_withdrawal
    return deliver(services.sessions, services.transport, composer, limit=limit, on_withdrawal=withdrawn)


def download_for(services: Services, offer: ArchiveOffer) -> Download | None:
    """Return a link to the archive, good from now; None if it is not in the bucket any more. Raises StorageError."""
    if services.archives.size_of(offer.archive_key) is None:
        return None
    until = datetime.now(UTC) + LINK_VALID_FOR  # rather a moment too early than too late
    url = services.archives.link(offer.archive_key, offer.file_name, LINK_VALID_FOR)
    return Download(url, LINK_VALID_FOR, until)
