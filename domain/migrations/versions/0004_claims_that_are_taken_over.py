"""How often the claim of a build was taken over from a worker that died: the worker holds it no more from then on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("build_request", sa.Column("taken_over", sa.Integer(), server_default=sa.text("0"), nullable=False))


def downgrade() -> None:
    op.drop_column("build_request", "taken_over")
