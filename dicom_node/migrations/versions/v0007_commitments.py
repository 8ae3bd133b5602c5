"""Storage commitment: what each destination was asked for, and what it reported.

Owns the step to the table of commitments and the deliveries' columns beside it.
Speaks alembic operations.
Never imports schema.py, which moves on while history stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them; what was delivered before waits for no commitment."""
    op.add_column("deliveries", sa.Column("commitment_due_at", sa.Double(), nullable=True))
    op.add_column(
        "deliveries", sa.Column("commitment_failures", sa.Integer(), nullable=False, server_default="0")
    )
    op.create_table(
        "commitments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("delivery_id", sa.Integer(), nullable=False),
        sa.Column("transaction_uid", sa.String(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("reported_at", sa.Double(), nullable=True),
        sa.Column("failure_reason", sa.Integer(), nullable=True),
        sa.Column("weighed_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("transaction_uid"),
    )
    op.create_index("ix_commitments_delivery_id", "commitments", ["delivery_id"], unique=False)
    op.create_index(
        "reports_to_weigh",
        "commitments",
        ["reported_at"],
        unique=False,
        sqlite_where=sa.text("reported_at IS NOT NULL AND weighed_at IS NULL"),
    )
