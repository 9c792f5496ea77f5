"""How fast workers have generated: sums that forget, by model, parameters, engine and device."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Bring the tables to this revision."""
    op.create_table(
        "measured_speeds",
        sa.Column("model_digest", sa.String(length=64), nullable=False),
        sa.Column("precision", sa.String(length=10), nullable=False),
        sa.Column("max_new_tokens", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("num_beams", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("do_sample", sa.Boolean(), nullable=False),
        sa.Column("engine", sa.String(length=30), nullable=False),
        sa.Column("device_name", sa.String(length=200), nullable=False),
        sa.Column("dtype", sa.String(length=20), nullable=False),
        sa.Column("version_digest", sa.String(length=64), nullable=False),
        sa.Column("dialogues", sa.Float(), nullable=False),
        sa.Column("tokens_in", sa.Float(), nullable=False),
        sa.Column("tokens_out", sa.Float(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("load_s", sa.Float(), nullable=True),
        sa.Column("warmup_s", sa.Float(), nullable=True),
        sa.Column("chunks", sa.BigInteger(), nullable=False),
        sa.Column("measured_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint(
            "model_digest", "precision", "max_new_tokens", "num_beams", "do_sample", "engine", "device_name", "dtype",
            name=op.f("pk_measured_speeds"),
        ),
    )  # fmt: skip
