"""The first schema.

Owns the step from an empty file to version 0001.
Speaks alembic operations.
Never imports schema.py, which moves on while history stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build every table."""
    op.create_table(
        "associations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("calling_ae_title", sa.String(), nullable=False),
        sa.Column("called_ae_title", sa.String(), nullable=False),
        sa.Column("peer_address", sa.String(), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "discarded",
        sa.Column("sop_class_uid", sa.String(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("sop_class_uid"),
    )
    op.create_table(
        "series",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("patient_key", sa.String(), nullable=False),
        sa.Column("accession_key", sa.String(), nullable=False),
        sa.Column("state", sa.Enum("RECEIVING", "COMPLETE", name="seriesstate"), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=True),
        sa.Column("flag", sa.String(), nullable=True),
        sa.Column("first_instance_at", sa.Double(), nullable=False),
        sa.Column("last_instance_at", sa.Double(), nullable=False),
        sa.Column("pushed_again_at", sa.Double(), nullable=True),
        sa.Column("completed_at", sa.Double(), nullable=True),
        sa.CheckConstraint("state IN ('RECEIVING', 'COMPLETE')", name="state_is_known"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("series_instance_uid"),
    )
    op.create_index("ix_series_accession_key", "series", ["accession_key"], unique=False)
    op.create_index("ix_series_patient_key", "series", ["patient_key"], unique=False)
    op.create_index("ix_series_study_instance_uid", "series", ["study_instance_uid"], unique=False)
    op.create_table(
        "transitions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("subject_id", sa.Integer(), nullable=False),
        sa.Column("from_state", sa.String(), nullable=True),
        sa.Column("to_state", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("transitions_by_subject", "transitions", ["subject", "subject_id"], unique=False)
    op.create_table(
        "worker_status",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "instances",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("sop_class_uid", sa.String(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("file", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("geometry", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["series_id"],
            ["series.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("file"),
        sa.UniqueConstraint("sop_instance_uid"),
    )
    op.create_index("ix_instances_series_id", "instances", ["series_id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("model_sha256", sa.String(), nullable=False),
        sa.Column("template", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "QUEUED",
                "RUNNING",
                "READY",
                "SENT",
                "REJECTED",
                "FAILED",
                "CANCELLED",
                "IGNORED",
                "HELD",
                name="jobstate",
            ),
            nullable=False,
        ),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("reason_code", sa.String(), nullable=True),
        sa.Column("traceback", sa.String(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Double(), nullable=True),
        sa.Column("rt_struct_file", sa.String(), nullable=True),
        sa.Column("rt_struct_sha256", sa.String(), nullable=True),
        sa.Column("sop_instance_uid", sa.String(), nullable=True),
        sa.Column("predecessor_sop_instance_uid", sa.String(), nullable=True),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'RUNNING', 'READY', 'SENT', 'REJECTED', 'FAILED', "
            "'CANCELLED', 'IGNORED', 'HELD')",
            name="state_is_known",
        ),
        sa.ForeignKeyConstraint(
            ["series_id"],
            ["series.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("series_id", "revision", "model_sha256", "template", name="one_job_a_revision"),
    )
    op.create_index("ix_jobs_series_id", "jobs", ["series_id"], unique=False)
    op.create_index("jobs_by_state", "jobs", ["state"], unique=False)
    op.create_index("one_job_runs", "jobs", ["state"], unique=True, sqlite_where=sa.text("state = 'RUNNING'"))
    op.create_table(
        "arrivals",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.Integer(), nullable=False),
        sa.Column("association_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["association_id"],
            ["associations.id"],
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instances.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("arrivals_by_association", "arrivals", ["association_id", "instance_id"], unique=False)
    op.create_index("ix_arrivals_instance_id", "arrivals", ["instance_id"], unique=False)
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum("PENDING", "STORED", "COMMITTED", "REFUSED", "CANCELLED", name="deliverystate"),
            nullable=False,
        ),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("next_attempt_at", sa.Double(), nullable=False),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("stored_at", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "state IN ('PENDING', 'STORED', 'COMMITTED', 'REFUSED', 'CANCELLED')", name="state_is_known"
        ),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "destination", name="one_delivery_a_destination"),
    )
    op.create_index("ix_deliveries_job_id", "deliveries", ["job_id"], unique=False)
    op.create_index(
        "deliveries_that_are_due", "deliveries", ["destination", "state", "next_attempt_at"], unique=False
    )
