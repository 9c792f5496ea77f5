"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# SQLite counts up only a plain INTEGER primary key.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Bring the tables to this revision."""
    _create_tenants()
    _create_workers()
    _create_datasets()
    _create_dialogues()
    _create_models()
    _create_recipes()
    _create_dataset_dialogues()
    _create_dataset_rows()
    _create_generations()
    _create_jobs()
    _create_chunks()
    _create_job_dependencies()
    _create_job_rows()
    _create_results()


def _create_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("key", KEY, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("weight", sa.Float(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name", name=op.f("uq_tenants_name")),
    )


def _create_workers() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(length=80), nullable=False),
        sa.Column("device_name", sa.String(length=200), nullable=False),
        sa.Column("device_bytes", sa.BigInteger(), nullable=False),
        sa.Column("engine", sa.String(length=30), nullable=False),
        sa.Column("kinds", sa.JSON(), nullable=False),
        sa.Column("resident", sa.JSON(), nullable=False),
        sa.Column("spec_version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("chunk_key", KEY, nullable=True),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_index("ix_workers_seen_at", "workers", ["seen_at"], unique=False)


def _create_datasets() -> None:
    op.create_table(
        "datasets",
        sa.Column("key", KEY, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_key", KEY, nullable=False),
        sa.Column("name", sa.String(length=300), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("format", sa.String(length=10), nullable=False),
        sa.Column("mapping", sa.JSON(), nullable=False),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.Column("rows", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("dialogues", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("ranked", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_owner", sa.String(length=40), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("ready_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_key"], ["tenants.key"], name=op.f("fk_datasets_tenant_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_datasets")),
        sa.UniqueConstraint("id", name=op.f("uq_datasets_id")),
        sa.UniqueConstraint("tenant_key", "digest", name=op.f("uq_datasets_tenant_key_digest")),
    )
    op.create_index("ix_datasets_tenant_key_name", "datasets", ["tenant_key", "name"], unique=False)


def _create_dialogues() -> None:
    op.create_table(
        "dialogues",
        sa.Column("key", KEY, autoincrement=True, nullable=False),
        sa.Column("tenant_key", KEY, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("characters", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_key"], ["tenants.key"], name=op.f("fk_dialogues_tenant_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_dialogues")),
        sa.UniqueConstraint("tenant_key", "digest", name=op.f("uq_dialogues_tenant_key_digest")),
    )


def _create_models() -> None:
    op.create_table(
        "models",
        sa.Column("key", KEY, autoincrement=True, nullable=False),
        sa.Column("tenant_key", KEY, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("weight_bytes", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.String(length=500), nullable=False),
        sa.Column("job_key", KEY, nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_key"], ["tenants.key"], name=op.f("fk_models_tenant_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_models")),
        sa.UniqueConstraint("job_key", name=op.f("uq_models_job_key")),
        sa.UniqueConstraint("tenant_key", "name", "version", name=op.f("uq_models_tenant_key_name_version")),
    )


def _create_recipes() -> None:
    op.create_table(
        "recipes",
        sa.Column("key", KEY, autoincrement=True, nullable=False),
        sa.Column("tenant_key", KEY, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_key"], ["tenants.key"], name=op.f("fk_recipes_tenant_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_recipes")),
        sa.UniqueConstraint("tenant_key", "digest", name=op.f("uq_recipes_tenant_key_digest")),
    )


def _create_dataset_dialogues() -> None:
    op.create_table(
        "dataset_dialogues",
        sa.Column("dataset_key", KEY, nullable=False),
        sa.Column("rank", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("dialogue_key", KEY, nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_key"], ["datasets.key"], name=op.f("fk_dataset_dialogues_dataset_key")),
        sa.ForeignKeyConstraint(["dialogue_key"], ["dialogues.key"], name=op.f("fk_dataset_dialogues_dialogue_key")),
        sa.PrimaryKeyConstraint("dataset_key", "rank", name=op.f("pk_dataset_dialogues")),
    )


def _create_dataset_rows() -> None:
    op.create_table(
        "dataset_rows",
        sa.Column("dataset_key", KEY, nullable=False),
        sa.Column("row_number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=500), nullable=False),
        sa.Column("dialogue_key", KEY, nullable=False),
        sa.Column("occurrence", sa.BigInteger(), nullable=False),
        sa.Column("references", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_key"], ["datasets.key"], name=op.f("fk_dataset_rows_dataset_key")),
        sa.ForeignKeyConstraint(["dialogue_key"], ["dialogues.key"], name=op.f("fk_dataset_rows_dialogue_key")),
        sa.PrimaryKeyConstraint("dataset_key", "row_number", name=op.f("pk_dataset_rows")),
    )
    op.create_index("uq_dataset_rows_occurrence", "dataset_rows", ["dataset_key", "dialogue_key", "occurrence"], unique=True)


def _create_generations() -> None:
    op.create_table(
        "generations",
        sa.Column("key", KEY, autoincrement=True, nullable=False),
        sa.Column("recipe_key", KEY, nullable=False),
        sa.Column("dialogue_key", KEY, nullable=False),
        sa.Column("draw", sa.BigInteger(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.String(length=10), nullable=False),
        sa.Column("tokens_in", sa.Integer(), nullable=False),
        sa.Column("tokens_out", sa.Integer(), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.Column("engine", sa.String(length=30), nullable=False),
        sa.Column("device", sa.String(length=80), nullable=False),
        sa.Column("dtype", sa.String(length=20), nullable=False),
        sa.Column("chunk_key", KEY, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["dialogue_key"], ["dialogues.key"], name=op.f("fk_generations_dialogue_key")),
        sa.ForeignKeyConstraint(["recipe_key"], ["recipes.key"], name=op.f("fk_generations_recipe_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_generations")),
    )
    op.create_index("uq_generations_work", "generations", ["recipe_key", "dialogue_key", "draw"], unique=True)


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("key", KEY, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_key", KEY, nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.Column("spec_version", sa.Integer(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=200), nullable=True),
        sa.Column("request_digest", sa.String(length=64), nullable=False),
        sa.Column("dataset_key", KEY, nullable=True),
        sa.Column("recipe_key", KEY, nullable=True),
        sa.Column("model_key", KEY, nullable=True),
        sa.Column("model_digest", sa.String(length=64), nullable=True),
        sa.Column("min_device_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("row_start", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("row_stop", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("row_step", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("items", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("distinct_dialogues", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("succeeded", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("not_run", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("generated", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("shared", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("truncated", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cut_off", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("chunks", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("chunks_left", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("arrival", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("claimed_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["dataset_key"], ["datasets.key"], name=op.f("fk_jobs_dataset_key")),
        sa.ForeignKeyConstraint(["model_key"], ["models.key"], name=op.f("fk_jobs_model_key")),
        sa.ForeignKeyConstraint(["recipe_key"], ["recipes.key"], name=op.f("fk_jobs_recipe_key")),
        sa.ForeignKeyConstraint(["tenant_key"], ["tenants.key"], name=op.f("fk_jobs_tenant_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_jobs")),
        sa.UniqueConstraint("id", name=op.f("uq_jobs_id")),
    )
    op.create_index("ix_jobs_state_tenant", "jobs", ["state", "tenant_key"], unique=False)
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["state"],
        unique=False,
        sqlite_where=sa.text("chunks_left > 0"),
        postgresql_where=sa.text("chunks_left > 0"),
    )
    op.create_index(
        "uq_jobs_idempotency_key",
        "jobs",
        ["tenant_key", "idempotency_key"],
        unique=True,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )


def _create_chunks() -> None:
    op.create_table(
        "chunks",
        sa.Column("key", KEY, autoincrement=True, nullable=False),
        sa.Column("job_key", KEY, nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("first_rank", sa.BigInteger(), nullable=False),
        sa.Column("last_rank", sa.BigInteger(), nullable=False),
        sa.Column("dialogues", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("crashes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("progressed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("owner", sa.String(length=40), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("run_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("outcome", sa.String(length=20), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name=op.f("fk_chunks_job_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_chunks")),
        sa.UniqueConstraint("job_key", "ordinal", name=op.f("uq_chunks_job_key_ordinal")),
    )
    op.create_index("ix_chunks_finished", "chunks", ["job_key", "finished_at"], unique=False)
    op.create_index(
        "ix_chunks_queued",
        "chunks",
        ["job_key", "ordinal"],
        unique=False,
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "ix_chunks_running",
        "chunks",
        ["lease_until", "job_key", "owner"],
        unique=False,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )


def _create_job_dependencies() -> None:
    op.create_table(
        "job_dependencies",
        sa.Column("job_key", KEY, nullable=False),
        sa.Column("needs_key", KEY, nullable=False),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name=op.f("fk_job_dependencies_job_key")),
        sa.ForeignKeyConstraint(["needs_key"], ["jobs.key"], name=op.f("fk_job_dependencies_needs_key")),
        sa.PrimaryKeyConstraint("job_key", "needs_key", name=op.f("pk_job_dependencies")),
    )


def _create_job_rows() -> None:
    op.create_table(
        "job_rows",
        sa.Column("job_key", KEY, nullable=False),
        sa.Column("row_number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name=op.f("fk_job_rows_job_key")),
        sa.PrimaryKeyConstraint("job_key", "row_number", name=op.f("pk_job_rows")),
    )


def _create_results() -> None:
    op.create_table(
        "results",
        sa.Column("job_key", KEY, nullable=False),
        sa.Column("row_number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("arrival", sa.BigInteger(), nullable=False),
        sa.Column("generation_key", KEY, nullable=True),
        sa.Column("shared", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("error_code", sa.String(length=40), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("chunk_key", KEY, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["generation_key"], ["generations.key"], name=op.f("fk_results_generation_key")),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name=op.f("fk_results_job_key")),
        sa.PrimaryKeyConstraint("job_key", "row_number", name=op.f("pk_results")),
    )
    op.create_index("ix_results_arrival", "results", ["job_key", "arrival", "row_number"], unique=False)
    op.create_index(
        "ix_results_errors",
        "results",
        ["job_key", "row_number"],
        unique=False,
        sqlite_where=sa.text("generation_key IS NULL"),
        postgresql_where=sa.text("generation_key IS NULL"),
    )
