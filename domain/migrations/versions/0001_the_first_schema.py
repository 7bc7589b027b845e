"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from domain import db

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lab",
        sa.Column("id", db.BigKey, nullable=False),
        sa.Column("uuid", db.CanonicalUuid(), server_default=db.default_uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lab")),
        sa.UniqueConstraint("name", name=op.f("uq_lab_name")),
        sa.UniqueConstraint("uuid", name=op.f("uq_lab_uuid")),
    )
    op.create_table(
        "role",
        sa.Column("id", db.BigKey, nullable=False),
        sa.Column("scope", sa.String(length=10), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("is_builtin", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.CheckConstraint("scope IN ('study', 'lab', 'site')", name=op.f("ck_role_scope")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_role")),
        sa.UniqueConstraint("scope", "name", name=op.f("uq_role_scope_name")),
    )
    op.create_table(
        "user_account",
        sa.Column("id", db.BigKey, nullable=False),
        sa.Column("uuid", db.CanonicalUuid(), server_default=db.default_uuid(), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("is_active", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("is_superuser", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.CheckConstraint("email LIKE '%_@_%'", name=op.f("ck_user_account_email_has_an_at")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_account")),
        sa.UniqueConstraint("uuid", name=op.f("uq_user_account_uuid")),
    )
    op.create_index("uq_user_account_email", "user_account", [sa.text("lower(email)")], unique=True)
    op.create_index(
        "ix_user_account_superuser",
        "user_account",
        ["id"],
        sqlite_where=sa.text("is_superuser = 1"),
        postgresql_where=sa.text("is_superuser"),
    )
    op.create_table(
        "lab_grant",
        sa.Column("user_id", db.BigKey, nullable=False),
        sa.Column("lab_id", db.BigKey, nullable=False),
        sa.Column("role_id", db.BigKey, nullable=False),
        sa.ForeignKeyConstraint(["lab_id"], ["lab.id"], name=op.f("fk_lab_grant_lab_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name=op.f("fk_lab_grant_role_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_lab_grant_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "lab_id", "role_id", name=op.f("pk_lab_grant")),
    )
    op.create_index("ix_lab_grant_lab", "lab_grant", ["lab_id", "role_id"], unique=False)

    op.create_table(
        "role_permission",
        sa.Column("role_id", db.BigKey, nullable=False),
        sa.Column("code", sa.String(length=100), nullable=False),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name=op.f("fk_role_permission_role_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("role_id", "code", name=op.f("pk_role_permission")),
    )
    op.create_index("ix_role_permission_code", "role_permission", ["code", "role_id"], unique=False)

    op.create_table(
        "site_grant",
        sa.Column("user_id", db.BigKey, nullable=False),
        sa.Column("role_id", db.BigKey, nullable=False),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name=op.f("fk_site_grant_role_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_site_grant_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "role_id", name=op.f("pk_site_grant")),
    )
    op.create_table(
        "study",
        sa.Column("id", db.BigKey, nullable=False),
        sa.Column("uuid", db.CanonicalUuid(), server_default=db.default_uuid(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("lab_id", db.BigKey, nullable=False),
        sa.Column("creator_id", db.BigKey, nullable=True),
        sa.Column("state", sa.String(length=20), server_default="created", nullable=False),
        sa.Column("state_before_build", sa.String(length=20), nullable=True),
        sa.Column("state_changed_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.Column("fencing_token", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("deployed_at", db.UtcDateTime(), nullable=True),
        sa.Column("is_discoverable", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("metadata", db.JsonValue, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("purpose", sa.Text(), server_default="", nullable=False),
        sa.Column("duration", sa.Text(), server_default="", nullable=False),
        sa.Column("contact", sa.Text(), server_default="", nullable=False),
        sa.Column("image", sa.Text(), server_default="", nullable=False),
        sa.Column("structure", db.JsonValue, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("generator", sa.Text(), server_default="", nullable=False),
        sa.Column("exit_url", sa.Text(), server_default="", nullable=False),
        sa.Column("compensation", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.CheckConstraint(
            "(state IN ('previewing', 'deploying')) = (state_before_build IS NOT NULL)",
            name=op.f("ck_study_locked_knows_the_way_back"),
        ),
        sa.CheckConstraint(
            "state_before_build IN ('created', 'submitted', 'rejected', 'retracted', 'approved', 'active', 'paused', 'deactivated', 'archived')",
            name=op.f("ck_study_way_back_is_in_the_workflow"),
        ),
        *db.json_object_checks("metadata"),
        *db.json_object_checks("structure"),
        sa.CheckConstraint(
            "state IN ('created', 'submitted', 'rejected', 'retracted', 'approved', 'active', 'paused', 'deactivated', 'archived', 'previewing', 'deploying')",
            name=op.f("ck_study_state"),
        ),
        sa.CheckConstraint("length(trim(name)) > 0", name=op.f("ck_study_name_not_blank")),
        sa.ForeignKeyConstraint(
            ["creator_id"], ["user_account.id"], name=op.f("fk_study_creator_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["lab_id"], ["lab.id"], name=op.f("fk_study_lab_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study")),
        sa.UniqueConstraint("uuid", name=op.f("uq_study_uuid")),
    )
    op.create_index(op.f("ix_study_lab_id"), "study", ["lab_id"], unique=False)
    op.create_index("ix_study_state", "study", ["state"], unique=False)

    op.create_table(
        "archive_request",
        sa.Column("id", db.BigKey, nullable=False),
        sa.Column("study_id", db.BigKey, nullable=False),
        sa.Column("requested_by_id", db.BigKey, nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("name_contains", sa.String(length=255), server_default="", nullable=False),
        sa.Column("status", sa.String(length=10), server_default="queued", nullable=False),
        sa.Column("origin", sa.Text(), server_default="", nullable=False),
        sa.Column("requested_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.Column("next_attempt_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.Column("submitted_at", db.UtcDateTime(), nullable=True),
        sa.Column("submissions", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed_attempts", db.JsonValue, server_default=sa.text("'[]'"), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("claimed_at", db.UtcDateTime(), nullable=True),
        sa.Column("lease_expires_at", db.UtcDateTime(), nullable=True),
        sa.Column("fencing_token", sa.Integer(), nullable=True),
        sa.Column("cancelled_by_id", db.BigKey, nullable=True),
        sa.Column("cancel_requested_at", db.UtcDateTime(), nullable=True),
        sa.Column("archive_key", sa.String(length=300), nullable=True),
        sa.Column("archive_bytes", db.BigKey, nullable=True),
        sa.Column("video_count", sa.Integer(), nullable=True),
        sa.Column("missing_count", sa.Integer(), nullable=True),
        sa.Column("excluded_count", sa.Integer(), nullable=True),
        sa.Column("holds_families", sa.Boolean(), nullable=True),
        sa.Column("holds_previews", sa.Boolean(), nullable=True),
        sa.Column("rulings_up_to", db.BigKey, nullable=True),
        sa.Column("finished_at", db.UtcDateTime(), nullable=True),
        sa.Column("error_code", sa.String(length=40), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(status = 'failed') = (error IS NOT NULL)", name=op.f("ck_archive_request_failed_says_why")
        ),
        sa.CheckConstraint("kind IN ('consent', 'all')", name=op.f("ck_archive_request_kind")),
        sa.CheckConstraint(
            "status <> 'succeeded' OR (archive_key IS NOT NULL AND archive_bytes IS NOT NULL AND video_count IS NOT NULL AND missing_count IS NOT NULL AND excluded_count IS NOT NULL AND holds_families IS NOT NULL AND holds_previews IS NOT NULL AND rulings_up_to IS NOT NULL)",
            name=op.f("ck_archive_request_succeeded_names_its_archive"),
        ),
        sa.CheckConstraint(
            "status <> 'queued' OR (run_id IS NULL AND claimed_at IS NULL AND lease_expires_at IS NULL AND finished_at IS NULL)",
            name=op.f("ck_archive_request_queued_is_untouched"),
        ),
        sa.CheckConstraint(
            "status <> 'running' OR (run_id IS NOT NULL AND claimed_at IS NOT NULL AND lease_expires_at IS NOT NULL AND fencing_token IS NOT NULL AND finished_at IS NULL)",
            name=op.f("ck_archive_request_running_has_a_lease"),
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'running') OR (finished_at IS NOT NULL AND lease_expires_at IS NULL)",
            name=op.f("ck_archive_request_ended_has_a_time"),
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_archive_request_status"),
        ),
        sa.CheckConstraint("attempt >= 0", name=op.f("ck_archive_request_attempt_not_negative")),
        sa.CheckConstraint("submissions >= 0", name=op.f("ck_archive_request_submissions_not_negative")),
        *db.json_array_checks("failed_attempts"),
        sa.ForeignKeyConstraint(
            ["cancelled_by_id"],
            ["user_account.id"],
            name=op.f("fk_archive_request_cancelled_by_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["requested_by_id"],
            ["user_account.id"],
            name=op.f("fk_archive_request_requested_by_id"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name=op.f("fk_archive_request_study_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_archive_request")),
    )
    op.create_index("ix_archive_request_status", "archive_request", ["status", "id"], unique=False)
    op.create_index("ix_archive_request_study", "archive_request", ["study_id", "id"], unique=False)
    op.create_index(
        "uq_archive_request_one_waiting",
        "archive_request",
        ["study_id", "requested_by_id", "kind", "name_contains"],
        unique=True,
        sqlite_where=sa.text("status = 'queued'"),
        postgresql_where=sa.text("status = 'queued'"),
    )

    op.create_table(
        "build_request",
        sa.Column("id", db.BigKey, nullable=False),
        sa.Column("study_id", db.BigKey, nullable=False),
        sa.Column("requested_by_id", db.BigKey, nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("status", sa.String(length=10), server_default="queued", nullable=False),
        sa.Column("origin", sa.Text(), server_default="", nullable=False),
        sa.Column("restores_id", db.BigKey, nullable=True),
        sa.Column("requested_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.Column("next_attempt_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.Column("submitted_at", db.UtcDateTime(), nullable=True),
        sa.Column("submissions", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed_attempts", db.JsonValue, server_default=sa.text("'[]'"), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("claimed_at", db.UtcDateTime(), nullable=True),
        sa.Column("lease_expires_at", db.UtcDateTime(), nullable=True),
        sa.Column("fencing_token", sa.Integer(), nullable=True),
        sa.Column("state_before", sa.String(length=20), nullable=True),
        sa.Column("cancelled_by_id", db.BigKey, nullable=True),
        sa.Column("cancel_requested_at", db.UtcDateTime(), nullable=True),
        sa.Column("player_repo", sa.String(length=300), nullable=True),
        sa.Column("player_sha", sa.String(length=40), nullable=True),
        sa.Column("sha_reason", sa.Text(), nullable=True),
        sa.Column("finished_at", db.UtcDateTime(), nullable=True),
        sa.Column("error_code", sa.String(length=40), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("(status = 'failed') = (error IS NOT NULL)", name=op.f("ck_build_request_failed_says_why")),
        sa.CheckConstraint("kind IN ('preview', 'deployment')", name=op.f("ck_build_request_kind")),
        sa.CheckConstraint(
            "state_before IN ('created', 'submitted', 'rejected', 'retracted', 'approved', 'active', 'paused', 'deactivated', 'archived')",
            name=op.f("ck_build_request_state_before"),
        ),
        sa.CheckConstraint(
            "status <> 'queued' OR (run_id IS NULL AND claimed_at IS NULL AND lease_expires_at IS NULL AND finished_at IS NULL)",
            name=op.f("ck_build_request_queued_is_untouched"),
        ),
        sa.CheckConstraint(
            "status <> 'running' OR (run_id IS NOT NULL AND claimed_at IS NOT NULL AND lease_expires_at IS NOT NULL AND fencing_token IS NOT NULL AND finished_at IS NULL)",
            name=op.f("ck_build_request_running_has_a_lease"),
        ),
        sa.CheckConstraint(
            "status <> 'running' OR state_before IS NOT NULL", name=op.f("ck_build_request_running_knows_the_way_back")
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'running') OR (finished_at IS NOT NULL AND lease_expires_at IS NULL)",
            name=op.f("ck_build_request_ended_has_a_time"),
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name=op.f("ck_build_request_status")
        ),
        sa.CheckConstraint("attempt >= 0", name=op.f("ck_build_request_attempt_not_negative")),
        sa.CheckConstraint("submissions >= 0", name=op.f("ck_build_request_submissions_not_negative")),
        *db.json_array_checks("failed_attempts"),
        sa.CheckConstraint(
            "restores_id IS NULL OR (kind = 'deployment' AND status <> 'queued')",
            name=op.f("ck_build_request_rollback_never_waits"),
        ),
        sa.ForeignKeyConstraint(
            ["restores_id"], ["build_request.id"], name=op.f("fk_build_request_restores_id"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["cancelled_by_id"], ["user_account.id"], name=op.f("fk_build_request_cancelled_by_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["requested_by_id"], ["user_account.id"], name=op.f("fk_build_request_requested_by_id"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name=op.f("fk_build_request_study_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_build_request")),
    )
    op.create_index("ix_build_request_status", "build_request", ["status", "id"], unique=False)
    op.create_index("ix_build_request_study", "build_request", ["study_id", "id"], unique=False)
    op.create_index(
        "uq_build_request_one_running_per_study",
        "build_request",
        ["study_id"],
        unique=True,
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_index(
        "uq_build_request_one_waiting_per_study_and_kind",
        "build_request",
        ["study_id", "kind"],
        unique=True,
        sqlite_where=sa.text("status = 'queued'"),
        postgresql_where=sa.text("status = 'queued'"),
    )

    op.create_table(
        "outbox_mail",
        sa.Column("id", db.BigKey, nullable=False),
        sa.Column("uuid", db.CanonicalUuid(), server_default=db.default_uuid(), nullable=False),
        sa.Column("event", sa.String(length=100), nullable=False),
        sa.Column("recipient_id", db.BigKey, nullable=False),
        sa.Column("template", sa.String(length=60), nullable=False),
        sa.Column("study_id", db.BigKey, nullable=True),
        sa.Column("context", db.JsonValue, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("status", sa.String(length=10), server_default="waiting", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.Column("sent_at", db.UtcDateTime(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.CheckConstraint("(status = 'sent') = (sent_at IS NOT NULL)", name=op.f("ck_outbox_mail_sent_has_a_time")),
        sa.CheckConstraint("status IN ('waiting', 'sent', 'failed', 'withdrawn')", name=op.f("ck_outbox_mail_status")),
        sa.ForeignKeyConstraint(
            ["recipient_id"], ["user_account.id"], name=op.f("fk_outbox_mail_recipient_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_outbox_mail_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_mail")),
        sa.UniqueConstraint("event", "recipient_id", name=op.f("uq_outbox_mail_event_recipient_id")),
        sa.UniqueConstraint("uuid", name=op.f("uq_outbox_mail_uuid")),
    )
    op.create_index("ix_outbox_mail_due", "outbox_mail", ["status", "next_attempt_at"], unique=False)

    op.create_table(
        "response",
        sa.Column("id", db.BigKey, nullable=False),
        sa.Column("uuid", db.CanonicalUuid(), server_default=db.default_uuid(), nullable=False),
        sa.Column("study_id", db.BigKey, nullable=False),
        sa.Column("is_preview", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_response_study_id"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_response")),
        sa.UniqueConstraint("uuid", name=op.f("uq_response_uuid")),
    )
    op.create_index(op.f("ix_response_study_id"), "response", ["study_id"], unique=False)

    op.create_table(
        "study_grant",
        sa.Column("user_id", db.BigKey, nullable=False),
        sa.Column("study_id", db.BigKey, nullable=False),
        sa.Column("role_id", db.BigKey, nullable=False),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name=op.f("fk_study_grant_role_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_study_grant_study_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_study_grant_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "study_id", "role_id", name=op.f("pk_study_grant")),
    )
    op.create_index("ix_study_grant_study", "study_grant", ["study_id", "role_id"], unique=False)

    op.create_table(
        "consent_ruling",
        sa.Column("id", db.BigKey, nullable=False),
        sa.Column("response_id", db.BigKey, nullable=False),
        sa.Column("ruling", sa.String(length=10), nullable=False),
        sa.Column("arbiter_id", db.BigKey, nullable=True),
        sa.Column("comment", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.CheckConstraint("ruling IN ('accepted', 'rejected', 'pending')", name=op.f("ck_consent_ruling_ruling")),
        sa.ForeignKeyConstraint(
            ["arbiter_id"], ["user_account.id"], name=op.f("fk_consent_ruling_arbiter_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["response_id"], ["response.id"], name=op.f("fk_consent_ruling_response_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consent_ruling")),
    )
    op.create_index("ix_consent_ruling_response", "consent_ruling", ["response_id", "id"], unique=False)

    op.create_table(
        "study_log",
        sa.Column("id", db.BigKey, nullable=False),
        sa.Column("study_id", db.BigKey, nullable=False),
        sa.Column("user_id", db.BigKey, nullable=True),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("state_before", sa.String(length=20), nullable=False),
        sa.Column("state_after", sa.String(length=20), nullable=False),
        sa.Column("build_request_id", db.BigKey, nullable=True),
        sa.Column("extra", db.JsonValue, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("created_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.CheckConstraint(
            "state_after IN ('created', 'submitted', 'rejected', 'retracted', 'approved', 'active', 'paused', 'deactivated', 'archived', 'previewing', 'deploying')",
            name=op.f("ck_study_log_state_after"),
        ),
        sa.CheckConstraint(
            "state_before IN ('created', 'submitted', 'rejected', 'retracted', 'approved', 'active', 'paused', 'deactivated', 'archived', 'previewing', 'deploying')",
            name=op.f("ck_study_log_state_before"),
        ),
        sa.ForeignKeyConstraint(
            ["build_request_id"], ["build_request.id"], name=op.f("fk_study_log_build_request_id"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_study_log_study_id"), ondelete="RESTRICT"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_study_log_user_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study_log")),
        sa.UniqueConstraint("build_request_id", name=op.f("uq_study_log_build_request_id")),
    )
    op.create_index("ix_study_log_study", "study_log", ["study_id", "id"], unique=False)

    op.create_table(
        "video",
        sa.Column("id", db.BigKey, nullable=False),
        sa.Column("study_id", db.BigKey, nullable=False),
        sa.Column("response_id", db.BigKey, nullable=False),
        sa.Column("object_key", sa.String(length=1024), nullable=False),
        sa.Column("frame_id", sa.String(length=255), nullable=False),
        sa.Column("recorded_at", db.UtcDateTime(), nullable=False),
        sa.Column("size_bytes", db.BigKey, nullable=True),
        sa.Column("etag", sa.String(length=128), nullable=True),
        sa.Column("is_consent_footage", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("gone_at", db.UtcDateTime(), nullable=True),
        sa.Column("created_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.CheckConstraint("length(object_key) > 0", name=op.f("ck_video_key_not_blank")),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_video_size_not_negative")),
        sa.ForeignKeyConstraint(
            ["response_id"], ["response.id"], name=op.f("fk_video_response_id"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_video_study_id"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_video")),
        sa.UniqueConstraint("object_key", name=op.f("uq_video_object_key")),
    )
    op.create_index(op.f("ix_video_response_id"), "video", ["response_id"], unique=False)
    op.create_index("ix_video_study", "video", ["study_id", "is_consent_footage"], unique=False)

    op.create_table(
        "grant_record",
        sa.Column("id", db.BigKey, nullable=False),
        sa.Column("acting_id", db.BigKey, nullable=True),
        sa.Column("user_id", db.BigKey, nullable=True),
        sa.Column("role_name", sa.String(length=100), nullable=False),
        sa.Column("scope", sa.String(length=10), nullable=False),
        sa.Column("action", sa.String(length=10), nullable=False),
        sa.Column("study_id", db.BigKey, nullable=True),
        sa.Column("lab_id", db.BigKey, nullable=True),
        sa.Column("created_at", db.UtcDateTime(), server_default=db.default_now(), nullable=False),
        sa.CheckConstraint("action IN ('grant', 'revoke')", name=op.f("ck_grant_record_action")),
        sa.CheckConstraint("scope IN ('study', 'lab', 'site')", name=op.f("ck_grant_record_scope")),
        sa.ForeignKeyConstraint(
            ["acting_id"], ["user_account.id"], name=op.f("fk_grant_record_acting_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["lab_id"], ["lab.id"], name=op.f("fk_grant_record_lab_id"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_grant_record_study_id"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_grant_record_user_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grant_record")),
    )
    op.create_index("ix_grant_record_user", "grant_record", ["user_id", "id"], unique=False)


def downgrade() -> None:
    op.drop_table("grant_record")
    op.drop_table("video")
    op.drop_table("study_log")
    op.drop_table("consent_ruling")
    op.drop_table("study_grant")
    op.drop_table("response")
    op.drop_table("outbox_mail")
    op.drop_table("build_request")
    op.drop_table("archive_request")
    op.drop_table("study")
    op.drop_table("site_grant")
    op.drop_table("role_permission")
    op.drop_table("lab_grant")
    op.drop_table("user_account")
    op.drop_table("role")
    op.drop_table("lab")
