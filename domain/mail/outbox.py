"""The outbox: mails are enqueued in the transaction that they tell of, and delivered afterwards with retries.

A mail is an intent (template, context, recipient). It is rendered when it is delivered, and withdrawn if what it offers
is then no longer its recipient's, or if the recipient has lost the account or the role that it was sent for. A crash
between the server's acceptance and our commit may send it once more, with the same Message-ID.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage
from typing import Any, Protocol

from sqlalchemy import and_, case, func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from domain.db import Sessions, can_be_id, database_now
from domain.errors import InvalidRequest
from domain.mail.audience import Audience, reason_to_withdraw
from domain.models import MailStatus, OutboxMail, Study, User

logger = logging.getLogger(__name__)

FIRST_RETRY = timedelta(minutes=1)
LONGEST_RETRY = timedelta(hours=6)
MAX_ATTEMPTS = 21
"""A mail waits for three days in all, as mail servers do: a server may be away for a weekend."""
ATTEMPT_LEASE = timedelta(minutes=15)
"""How long one attempt may take before another worker may try the same mail; a server may think for ten minutes."""


class MailRefused(Exception):
    """The server refuses this recipient or message for good; another try will not help."""


class MailDelayed(Exception):
    """The server cannot be reached, or asks to try again later."""


class MailWithdrawn(Exception):
    """Raised while a mail is rendered: what it offers is no longer its recipient's, and it must not be sent at all."""


class Transport(Protocol):
    """Takes one message to its recipient. Raises MailRefused or MailDelayed."""

    def send(self, message: EmailMessage) -> None: ...


Compose = Callable[[OutboxMail], EmailMessage]
"""Renders a mail. May raise MailWithdrawn, or MailDelayed when what it needs cannot be reached now."""

OnWithdrawal = Callable[[Session, OutboxMail, str], None]
"""Records, in the transaction that withdraws a mail, why."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one round of delivery did, in numbers of mails."""

    sent: int
    delayed: int
    failed: int
    withdrawn: int = 0


@dataclass(frozen=True, slots=True)
class OutboxState:
    """The outbox in numbers of mails. `due` are those of `waiting` whose time has come."""

    waiting: int
    due: int
    failed: int
    oldest_waiting_at: datetime | None


def outbox_state(sessions: Sessions, failed_within: timedelta) -> OutboxState:
    """What waits, and what failed for good so long ago or less."""
    waits = OutboxMail.status == MailStatus.WAITING
    is_due = and_(waits, OutboxMail.next_attempt_at <= database_now())
    failed_at = OutboxMail.next_attempt_at  # of one that has its end, the time of that
    failed_lately = and_(OutboxMail.status == MailStatus.FAILED, failed_at >= database_now(-failed_within))
    counts = select(
        func.count(case((waits, 1))),
        func.count(case((is_due, 1))),
        func.count(case((failed_lately, 1))),
        func.min(case((waits, OutboxMail.created_at))),
    ).where(OutboxMail.status.in_([MailStatus.WAITING, MailStatus.FAILED]))
    with sessions.begin() as session:
        waiting, due, failed, oldest = session.execute(counts).one()
    return OutboxState(waiting, due, failed, oldest)


def enqueue(
    session: Session,
    *,
    event: str,
    template: str,
    context: dict[str, Any],
    recipients: Iterable[User],
    study: Study,
    audiences: Sequence[Audience] = (),
    asked_by: User | None = None,
    wait: timedelta = timedelta(0),
) -> None:
    """Put one mail for each recipient into the outbox; `event` and recipient together are unique for ever.

    It is sent to `audiences`, and to `asked_by` for having asked. Whether the recipient is still one of them is asked
    again when the mail is delivered: see `reason_to_withdraw`. It is due after `wait`.
    """
    sent_to = {"audiences": [*audiences], "asked_by_id": asked_by.id if asked_by else None}
    mails = [
        OutboxMail(
            event=event,
            recipient_id=user.id,
            study_id=study.id,
            template=template,
            context={**context, "sent_to": sent_to},
        )
        for user in recipients
    ]
    session.add_all(mails)
    session.flush()
    if wait:
        ids = [mail.id for mail in mails]
        session.execute(
            update(OutboxMail).where(OutboxMail.id.in_(ids)).values(next_attempt_at=database_now(wait)),
            execution_options={"synchronize_session": False},
        )


def deliver(
    sessions: Sessions,
    transport: Transport,
    compose: Compose,
    *,
    limit: int = 100,
    on_withdrawal: OnWithdrawal | None = None,
) -> Delivery:
    """Deliver the mails that are due, oldest first. One mail's failure never stops another's."""
    outcome = dict.fromkeys(MailStatus, 0)
    for mail_id in _due(sessions, limit):
        mail = _take(sessions, mail_id)
        if mail is not None:
            outcome[_try(sessions, transport, compose, mail, on_withdrawal)] += 1
    return Delivery(
        sent=outcome[MailStatus.SENT],
        delayed=outcome[MailStatus.WAITING],
        failed=outcome[MailStatus.FAILED],
        withdrawn=outcome[MailStatus.WITHDRAWN],
    )


