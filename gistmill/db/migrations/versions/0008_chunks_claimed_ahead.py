"""Chunks may be held without running: the index of those that have a lease serves both."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Bring the tables to this revision. Workers of the version before do without the old index, more slowly."""
    op.create_index(
        "ix_chunks_held",
        "chunks",
        ["lease_until", "job_key", "owner"],
        sqlite_where=sa.text("lease_until IS NOT NULL"),
        postgresql_where=sa.text("lease_until IS NOT NULL"),
    )
    op.drop_index("ix_chunks_running", table_name="chunks")
