"""The last constancy check has a row.

Owns the step to the table of the constancy check.
Speaks alembic operations.
Never imports schema.py, which moves on while history stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; no check has been recorded yet."""
    op.create_table(
        "constancy",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("made_at", sa.Double(), nullable=False),
        sa.Column("failed_points", sa.Integer(), nullable=False),
        sa.Column("drifts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
