"""What is old may be removed, and a row says so.

Owns the step to the removals, and to the times from which a series lacks its files.
Speaks alembic operations.
Never imports schema.py, which moves on while history stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the times; nothing has been removed yet."""
    op.add_column("series", sa.Column("slices_removed_at", sa.Double(), nullable=True))
    op.add_column("series", sa.Column("results_removed_at", sa.Double(), nullable=True))
    op.create_table(
        "removals",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_removals_series_id", "removals", ["series_id"], unique=False)
