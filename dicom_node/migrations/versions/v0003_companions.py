"""Pictures and notices have a table of their own.

Owns the step to the table of companions.
Speaks alembic operations.
Never imports schema.py, which moves on while history stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; what was delivered before has no companions."""
    states = ("PENDING", "STORED", "COMMITTED", "REFUSED", "CANCELLED")
    op.create_table(
        "companions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("kind", sa.Enum("PICTURES", "NOTICE", name="companionkind"), nullable=False),
        sa.Column("state", sa.Enum(*states, name="deliverystate"), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("next_attempt_at", sa.Double(), nullable=False),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("stored_at", sa.Double(), nullable=True),
        sa.Column("files", sa.JSON(), nullable=True),
        sa.CheckConstraint("kind IN ('PICTURES', 'NOTICE')", name="kind_is_known"),
        sa.CheckConstraint(
            "state IN ('PENDING', 'STORED', 'COMMITTED', 'REFUSED', 'CANCELLED')", name="state_is_known"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "destination", "kind", name="one_companion_a_kind"),
    )
    op.create_index("ix_companions_job_id", "companions", ["job_id"], unique=False)
    op.create_index(
        "companions_that_are_due", "companions", ["destination", "state", "next_attempt_at"], unique=False
    )
