"""Requests for work: builds of a study, archives of its videos. Other programs insert them with plain SQL.

The server defaults make `INSERT INTO build_request (study_id, requested_by_id, kind)` enough; the CHECKs refuse a
row that claims to be further than that. Partial unique indexes hold the two rules that matter most: one running
build per study, one waiting request per study and kind.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from domain.db import Base, BigKey, default_now, json_array_checks, one_of
from domain.models.accounts import User
from domain.models.studies import WORKFLOW_STATES, Study


class RequestStatus(StrEnum):
    """What became of a request."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class BuildKind(StrEnum):
    """What a build is for."""

    PREVIEW = "preview"
    DEPLOYMENT = "deployment"


class ArchiveKind(StrEnum):
    """Which videos an archive holds."""

    CONSENT = "consent"
    ALL = "all"


ONE_RUNNING_BUILD = "uq_build_request_one_running_per_study"
ONE_WAITING_BUILD = "uq_build_request_one_waiting_per_study_and_kind"
ONE_WAITING_ARCHIVE = "uq_archive_request_one_waiting"


def _life_of_a_request() -> tuple[CheckConstraint, ...]:
    """The CHECKs that both kinds of request share."""
    return (
        CheckConstraint(one_of("status", RequestStatus), name="status"),
        CheckConstraint(
            "status <> 'queued' OR (run_id IS NULL AND claimed_at IS NULL AND lease_expires_at IS NULL"
            " AND finished_at IS NULL)",
            name="queued_is_untouched",
        ),
        CheckConstraint(
            "status <> 'running' OR (run_id IS NOT NULL AND claimed_at IS NOT NULL AND lease_expires_at IS NOT NULL"
            " AND fencing_token IS NOT NULL AND finished_at IS NULL)",
            name="running_has_a_lease",
        ),
        CheckConstraint(
            "status IN ('queued', 'running') OR (finished_at IS NOT NULL AND lease_expires_at IS NULL)",
            name="ended_has_a_time",
        ),
        CheckConstraint("(status = 'failed') = (error IS NOT NULL)", name="failed_says_why"),
        CheckConstraint("attempt >= 0", name="attempt_not_negative"),
        CheckConstraint("submissions >= 0", name="submissions_not_negative"),
        *json_array_checks("failed_attempts"),
    )


