"""What evaluation adds: prompts of users, what is compared, its cases, scores and comparisons, jobs that wait, experiments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Bring the tables to this revision."""
    op.add_column("jobs", sa.Column("model_job_key", KEY, nullable=True))
    op.create_index(op.f("ix_job_dependencies_needs_key"), "job_dependencies", ["needs_key"])
    _create_prompts()
    _create_evaluations()
    _create_cases()
    _create_aggregates()
    _create_experiment_steps()
    if op.get_bind().dialect.name == "postgresql":
        # As in revision 0003: an evaluation begun after the last look of ANALYZE would be taken for one row.
        for table in ("evaluation_cases", "scores"):
            op.execute(f"ALTER TABLE {table} ALTER COLUMN job_key SET STATISTICS 0")


def _create_prompts() -> None:
    op.create_table(
        "prompts",
        sa.Column("key", KEY, autoincrement=True, nullable=False),
        sa.Column("tenant_key", KEY, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("head", sa.Text(), nullable=False),
        sa.Column("tail", sa.Text(), nullable=False),
        sa.Column("examples", sa.JSON(), nullable=False),
        sa.Column("dataset_key", KEY, nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_key"], ["tenants.key"], name=op.f("fk_prompts_tenant_key")),
        sa.ForeignKeyConstraint(["dataset_key"], ["datasets.key"], name=op.f("fk_prompts_dataset_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_prompts")),
        sa.UniqueConstraint("tenant_key", "name", "version", name=op.f("uq_prompts_tenant_key_name_version")),
    )


def _create_evaluations() -> None:
    op.create_table(
        "evaluations",
        sa.Column("job_key", KEY, nullable=False),
        sa.Column("cases", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("ended", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("counts", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("signature", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("predictions_key", KEY, nullable=True),
        sa.Column("aggregated_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["predictions_key"], ["datasets.key"], name=op.f("fk_evaluations_predictions_key")),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name=op.f("fk_evaluations_job_key")),
        sa.PrimaryKeyConstraint("job_key", name=op.f("pk_evaluations")),
    )
    op.create_table(
        "evaluation_systems",
        sa.Column("job_key", KEY, nullable=False),
        sa.Column("number", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=300), nullable=False),
        sa.Column("summaries_key", KEY, nullable=True),
        sa.Column("column_name", sa.String(length=300), nullable=True),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name=op.f("fk_evaluation_systems_job_key")),
        sa.ForeignKeyConstraint(["summaries_key"], ["jobs.key"], name=op.f("fk_evaluation_systems_summaries_key")),
        sa.PrimaryKeyConstraint("job_key", "number", name=op.f("pk_evaluation_systems")),
        sa.UniqueConstraint("job_key", "name", name=op.f("uq_evaluation_systems_job_key_name")),
    )


def _create_cases() -> None:
    op.create_table(
        "evaluation_cases",
        sa.Column("job_key", KEY, autoincrement=False, nullable=False),
        sa.Column("dialogue_key", KEY, autoincrement=False, nullable=False),
        sa.Column("row_number", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(length=20), nullable=False),
        sa.Column("missing", sa.JSON(), nullable=False),
        sa.Column("empty", sa.JSON(), nullable=False),
        sa.Column("differing", sa.Boolean(), nullable=False),
        sa.Column("chunk_key", KEY, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("job_key", "dialogue_key", name=op.f("pk_evaluation_cases")),
    )
    op.create_index("ix_evaluation_cases_row", "evaluation_cases", ["job_key", "row_number"])
    op.create_table(
        "scores",
        sa.Column("job_key", KEY, autoincrement=False, nullable=False),
        sa.Column("dialogue_key", KEY, autoincrement=False, nullable=False),
        sa.Column("row_number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("system", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("measure", sa.String(length=100), nullable=False),
        sa.Column("precision", sa.Float(), nullable=True),
        sa.Column("recall", sa.Float(), nullable=True),
        sa.Column("fmeasure", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("job_key", "dialogue_key", "row_number", "system", "measure", name=op.f("pk_scores")),
    )


def _create_aggregates() -> None:
    op.create_table(
        "score_means",
        sa.Column("job_key", KEY, nullable=False),
        sa.Column("system", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("measure", sa.String(length=100), nullable=False),
        sa.Column("cases", sa.BigInteger(), nullable=False),
        sa.Column("precision", sa.Float(), nullable=True),
        sa.Column("recall", sa.Float(), nullable=True),
        sa.Column("fmeasure", sa.Float(), nullable=False),
        sa.Column("low", sa.Float(), nullable=True),
        sa.Column("high", sa.Float(), nullable=True),
        sa.Column("levels", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name=op.f("fk_score_means_job_key")),
        sa.PrimaryKeyConstraint("job_key", "system", "measure", name=op.f("pk_score_means")),
    )
    op.create_table(
        "comparisons",
        sa.Column("job_key", KEY, nullable=False),
        sa.Column("measure", sa.String(length=100), nullable=False),
        sa.Column("system", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("baseline", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("cases", sa.BigInteger(), nullable=False),
        sa.Column("delta", sa.Float(), nullable=False),
        sa.Column("low", sa.Float(), nullable=True),
        sa.Column("high", sa.Float(), nullable=True),
        sa.Column("levels", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("p_value", sa.Float(), nullable=True),
        sa.Column("p_adjusted", sa.Float(), nullable=True),
        sa.Column("wins", sa.BigInteger(), nullable=False),
        sa.Column("ties", sa.BigInteger(), nullable=False),
        sa.Column("losses", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name=op.f("fk_comparisons_job_key")),
        sa.PrimaryKeyConstraint("job_key", "measure", "system", "baseline", name=op.f("pk_comparisons")),
    )


def _create_experiment_steps() -> None:
    op.create_table(
        "experiment_steps",
        sa.Column("job_key", KEY, nullable=False),
        sa.Column("number", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=300), nullable=False),
        sa.Column("step_key", KEY, nullable=False),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name=op.f("fk_experiment_steps_job_key")),
        sa.ForeignKeyConstraint(["step_key"], ["jobs.key"], name=op.f("fk_experiment_steps_step_key")),
        sa.PrimaryKeyConstraint("job_key", "number", name=op.f("pk_experiment_steps")),
        sa.UniqueConstraint("job_key", "name", name=op.f("uq_experiment_steps_job_key_name")),
    )
