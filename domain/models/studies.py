"""Studies and their logs."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint, false, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from domain.db import Base, BigKey, default_now, default_uuid, json_object_checks, one_of
from domain.models.accounts import Lab, User


class State(StrEnum):
    """Where a study is in its life. The last two are lock states: outside the workflow, while a build runs."""

    CREATED = "created"
    SUBMITTED = "submitted"
    REJECTED = "rejected"
    RETRACTED = "retracted"
    APPROVED = "approved"
    ACTIVE = "active"
    PAUSED = "paused"
    DEACTIVATED = "deactivated"
    ARCHIVED = "archived"
    PREVIEWING = "previewing"
    DEPLOYING = "deploying"


LOCK_STATES = (State.PREVIEWING, State.DEPLOYING)
WORKFLOW_STATES = tuple(state for state in State if state not in LOCK_STATES)


class PageState(StrEnum):
    """What families get at the study's address, as far as the database knows.

    `changing`: a worker is at it, or has died at it; `none`: the study was never deployed.
    """

    NONE = "none"
    SERVED = "served"
    WITHDRAWN = "withdrawn"
    CHANGING = "changing"


REVIEWED_FIELDS = (
    "name",
    "purpose",
    "duration",
    "contact",
    "image",
    "structure",
    "generator",
    "exit_url",
    "compensation",
    "study_metadata",
    "lab_id",
)


class Study(Base):
    """A study: its reviewed content, its state, and the numbers that keep its builds apart.

    `study_metadata` (column `metadata`) may hold `player_repo_url` and `last_known_player_sha`.
    While a build runs, `state` is a lock state and `state_before_build` tells where to return to.
    `fencing_token` counts the claims of this study's builds; only the holder of the newest may finish.
    `revision` counts the changes of reviewed content. The three `approved_…` are kept while an approval stands; a null
    `approved_repo_url` or `approved_sha` is the default player, or the head of its default branch.
    """

    __tablename__ = "study"
    __table_args__ = (
        CheckConstraint(one_of("state", State), name="state"),
        CheckConstraint(
            f"({one_of('state', LOCK_STATES)}) = (state_before_build IS NOT NULL)",
            name="locked_knows_the_way_back",
        ),
        CheckConstraint(one_of("state_before_build", WORKFLOW_STATES), name="way_back_is_in_the_workflow"),
        CheckConstraint("length(trim(name)) > 0", name="name_not_blank"),
        *(check for column in ("metadata", "structure") for check in json_object_checks(column)),
        Index("ix_study_state", "state"),
    )

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    uuid: Mapped[UUID] = mapped_column(server_default=default_uuid(), unique=True, init=False)
    name: Mapped[str] = mapped_column(String(255))
    lab_id: Mapped[int] = mapped_column(ForeignKey("lab.id"), index=True)
    creator_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id", ondelete="SET NULL"), default=None)
    state: Mapped[str] = mapped_column(String(20), server_default=State.CREATED.value, default=State.CREATED.value)
    state_before_build: Mapped[str | None] = mapped_column(String(20), init=False)
    state_changed_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)
    fencing_token: Mapped[int] = mapped_column(server_default=text("0"), init=False)
    deployed_at: Mapped[datetime | None] = mapped_column(init=False)
    revision: Mapped[int] = mapped_column(server_default=text("1"), init=False)
    approved_revision: Mapped[int | None] = mapped_column(init=False)
    approved_repo_url: Mapped[str | None] = mapped_column(Text, init=False)
    approved_sha: Mapped[str | None] = mapped_column(String(40), init=False)
    page_state: Mapped[str] = mapped_column(String(10), server_default=PageState.NONE.value, init=False)
    is_discoverable: Mapped[bool] = mapped_column(server_default=false(), default=False)
    study_metadata: Mapped[dict[str, Any]] = mapped_column(
        "metadata", server_default=text("'{}'"), default_factory=dict
    )
    purpose: Mapped[str] = mapped_column(Text, server_default="", default="")
    duration: Mapped[str] = mapped_column(Text, server_default="", default="")
    contact: Mapped[str] = mapped_column(Text, server_default="", default="")
    image: Mapped[str] = mapped_column(Text, server_default="", default="")
    structure: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"), default_factory=dict)
    generator: Mapped[str] = mapped_column(Text, server_default="", default="")
    exit_url: Mapped[str] = mapped_column(Text, server_default="", default="")
    compensation: Mapped[str] = mapped_column(Text, server_default="", default="")
    created_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)

    lab: Mapped[Lab] = relationship(init=False, repr=False, viewonly=True)


class StudyLog(Base):
    """What happened to a study, once per happening. At most one log tells of a build request.

    `revision` is the study's when the log was written, after what the log tells of; logs of before revisions have none.
    """

    __tablename__ = "study_log"
    __table_args__ = (
        UniqueConstraint("build_request_id"),
        Index("ix_study_log_study", "study_id", "id"),
        CheckConstraint(one_of("state_before", State), name="state_before"),
        CheckConstraint(one_of("state_after", State), name="state_after"),
    )

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="RESTRICT"))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id", ondelete="SET NULL"))
    action: Mapped[str] = mapped_column(String(40))
    state_before: Mapped[str] = mapped_column(String(20))
    state_after: Mapped[str] = mapped_column(String(20))
    build_request_id: Mapped[int | None] = mapped_column(
        ForeignKey("build_request.id", ondelete="RESTRICT"), default=None
    )
    extra: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"), default_factory=dict)
    revision: Mapped[int | None] = mapped_column(default=None)
    created_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)

    user: Mapped[User | None] = relationship(init=False, repr=False, viewonly=True)
