"""What alembic runs to migrate: on the connection, and in the transaction, that `migrate.py` gives it.

Owns the meeting of alembic and the schema.
Speaks alembic's context.
Never opens a database itself.
"""

from __future__ import annotations

from alembic import context

from dicom_node.schema import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
