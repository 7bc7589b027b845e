"""Mails that wait, left, failed, or were withdrawn."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from domain.db import Base, BigKey, default_now, default_uuid, one_of
from domain.models.accounts import User


class MailStatus(StrEnum):
    """What became of a mail. `withdrawn`: not sent, because what it offers is no longer the recipient's."""

    WAITING = "waiting"
    SENT = "sent"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"


class OutboxMail(Base):
    """The intent to tell one person of one event: template and context, rendered only when it is delivered."""

    __tablename__ = "outbox_mail"
    __table_args__ = (
        UniqueConstraint("event", "recipient_id"),
        CheckConstraint(one_of("status", MailStatus), name="status"),
        CheckConstraint("(status = 'sent') = (sent_at IS NOT NULL)", name="sent_has_a_time"),
        Index("ix_outbox_mail_due", "status", "next_attempt_at"),
    )

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    uuid: Mapped[UUID] = mapped_column(server_default=default_uuid(), unique=True, init=False)
    event: Mapped[str] = mapped_column(String(100))
    recipient_id: Mapped[int] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"))
    template: Mapped[str] = mapped_column(String(60))
    study_id: Mapped[int | None] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"), default=None)
    context: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"), default_factory=dict)
    status: Mapped[str] = mapped_column(
        String(10), server_default=MailStatus.WAITING.value, default=MailStatus.WAITING.value
    )
    attempts: Mapped[int] = mapped_column(server_default=text("0"), init=False)
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)
    sent_at: Mapped[datetime | None] = mapped_column(init=False)
    last_error: Mapped[str | None] = mapped_column(Text, init=False)
    created_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)

    recipient: Mapped[User] = relationship(init=False, repr=False, viewonly=True)
