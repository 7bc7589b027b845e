"""What is amiss with a build that may do no harm, in sentences for the log and the mail."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from domain import db

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("build_request", sa.Column("warnings", db.JsonValue, server_default=sa.text("'[]'"), nullable=False))


def downgrade() -> None:
    op.drop_column("build_request", "warnings")
