"""Revisions of reviewed content, and which of them a study's approval is of.

Studies begin at revision 1. Those that stand approved have no approval on record: a deployment builds the player that
they name, which cannot have changed since its review.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("study", sa.Column("revision", sa.Integer(), server_default=sa.text("1"), nullable=False))
    op.add_column("study", sa.Column("approved_revision", sa.Integer(), nullable=True))
    op.add_column("study", sa.Column("approved_repo_url", sa.Text(), nullable=True))
    op.add_column("study", sa.Column("approved_sha", sa.String(length=40), nullable=True))
    op.add_column("study_log", sa.Column("revision", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("study_log", "revision")
    for name in ("approved_sha", "approved_repo_url", "approved_revision", "revision"):
        op.drop_column("study", name)
