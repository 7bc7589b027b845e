"""Requests for work: builds of a study, archives of its videos. Other programs insert them with plain SQL.

The server defaults make `INSERT INTO build_request (study_id, requested_by_id, kind)` enough; the CHECKs refuse a
row that claims to be further than that. Partial unique indexes hold the two rules that matter most: one running
build per study, one waiting request per study and kind.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, MappedAsDataclass, declared_attr, mapped_column, relationship

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


class ClaimableRequest(MappedAsDataclass, kw_only=True):
    """The columns of every kind of request that workers claim: who asks for what, the queue, the claim and the end.

    `origin` says how the request came in, where the account alone does not tell (an operator acting for a person).

    While it waits: `submitted_at` says since when a run that shall claim it is on its way, `submissions` how many runs
    there were. One that failed by the platform's fault waits again until `next_attempt_at`, with the cause in
    `error_code`; `failed_attempts` lists what went wrong each time.
    """

    locks_study: ClassVar[bool] = False
    """Whether a claim locks the study, so that of each study one runs at a time."""

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="RESTRICT"))
    requested_by_id: Mapped[int] = mapped_column(ForeignKey("user_account.id", ondelete="RESTRICT"))
    kind: Mapped[str] = mapped_column(String(10))
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
    finished_at: Mapped[datetime | None] = mapped_column(init=False)
    error_code: Mapped[str | None] = mapped_column(String(40), init=False)
    error: Mapped[str | None] = mapped_column(Text, init=False)

    @declared_attr
    def study(cls) -> Mapped[Study]:  # noqa: N805 - SQLAlchemy calls it with the class
        """The study that it is about."""
        return relationship(init=False, repr=False, viewonly=True)

    @declared_attr
    def requested_by(cls) -> Mapped[User]:  # noqa: N805
        """The user who asks."""
        return relationship(init=False, repr=False, viewonly=True, primaryjoin=lambda: User.id == cls.requested_by_id)


def _life_of_a_request() -> tuple[CheckConstraint, ...]:
    """Return the CHECKs that all kinds of request share."""
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


class BuildRequest(ClaimableRequest, Base):
    """A user asks for a preview or a deployment of a study.

    `player_repo`, `player_sha` and `sha_reason` tell what was built, `warnings` what is amiss with it, in sentences,
    `state_before` where the study stood.
    With `restores_id` it is a rollback: a deployment of what that earlier request built. It never waits.
    """

    __tablename__ = "build_request"
    locks_study = True
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

    restores_id: Mapped[int | None] = mapped_column(ForeignKey("build_request.id", ondelete="RESTRICT"), default=None)
    taken_over: Mapped[int] = mapped_column(server_default=text("0"), init=False)
    state_before: Mapped[str | None] = mapped_column(String(20), init=False)
    player_repo: Mapped[str | None] = mapped_column(String(300), init=False)
    player_sha: Mapped[str | None] = mapped_column(String(40), init=False)
    sha_reason: Mapped[str | None] = mapped_column(Text, init=False)
    warnings: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"), init=False)


class ArchiveRequest(ClaimableRequest, Base):
    """A user asks for a zip of a study's videos; `name_contains` narrows it to a part of the object names.

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

    name_contains: Mapped[str] = mapped_column(String(255), server_default="", default="")
    archive_key: Mapped[str | None] = mapped_column(String(300), init=False)
    archive_bytes: Mapped[int | None] = mapped_column(BigKey, init=False)
    video_count: Mapped[int | None] = mapped_column(init=False)
    missing_count: Mapped[int | None] = mapped_column(init=False)
    excluded_count: Mapped[int | None] = mapped_column(init=False)
    holds_families: Mapped[bool | None] = mapped_column(init=False)
    holds_previews: Mapped[bool | None] = mapped_column(init=False)


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