class BuildRequest(Base):
    """Somebody asks for a preview or a deployment of a study.

    `origin` says how the request came in, where the account alone does not tell (an operator acting for somebody).
    `player_repo`, `player_sha` and `sha_reason` tell what was built, `warnings` what is amiss with it, in sentences,
    `state_before` where the study stood.
    With `restores_id` it is a rollback: a deployment of what that earlier request built. It never waits.

    While it waits: `submitted_at` says since when a run that shall claim it is on its way, `submissions` how many runs
    there were. One that failed by the platform's fault waits again until `next_attempt_at`, with the cause in
    `error_code`; `failed_attempts` lists what went wrong each time.
    """

    __tablename__ = "build_request"
    __table_args__ = (
        *_life_of_a_request(),
        CheckConstraint(one_of("kind", BuildKind), name="kind"),
        CheckConstraint(one_of("state_before", WORKFLOW_STATES), name="state_before"),
        CheckConstraint("status <> 'running' OR state_before IS NOT NULL", name="running_knows_the_way_back"),
        CheckConstraint(
            "restores_id IS NULL OR (kind = 'deployment' AND status <> 'queued')", name="rollback_never_waits"
        ),
        Index(
            ONE_RUNNING_BUILD,
            "study_id",
            unique=True,
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
        Index(
            ONE_WAITING_BUILD,
            "study_id",
            "kind",
            unique=True,
            sqlite_where=text("status = 'queued'"),
            postgresql_where=text("status = 'queued'"),
        ),
        Index("ix_build_request_status", "status", "id"),
        Index("ix_build_request_study", "study_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="RESTRICT"))
    requested_by_id: Mapped[int] = mapped_column(ForeignKey("user_account.id", ondelete="RESTRICT"))
    kind: Mapped[str] = mapped_column(String(10))
    status: Mapped[str] = mapped_column(
        String(10), server_default=RequestStatus.QUEUED.value, default=RequestStatus.QUEUED.value
    )
    origin: Mapped[str] = mapped_column(Text, server_default="", default="")
    restores_id: Mapped[int | None] = mapped_column(ForeignKey("build_request.id", ondelete="RESTRICT"), default=None)
    requested_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)
    submitted_at: Mapped[datetime | None] = mapped_column(init=False)
    submissions: Mapped[int] = mapped_column(server_default=text("0"), init=False)
    attempt: Mapped[int] = mapped_column(server_default=text("0"), init=False)
    failed_attempts: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"), init=False)
    run_id: Mapped[str | None] = mapped_column(String(64), init=False)
    claimed_at: Mapped[datetime | None] = mapped_column(init=False)
    lease_expires_at: Mapped[datetime | None] = mapped_column(init=False)
    fencing_token: Mapped[int | None] = mapped_column(init=False)
    taken_over: Mapped[int] = mapped_column(server_default=text("0"), init=False)
    state_before: Mapped[str | None] = mapped_column(String(20), init=False)
    cancelled_by_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id", ondelete="SET NULL"), init=False)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(init=False)
    player_repo: Mapped[str | None] = mapped_column(String(300), init=False)
    player_sha: Mapped[str | None] = mapped_column(String(40), init=False)
    sha_reason: Mapped[str | None] = mapped_column(Text, init=False)
    warnings: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"), init=False)
    finished_at: Mapped[datetime | None] = mapped_column(init=False)
    error_code: Mapped[str | None] = mapped_column(String(40), init=False)
    error: Mapped[str | None] = mapped_column(Text, init=False)

    study: Mapped[Study] = relationship(init=False, repr=False, viewonly=True)
    requested_by: Mapped[User] = relationship(
        init=False, repr=False, viewonly=True, foreign_keys="BuildRequest.requested_by_id"
    )


class ArchiveRequest(Base):
    """Somebody asks for a zip of a study's videos; `name_contains` narrows it to a part of the object names.

    A request that failed by the platform's fault waits again until `next_attempt_at`, with the cause in `error_code`.
    The archive that came of it: its object's key, what it holds and lacks in numbers, and whose videos are in it
    (`holds_families`, `holds_previews`); which they are is in `archive_content`.
    """

    __tablename__ = "archive_request"
    __table_args__ = (
        *_life_of_a_request(),
        CheckConstraint(one_of("kind", ArchiveKind), name="kind"),
        CheckConstraint(
            "status <> 'succeeded' OR (archive_key IS NOT NULL AND archive_bytes IS NOT NULL"
            " AND video_count IS NOT NULL AND missing_count IS NOT NULL AND excluded_count IS NOT NULL"
            " AND holds_families IS NOT NULL AND holds_previews IS NOT NULL)",
            name="succeeded_names_its_archive",
        ),
        Index(
            ONE_WAITING_ARCHIVE,
            "study_id",
            "requested_by_id",
            "kind",
            "name_contains",
            unique=True,
            sqlite_where=text("status = 'queued'"),
            postgresql_where=text("status = 'queued'"),
        ),
        Index("ix_archive_request_status", "status", "id"),
        Index("ix_archive_request_study", "study_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="RESTRICT"))
    requested_by_id: Mapped[int] = mapped_column(ForeignKey("user_account.id", ondelete="RESTRICT"))
    kind: Mapped[str] = mapped_column(String(10))
    name_contains: Mapped[str] = mapped_column(String(255), server_default="", default="")
    status: Mapped[str] = mapped_column(
        String(10), server_default=RequestStatus.QUEUED.value, default=RequestStatus.QUEUED.value
    )
    origin: Mapped[str] = mapped_column(Text, server_default="", default="")
    requested_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)
    submitted_at: Mapped[datetime | None] = mapped_column(init=False)
    submissions: Mapped[int] = mapped_column(server_default=text("0"), init=False)
    attempt: Mapped[int] = mapped_column(server_default=text("0"), init=False)
    failed_attempts: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"), init=False)
    run_id: Mapped[str | None] = mapped_column(String(64), init=False)
    claimed_at: Mapped[datetime | None] = mapped_column(init=False)
    lease_expires_at: Mapped[datetime | None] = mapped_column(init=False)
    fencing_token: Mapped[int | None] = mapped_column(init=False)
    cancelled_by_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id", ondelete="SET NULL"), init=False)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(init=False)
    archive_key: Mapped[str | None] = mapped_column(String(300), init=False)
    archive_bytes: Mapped[int | None] = mapped_column(BigKey, init=False)
    video_count: Mapped[int | None] = mapped_column(init=False)
    missing_count: Mapped[int | None] = mapped_column(init=False)
    excluded_count: Mapped[int | None] = mapped_column(init=False)
    holds_families: Mapped[bool | None] = mapped_column(init=False)
    holds_previews: Mapped[bool | None] = mapped_column(init=False)
    finished_at: Mapped[datetime | None] = mapped_column(init=False)
    error_code: Mapped[str | None] = mapped_column(String(40), init=False)
    error: Mapped[str | None] = mapped_column(Text, init=False)

    study: Mapped[Study] = relationship(init=False, repr=False, viewonly=True)
    requested_by: Mapped[User] = relationship(
        init=False, repr=False, viewonly=True, foreign_keys="ArchiveRequest.requested_by_id"
    )


class ArchiveContent(Base):
    """A video that is in the archive of a request, as it was then, so that it can be asked what became of it.

    No foreign key leads to the video or its response: that a row was deleted is what is to be noticed. `object_key`
    tells them from later rows, since SQLite gives the id of a deleted row out again.
    """

    __tablename__ = "archive_content"

    archive_request_id: Mapped[int] = mapped_column(
        ForeignKey("archive_request.id", ondelete="CASCADE"), primary_key=True
    )
    video_id: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=False)
    response_id: Mapped[int] = mapped_column(BigKey)
    object_key: Mapped[str] = mapped_column(String(1024))
