"""People, labs, and the grants between them: a group is a pair of role and object.

No table ties a permission to a user: `user -> grant -> role -> permission` is the only way.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, UniqueConstraint, false, text, true
from sqlalchemy.orm import Mapped, mapped_column

from domain.db import Base, BigKey, default_now, default_uuid, one_of


class RoleScope(StrEnum):
    """What a role is held on: one study, one lab, or the whole site."""

    STUDY = "study"
    LAB = "lab"
    SITE = "site"


class User(Base):
    """A person with an account. Inactive users hold nothing, not even as superusers."""

    __tablename__ = "user_account"
    __table_args__ = (
        CheckConstraint("email LIKE '%_@_%'", name="email_has_an_at"),
        Index("uq_user_account_email", text("lower(email)"), unique=True),
        Index(  # few among many, and asked for with every question of who holds a permission
            "ix_user_account_superuser",
            "id",
            sqlite_where=text("is_superuser = 1"),
            postgresql_where=text("is_superuser"),
        ),
    )

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    uuid: Mapped[UUID] = mapped_column(server_default=default_uuid(), unique=True, init=False)
    email: Mapped[str] = mapped_column(String(254))
    name: Mapped[str] = mapped_column(String(200))
    is_active: Mapped[bool] = mapped_column(server_default=true(), default=True)
    is_superuser: Mapped[bool] = mapped_column(server_default=false(), default=False)
    created_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)


class Lab(Base):
    """A group of researchers whose studies share permissions."""

    __tablename__ = "lab"

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    uuid: Mapped[UUID] = mapped_column(server_default=default_uuid(), unique=True, init=False)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)


class Role(Base):
    """A named set of permissions, held on studies, labs or the site. Built-in roles are kept by `roles.py`."""

    __tablename__ = "role"
    __table_args__ = (
        UniqueConstraint("scope", "name"),
        CheckConstraint(one_of("scope", RoleScope), name="scope"),
    )

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    scope: Mapped[str] = mapped_column(String(10))
    name: Mapped[str] = mapped_column(String(100))
    is_builtin: Mapped[bool] = mapped_column(server_default=false(), default=False)


class RolePermission(Base):
    """A role holds a permission, by its code `app.codename`."""

    __tablename__ = "role_permission"
    __table_args__ = (Index("ix_role_permission_code", "code", "role_id"),)

    role_id: Mapped[int] = mapped_column(ForeignKey("role.id", ondelete="CASCADE"), primary_key=True)
    code: Mapped[str] = mapped_column(String(100), primary_key=True)


class StudyGrant(Base):
    """A user holds a role on one study."""

    __tablename__ = "study_grant"
    __table_args__ = (Index("ix_study_grant_study", "study_id", "role_id"),)

    user_id: Mapped[int] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"), primary_key=True)
    role_id: Mapped[int] = mapped_column(ForeignKey("role.id", ondelete="CASCADE"), primary_key=True)


class LabGrant(Base):
    """A user holds a role on one lab; its study permissions hold for every study of the lab."""

    __tablename__ = "lab_grant"
    __table_args__ = (Index("ix_lab_grant_lab", "lab_id", "role_id"),)

    user_id: Mapped[int] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True)
    lab_id: Mapped[int] = mapped_column(ForeignKey("lab.id", ondelete="CASCADE"), primary_key=True)
    role_id: Mapped[int] = mapped_column(ForeignKey("role.id", ondelete="CASCADE"), primary_key=True)


class SiteGrant(Base):
    """A user holds a role platform-wide."""

    __tablename__ = "site_grant"

    user_id: Mapped[int] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True)
    role_id: Mapped[int] = mapped_column(ForeignKey("role.id", ondelete="CASCADE"), primary_key=True)


class GrantRecord(Base):
    """Somebody gave a role to somebody, or took it away. Kept even when the object is gone."""

    __tablename__ = "grant_record"
    __table_args__ = (
        CheckConstraint(one_of("action", ("grant", "revoke")), name="action"),
        CheckConstraint(one_of("scope", RoleScope), name="scope"),
        Index("ix_grant_record_user", "user_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigKey, primary_key=True, init=False)
    acting_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id", ondelete="SET NULL"))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id", ondelete="SET NULL"))
    role_name: Mapped[str] = mapped_column(String(100))
    scope: Mapped[str] = mapped_column(String(10))
    action: Mapped[str] = mapped_column(String(10))
    study_id: Mapped[int | None] = mapped_column(ForeignKey("study.id", ondelete="SET NULL"), default=None)
    lab_id: Mapped[int | None] = mapped_column(ForeignKey("lab.id", ondelete="SET NULL"), default=None)
    created_at: Mapped[datetime] = mapped_column(server_default=default_now(), init=False)
