"""The first schema.

Owns the step from an empty file to version 0001.
Speaks alembic operations.
Never changes rows.
"""

from __future__ import annotations

from alembic import op

from dicom_node.schema import Base

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build every table."""
    Base.metadata.create_all(op.get_bind(), checkfirst=False)
