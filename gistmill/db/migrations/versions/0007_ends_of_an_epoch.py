"""How many items of a chunk ended under its epoch, so that its end need not look them up."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Bring the tables to this revision.

    Nothing counts for what was claimed before: the number is read only under an epoch whose claim has set it to zero.
    """
    op.add_column("chunks", sa.Column("ended", sa.BigInteger(), nullable=False, server_default="0"))