def try_again(sessions: Sessions, mail_id: int | None = None) -> list[int]:
    """Put failed mails back, all or this one, as if they had never been tried; returns their ids.

    Raises InvalidRequest if there is no such mail, or if it has not failed.
    """
    if mail_id is not None and not can_be_id(mail_id):
        raise _no_mail(mail_id)
    is_meant = [] if mail_id is None else [OutboxMail.id == mail_id]
    back = (
        update(OutboxMail)
        .where(OutboxMail.status == MailStatus.FAILED, *is_meant)
        .values(status=MailStatus.WAITING, attempts=0, next_attempt_at=database_now())
        .returning(OutboxMail.id)
    )
    with sessions.begin() as session:
        ids = sorted(session.scalars(back))
        if mail_id is not None and not ids:
            status = session.scalar(select(OutboxMail.status).where(OutboxMail.id == mail_id))
            if status is None:
                raise _no_mail(mail_id)
            raise InvalidRequest(f"mail {mail_id} is {status}: only one that has failed can be tried again")
    return ids


def _no_mail(mail_id: int) -> InvalidRequest:
    return InvalidRequest(f"there is no mail {mail_id}; `lookit-ops mail list` shows them")


def _due(sessions: Sessions, limit: int) -> list[int]:
    due = (
        select(OutboxMail.id)
        .where(OutboxMail.status == MailStatus.WAITING, OutboxMail.next_attempt_at <= database_now())
        .order_by(OutboxMail.id)
        .limit(limit)
    )
    with sessions.begin() as session:
        return list(session.scalars(due))


def _take(sessions: Sessions, mail_id: int) -> OutboxMail | None:
    """Claim one attempt by compare-and-set; None if another worker has it."""
    take = (
        update(OutboxMail)
        .where(
            OutboxMail.id == mail_id,
            OutboxMail.status == MailStatus.WAITING,
            OutboxMail.next_attempt_at <= database_now(),
        )
        .values(attempts=OutboxMail.attempts + 1, next_attempt_at=database_now(ATTEMPT_LEASE))
        .returning(OutboxMail.id)
    )
    with sessions.begin() as session:
        if session.scalar(take) is None:
            return None
        mail = session.get_one(OutboxMail, mail_id)
        _ = mail.recipient  # loaded now: rendering happens without a session
        return mail


def _try(
    sessions: Sessions, transport: Transport, compose: Compose, mail: OutboxMail, on_withdrawal: OnWithdrawal | None
) -> MailStatus:
    try:
        with sessions.begin() as session:
            reason = reason_to_withdraw(session, mail)
        if reason is not None:
            raise MailWithdrawn(reason)
        transport.send(compose(mail))
    except MailWithdrawn as withdrawal:
        return _settle(sessions, mail, MailStatus.WITHDRAWN, str(withdrawal), on_withdrawal)
    except (MailDelayed, DBAPIError) as delay:  # a database that is away comes back, too
        why = str(delay) if isinstance(delay, MailDelayed) else f"{type(delay).__name__}: {delay}"
        final = mail.attempts >= MAX_ATTEMPTS
        return _settle(sessions, mail, MailStatus.FAILED if final else MailStatus.WAITING, why)
    except MailRefused as refusal:
        return _settle(sessions, mail, MailStatus.FAILED, str(refusal))
    except Exception as error:  # a broken template must not stop the mails behind it
        logger.exception("mail %s to %s cannot be delivered", mail.id, mail.recipient.email)
        return _settle(sessions, mail, MailStatus.FAILED, f"{type(error).__name__}: {error}")
    return _settle(sessions, mail, MailStatus.SENT, None)


def _settle(
    sessions: Sessions,
    mail: OutboxMail,
    status: MailStatus,
    error: str | None,
    on_withdrawal: OnWithdrawal | None = None,
) -> MailStatus:
    waits = status is MailStatus.WAITING
    wait = min(FIRST_RETRY * 2 ** (mail.attempts - 1), LONGEST_RETRY) if waits else timedelta(0)
    # What was sent was sent, however late; any other end counts only while nobody has begun another attempt.
    is_newest = [] if status is MailStatus.SENT else [OutboxMail.attempts == mail.attempts]
    settled = (
        update(OutboxMail)
        .where(OutboxMail.id == mail.id, OutboxMail.status == MailStatus.WAITING, *is_newest)
        .values(
            status=status,
            last_error=error,
            sent_at=database_now() if status is MailStatus.SENT else None,
            next_attempt_at=database_now(wait),
        )
        .returning(OutboxMail.id)
    )
    with sessions.begin() as session:
        is_settled = session.scalar(settled) is not None
        if is_settled and on_withdrawal is not None:
            on_withdrawal(session, mail, error or "")
    if status is not MailStatus.SENT:
        logger.warning("mail %s to %s: %s, %s", mail.id, mail.recipient.email, status, error)
    return status
