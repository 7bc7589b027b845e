"""A video's row names the bucket that has its object, where that is not the first one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("video", sa.Column("bucket", sa.String(length=255), server_default="", nullable=False))


def downgrade() -> None:
    op.drop_column("video", "bucket")
