"""What training adds: its curve, adapters and lineage of models, aliases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MEASURES = ("loss", "learning_rate", "gradient_norm", "samples_per_s")
SCORES = ("rouge1", "rouge2", "rougel", "rougelsum")


def upgrade() -> None:
    """Bring the tables to this revision."""
    op.add_column("jobs", sa.Column("training", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("models", sa.Column("kind", sa.String(length=10), server_default="model", nullable=False))
    op.add_column("models", sa.Column("base_digest", sa.String(length=64), nullable=True))
    op.add_column("models", sa.Column("lineage", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("models", sa.Column("removed_at", sa.Float(), nullable=True))
    _create_aliases()
    _create_metrics()


def _create_aliases() -> None:
    op.create_table(
        "model_aliases",
        sa.Column("tenant_key", KEY, nullable=False),
        sa.Column("alias", sa.String(length=100), nullable=False),
        sa.Column("model_key", KEY, nullable=False),
        sa.ForeignKeyConstraint(["tenant_key"], ["tenants.key"], name=op.f("fk_model_aliases_tenant_key")),
        sa.ForeignKeyConstraint(["model_key"], ["models.key"], name=op.f("fk_model_aliases_model_key")),
        sa.PrimaryKeyConstraint("tenant_key", "alias", name=op.f("pk_model_aliases")),
    )


def _create_metrics() -> None:
    op.create_table(
        "training_metrics",
        sa.Column("job_key", KEY, nullable=False),
        sa.Column("kind", sa.String(length=5), nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Float(), nullable=False),
        *(sa.Column(name, sa.Float(), nullable=True) for name in MEASURES),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        *(sa.Column(name, sa.Float(), nullable=True) for name in SCORES),
        sa.Column("chunk_key", KEY, nullable=False),
        sa.Column("lease_epoch", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name=op.f("fk_training_metrics_job_key")),
        sa.PrimaryKeyConstraint("job_key", "kind", "step", name=op.f("pk_training_metrics")),
    )
