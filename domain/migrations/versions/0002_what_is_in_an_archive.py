"""What is in an archive: the videos themselves, instead of the highest ruling on consent at that time.

Requests that ended before this have no contents, and their archives are given out no more: they are asked for again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

from domain import db

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

CHECK = "ck_archive_request_succeeded_names_its_archive"
SUCCEEDED = "status <> 'succeeded' OR (archive_key IS NOT NULL AND archive_bytes IS NOT NULL AND video_count IS NOT NULL AND missing_count IS NOT NULL AND excluded_count IS NOT NULL AND holds_families IS NOT NULL AND holds_previews IS NOT NULL"


def altered() -> AbstractContextManager[BatchOperations]:
    """The table of requests, to be altered. SQLite makes it anew from what it tells of itself, and would put empty
    defaults into brackets."""
    as_it_was = (
        sa.Column("name_contains", sa.String(length=255), server_default="", nullable=False),
        sa.Column("origin", sa.Text(), server_default="", nullable=False),
    )
    return op.batch_alter_table("archive_request", reflect_args=as_it_was, reflect_kwargs={"resolve_fks": False})


def upgrade() -> None:
    with altered() as table:
        table.drop_constraint(op.f(CHECK), type_="check")
        table.drop_column("rulings_up_to")
        table.create_check_constraint(op.f(CHECK), f"{SUCCEEDED})")
    op.create_table(
        "archive_content",
        sa.Column("archive_request_id", db.BigKey, nullable=False),
        sa.Column("video_id", db.BigKey, autoincrement=False, nullable=False),
        sa.Column("response_id", db.BigKey, nullable=False),
        sa.Column("object_key", sa.String(length=1024), nullable=False),
        sa.ForeignKeyConstraint(
            ["archive_request_id"],
            ["archive_request.id"],
            name=op.f("fk_archive_content_archive_request_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("archive_request_id", "video_id", name=op.f("pk_archive_content")),
    )


def downgrade() -> None:
    op.drop_table("archive_content")
    op.add_column("archive_request", sa.Column("rulings_up_to", db.BigKey, nullable=True))
    # As near as it can be known: the rulings that there were when the work began.
    op.execute(
        "UPDATE archive_request SET rulings_up_to = COALESCE((SELECT max(consent_ruling.id) FROM consent_ruling"
        " WHERE consent_ruling.created_at <= archive_request.claimed_at), 0) WHERE status = 'succeeded'"
    )
    with altered() as table:
        table.drop_constraint(op.f(CHECK), type_="check")
        table.create_check_constraint(op.f(CHECK), f"{SUCCEEDED} AND rulings_up_to IS NOT NULL)")
