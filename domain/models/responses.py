"""What families left behind: responses, rulings on their consent, and the videos that S3 holds."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from domain.db import Base, BigKey, default_now, default_uuid, one_of

BUCKET_LENGTH = 255
"""Characters of the longest name of a bucket of videos."""


class Ruling(StrEnum):
    """What a researcher ruled on a family's consent; no ruling means pending."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    PENDING = "pending"


class Response(Base):
    """One family's session with a study, real or in its preview."""

    __tablename__ = "response"

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    uuid: Mapped[UUID] = mapped_column(server_default=default_uuid(), unique=True, init=False)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="RESTRICT"), index=True)
    is_preview: Mapped[bool] = mapped_column(server_default=false(), default=False)
    created_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)


class ConsentRuling(Base):
    """A ruling on a response's consent; the newest by `created_at` counts, and of two at one time the later row."""

    __tablename__ = "consent_ruling"
    __table_args__ = (
        CheckConstraint(one_of("ruling", Ruling), name="ruling"),
        Index("ix_consent_ruling_response", "response_id", "created_at", "id"),
    )

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    response_id: Mapped[int] = mapped_column(ForeignKey("response.id", ondelete="CASCADE"))
    ruling: Mapped[str] = mapped_column(String(10))
    arbiter_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id", ondelete="SET NULL"), default=None)
    comment: Mapped[str] = mapped_column(Text, server_default="", default="")
    created_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)


class Video(Base):
    """A video in S3, by the name of its object. `gone_at`: when the object was found to be missing.

    `bucket` is empty for the first bucket of videos, and else the address of another one, as the settings have it.
    """

    __tablename__ = "video"
    __table_args__ = (
        CheckConstraint("size_bytes >= 0", name="size_not_negative"),
        CheckConstraint("length(object_key) > 0", name="key_not_blank"),
        Index("ix_video_study", "study_id", "is_consent_footage"),
    )

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="RESTRICT"))
    response_id: Mapped[int] = mapped_column(ForeignKey("response.id", ondelete="RESTRICT"), index=True)
    object_key: Mapped[str] = mapped_column(String(1024), unique=True)
    frame_id: Mapped[str] = mapped_column(String(255))
    recorded_at: Mapped[datetime] = mapped_column()
    size_bytes: Mapped[int | None] = mapped_column(BigKey, default=None)
    etag: Mapped[str | None] = mapped_column(String(128), default=None)
    is_consent_footage: Mapped[bool] = mapped_column(server_default=false(), default=False)
    gone_at: Mapped[datetime | None] = mapped_column(default=None)
    bucket: Mapped[str] = mapped_column(String(BUCKET_LENGTH), server_default="", default="")
    created_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)
