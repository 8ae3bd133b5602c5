"""Each delivery names the edition of the RT Structure Set that goes to its destination.

Owns the step from version 0001: until then every destination got the job's one file.
Speaks alembic operations.
Never imports schema.py, which moves on while history stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COLUMNS = {
    "rt_struct_file": "rt_struct_file",
    "rt_struct_sha256": "rt_struct_sha256",
    "sop_instance_uid": "sop_instance_uid",
}


def upgrade() -> None:
    """Add the columns, and fill them with what the job has."""
    for column, of_job in COLUMNS.items():
        op.add_column("deliveries", sa.Column(column, sa.String(), nullable=True))
        op.execute(
            f"UPDATE deliveries SET {column} = "  # noqa: S608 (names from above)
            f"(SELECT {of_job} FROM jobs WHERE jobs.id = deliveries.job_id)"
        )
