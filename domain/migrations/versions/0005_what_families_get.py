"""What families get at a study's address: a study that is neither active nor paused is taken down from now on.

Each study that was ever deployed counts as served, so pages of studies that were rejected, deactivated or archived before are
taken down after the upgrade.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("study", sa.Column("page_state", sa.String(length=10), server_default="none", nullable=False))
    op.execute(
        "UPDATE study SET page_state = 'served' WHERE deployed_at IS NOT NULL OR EXISTS (SELECT 1 FROM build_request"
        " WHERE build_request.study_id = study.id AND kind = 'deployment' AND status = 'succeeded')"
    )


def downgrade() -> None:
    op.drop_column("study", "page_state")
