"""Routing: what a rule asked for of each job.

Owns the step to the columns of jobs that routing writes.
Speaks alembic operations.
Never imports schema.py, which moves on while history stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them; a job of before goes to every destination, and none before another."""
    op.add_column("jobs", sa.Column("rule", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("destinations", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Forget them: what still waits then goes to every destination, the oldest first."""
    for column in ("priority", "destinations", "rule"):
        op.drop_column("jobs", column)
