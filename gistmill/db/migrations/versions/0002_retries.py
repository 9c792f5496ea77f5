"""What a retry takes up again, and the job that a retry with another spec came from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Bring the tables to this revision."""
    op.add_column("jobs", sa.Column("retry_codes", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("jobs", sa.Column("retry_of_key", KEY, nullable=True))
