"""The newest ruling on a consent is found by its time: imported rulings may come in another order."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _index("response_id", "created_at", "id")


def downgrade() -> None:
    _index("response_id", "id")


def _index(*columns: str) -> None:
    op.drop_index("ix_consent_ruling_response", table_name="consent_ruling")
    op.create_index("ix_consent_ruling_response", "consent_ruling", list(columns), unique=False)
