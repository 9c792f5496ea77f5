"""What Alembic runs: the connection and its transaction come from gistmill/db/migrate.py."""

from __future__ import annotations

from alembic import context

from gistmill.db.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
    compare_server_default=True,
    render_as_batch=True,
)
context.run_migrations()
