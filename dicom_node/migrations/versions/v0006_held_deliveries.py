"""A delivery may be held until a person releases it.

Owns the step to the state HELD of deliveries; SQLite changes a CHECK only with its table.
Speaks alembic operations.
Never imports schema.py, which moves on while history stays.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STATES = ("PENDING", "STORED", "COMMITTED", "HELD", "REFUSED", "CANCELLED")


def upgrade() -> None:
    """Make the table anew around its rows; the triggers are made anew after each upgrade anyhow."""
    op.rename_table("deliveries", "deliveries_until_0006")
    columns: tuple[sa.Column[Any], ...] = (
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("state", sa.Enum(*STATES, name="deliverystate"), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("next_attempt_at", sa.Double(), nullable=False),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("stored_at", sa.Double(), nullable=True),
        sa.Column("rt_struct_file", sa.String(), nullable=True),
        sa.Column("rt_struct_sha256", sa.String(), nullable=True),
        sa.Column("sop_instance_uid", sa.String(), nullable=True),
    )
    known = ", ".join(f"'{state}'" for state in STATES)
    op.create_table(
        "deliveries",
        *columns,
        sa.CheckConstraint(f"state IN ({known})", name="state_is_known"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "destination", name="one_delivery_a_destination"),
    )
    names = ", ".join(column.name for column in columns)
    op.execute(
        f"INSERT INTO deliveries ({names}) SELECT {names} FROM deliveries_until_0006"  # noqa: S608 (from above)
    )
    op.drop_table("deliveries_until_0006")
    op.create_index("ix_deliveries_job_id", "deliveries", ["job_id"], unique=False)
    op.create_index(
        "deliveries_that_are_due", "deliveries", ["destination", "state", "next_attempt_at"], unique=False
    )
