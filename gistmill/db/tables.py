"""The tables. They are ours and may change; the views in views.py are the contract.

Only tenants, datasets, jobs, chunks, models, workers and measured speeds are ever updated. The rest is insert-only, save that a
later attempt of a job may replace an error in `results`. Big tables have integer keys; what users name has a time-ordered id
beside its key.
Times are seconds since 1970 as floats, read from the database's own clock (clock.py).

Tables with a row per dialogue or item have no foreign keys: their rows are written in the same transaction as, or after, what
they name, and that is never deleted before them. `gistmill db check` looks for rows that name nothing (ADR 5).
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite counts up only a plain INTEGER primary key.
Key = BigInteger().with_variant(Integer, "sqlite")


def _key() -> Column[int]:
    return Column("key", Key, primary_key=True, autoincrement=True)


def _tenant() -> Column[int]:
    return Column("tenant_key", Key, ForeignKey("tenants.key"), nullable=False)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


tenants = Table(
    "tenants",
    metadata,
    _key(),
    Column("name", String(100), nullable=False, unique=True),
    Column("weight", Float, nullable=False, server_default="1"),
)

datasets = Table(
    "datasets",
    metadata,
    _key(),
    Column("id", String(40), nullable=False, unique=True),
    _tenant(),
    Column("name", String(300), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("state", String(10), nullable=False),
    Column("format", String(10), nullable=False),
    Column("mapping", JSON, nullable=False),
    Column("warnings", JSON, nullable=False),
    _count("rows"),
    _count("dialogues"),
    _count("ranked"),
    Column("lease_owner", String(40)),
    Column("lease_until", Float),
    Column("created_at", Float, nullable=False),
    Column("ready_at", Float),
    UniqueConstraint("tenant_key", "digest"),
    Index("ix_datasets_tenant_key_name", "tenant_key", "name"),
)

dialogues = Table(
    "dialogues",
    metadata,
    _key(),
    Column("tenant_key", Key, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("characters", Integer, nullable=False),
    Column("text", Text, nullable=False),
    UniqueConstraint("tenant_key", "digest"),
)

# `occurrence` numbers the rows of one dialogue from 0; a sampled draw is keyed by it.
dataset_rows = Table(
    "dataset_rows",
    metadata,
    Column("dataset_key", Key, primary_key=True),
    Column("row_number", BigInteger, primary_key=True, autoincrement=False),
    Column("id", String(500), nullable=False),
    Column("dialogue_key", Key, nullable=False),
    Column("occurrence", BigInteger, nullable=False),
    Column("references", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Index("uq_dataset_rows_occurrence", "dataset_key", "dialogue_key", "occurrence", unique=True),
)

# The rank of each distinct dialogue of a dataset by (length in steps, first row): neighbours cost alike and lie close together.
dataset_dialogues = Table(
    "dataset_dialogues",
    metadata,
    Column("dataset_key", Key, primary_key=True),
    Column("rank", BigInteger, primary_key=True, autoincrement=False),
    Column("dialogue_key", Key, nullable=False),
    Column("rows", BigInteger, nullable=False),
)

models = Table(
    "models",
    metadata,
    _key(),
    _tenant(),
    Column("name", String(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("weight_bytes", BigInteger, nullable=False),
    Column("source", String(500), nullable=False),
    # An adapter stands on the base of this digest and holds only what it changes.
    Column("kind", String(10), nullable=False, server_default="model"),
    Column("base_digest", String(64)),
    # What a trained version came from: base, data, prompt, hyper-parameters, job, code.
    Column("lineage", JSON(none_as_null=True)),
    Column("job_key", Key),
    Column("created_at", Float, nullable=False),
    # A removed version is offered to no new job; its files stay, because results name it.
    Column("removed_at", Float),
    UniqueConstraint("tenant_key", "name", "version"),
    UniqueConstraint("job_key"),
)

model_aliases = Table(
    "model_aliases",
    metadata,
    Column("tenant_key", Key, ForeignKey("tenants.key"), primary_key=True),
    Column("alias", String(100), primary_key=True),
    Column("model_key", Key, ForeignKey("models.key"), nullable=False),
)

recipes = Table(
    "recipes",
    metadata,
    _key(),
    _tenant(),
    Column("digest", String(64), nullable=False),
    Column("body", JSON, nullable=False),
    UniqueConstraint("tenant_key", "digest"),
)

jobs = Table(
    "jobs",
    metadata,
    _key(),
    Column("id", String(40), nullable=False, unique=True),
    _tenant(),
    Column("kind", String(20), nullable=False),
    Column("state", String(12), nullable=False),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("attempt", Integer, nullable=False, server_default="1"),
    # The error codes that the current attempt takes up again; null means all of them.
    Column("retry_codes", JSON(none_as_null=True)),
    # The job whose failed rows this one takes, with another spec.
    Column("retry_of_key", Key),
    Column("spec_version", Integer, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("warnings", JSON, nullable=False),
    Column("idempotency_key", String(200)),
    Column("request_digest", String(64), nullable=False),
    Column("dataset_key", Key, ForeignKey("datasets.key")),
    Column("recipe_key", Key, ForeignKey("recipes.key")),
    Column("model_key", Key, ForeignKey("models.key")),
    Column("model_digest", String(64)),
    Column("min_device_bytes", BigInteger, nullable=False, server_default="0"),
    # The rows of the job: start, stop and step over the row number, or `job_rows` when step is 0.
    Column("row_start", BigInteger, nullable=False, server_default="0"),
    Column("row_stop", BigInteger, nullable=False, server_default="0"),
    Column("row_step", BigInteger, nullable=False, server_default="1"),
    _count("items"),
    _count("distinct_dialogues"),
    _count("succeeded"),
    _count("failed"),
    _count("not_run"),
    _count("generated"),
    _count("shared"),
    _count("truncated"),
    _count("cut_off"),
    _count("chunks"),
    _count("chunks_left"),
    _count("arrival"),
    # The finetune job whose product this job will use: its model and recipe are filled in when that has ended.
    Column("model_job_key", Key),
    # Finetune jobs: how far the training is, and what was found out before its first step.
    Column("training", JSON(none_as_null=True)),
    Column("error", JSON),
    Column("created_at", Float, nullable=False),
    Column("claimed_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Index(
        "uq_jobs_idempotency_key",
        "tenant_key",
        "idempotency_key",
        unique=True,
        sqlite_where=text("idempotency_key IS NOT NULL"),
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    Index("ix_jobs_state_tenant", "state", "tenant_key"),
    # The sweep looks for ended jobs with open chunks every few seconds, among all that ever ended.
    Index("ix_jobs_open", "state", sqlite_where=text("chunks_left > 0"), postgresql_where=text("chunks_left > 0")),
)

job_rows = Table(
    "job_rows",
    metadata,
    Column("job_key", Key, primary_key=True),
    Column("row_number", BigInteger, primary_key=True, autoincrement=False),
)

job_dependencies = Table(
    "job_dependencies",
    metadata,
    Column("job_key", Key, ForeignKey("jobs.key"), primary_key=True),
    Column("needs_key", Key, ForeignKey("jobs.key"), primary_key=True),
    Index("ix_job_dependencies_needs_key", "needs_key"),
)

# Ranks are first to last, both inside. The epoch fences writers and never falls.
chunks = Table(
    "chunks",
    metadata,
    _key(),
    Column("job_key", Key, ForeignKey("jobs.key"), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("first_rank", BigInteger, nullable=False),
    Column("last_rank", BigInteger, nullable=False),
    Column("dialogues", Integer, nullable=False),
    Column("state", String(10), nullable=False),
    Column("epoch", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("crashes", Integer, nullable=False, server_default="0"),
    Column("progressed", Boolean, nullable=False, server_default=text("false")),
    # The items that ended under this epoch, raised in the transaction that writes their ends.
    _count("ended"),
    Column("owner", String(40)),
    Column("lease_until", Float),
    Column("run_at", Float, nullable=False, server_default="0"),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("outcome", String(20)),
    Column("error", JSON),
    UniqueConstraint("job_key", "ordinal"),
    Index(
        "ix_chunks_queued",
        "job_key",
        "ordinal",
        sqlite_where=text("state = 'queued'"),
        postgresql_where=text("state = 'queued'"),
    ),
    Index(
        "ix_chunks_held",
        "lease_until",
        "job_key",
        "owner",
        sqlite_where=text("lease_until IS NOT NULL"),
        postgresql_where=text("lease_until IS NOT NULL"),
    ),
    Index("ix_chunks_finished", "job_key", "finished_at"),
)

generations = Table(
    "generations",
    metadata,
    _key(),
    Column("recipe_key", Key, nullable=False),
    Column("dialogue_key", Key, nullable=False),
    Column("draw", BigInteger, nullable=False),
    Column("summary", Text, nullable=False),
    Column("finish_reason", String(10), nullable=False),
    Column("tokens_in", Integer, nullable=False),
    Column("tokens_out", Integer, nullable=False),
    Column("truncated", Boolean, nullable=False),
    Column("engine", String(30), nullable=False),
    Column("device", String(80), nullable=False),
    Column("dtype", String(20), nullable=False),
    Column("chunk_key", Key, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("uq_generations_work", "recipe_key", "dialogue_key", "draw", unique=True),
)

results = Table(
    "results",
    metadata,
    Column("job_key", Key, primary_key=True),
    Column("row_number", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("arrival", BigInteger, nullable=False),
    Column("generation_key", Key),
    Column("shared", Boolean, nullable=False, server_default=text("false")),
    Column("error_code", String(40)),
    Column("error_message", Text),
    Column("chunk_key", Key, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("ix_results_arrival", "job_key", "arrival", "row_number"),
    Index(
        "ix_results_errors",
        "job_key",
        "row_number",
        sqlite_where=text("generation_key IS NULL"),
        postgresql_where=text("generation_key IS NULL"),
    ),
)

# A point of a training curve: an optimizer step, or an evaluation after one. A resumed run repeats points; the first stands.
training_metrics = Table(
    "training_metrics",
    metadata,
    Column("job_key", Key, ForeignKey("jobs.key"), primary_key=True),
    Column("kind", String(5), primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("epoch", Float, nullable=False),
    Column("loss", Float),
    Column("learning_rate", Float),
    Column("gradient_norm", Float),
    Column("samples_per_s", Float),
    Column("memory_bytes", BigInteger),
    Column("rouge1", Float),
    Column("rouge2", Float),
    Column("rougel", Float),
    Column("rougelsum", Float),
    Column("chunk_key", Key, nullable=False),
    Column("lease_epoch", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
)

# A prompt of the user's own. Versions never change: recipes carry the digest. `examples` names the rows it was made from.
prompts = Table(
    "prompts",
    metadata,
    _key(),
    _tenant(),
    Column("name", String(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    # The text before and behind the dialogue: examples inside may hold anything.
    Column("head", Text, nullable=False),
    Column("tail", Text, nullable=False),
    Column("examples", JSON, nullable=False),
    Column("dataset_key", Key, ForeignKey("datasets.key")),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("tenant_key", "name", "version"),
)

# What an evaluate job found: how far it is, and once it has aggregated, its signature and its counts: `outcomes` of cases, and
# how many `empty` summaries each system has.
evaluations = Table(
    "evaluations",
    metadata,
    Column("job_key", Key, ForeignKey("jobs.key"), primary_key=True),
    _count("cases"),
    _count("ended"),
    Column("counts", JSON(none_as_null=True)),
    Column("signature", JSON(none_as_null=True)),
    Column("notes", JSON, nullable=False),
    # The dataset whose metadata holds the summaries, when they were made elsewhere.
    Column("predictions_key", Key, ForeignKey("datasets.key")),
    Column("aggregated_at", Float),
)

# What an evaluation compares, the baseline as number 0: the summaries of a job, or a column of a file.
evaluation_systems = Table(
    "evaluation_systems",
    metadata,
    Column("job_key", Key, ForeignKey("jobs.key"), primary_key=True),
    Column("number", SmallInteger, primary_key=True, autoincrement=False),
    Column("name", String(300), nullable=False),
    Column("summaries_key", Key, ForeignKey("jobs.key")),
    Column("column_name", String(300)),
    UniqueConstraint("job_key", "name"),
)

# How each case of an evaluation ended. Its scores are written in the same transaction.
evaluation_cases = Table(
    "evaluation_cases",
    metadata,
    Column("job_key", Key, primary_key=True),
    Column("dialogue_key", Key, primary_key=True),
    Column("row_number", BigInteger, nullable=False),
    Column("outcome", String(20), nullable=False),
    # The numbers of the systems that have no summary of it, or an empty one.
    Column("missing", JSON, nullable=False),
    Column("empty", JSON, nullable=False),
    # Its rows hold different summaries of one system, of which the first counts unless each row is scored alone.
    Column("differing", Boolean, nullable=False),
    Column("chunk_key", Key, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("ix_evaluation_cases_row", "job_key", "row_number"),
)

# Scores of a case as a whole, or of each of its rows when the rule is `each`; then row_number differs within a case.
scores = Table(
    "scores",
    metadata,
    Column("job_key", Key, primary_key=True),
    Column("dialogue_key", Key, primary_key=True),
    Column("row_number", BigInteger, primary_key=True, autoincrement=False),
    Column("system", SmallInteger, primary_key=True, autoincrement=False),
    Column("measure", String(100), primary_key=True),
    Column("precision", Float),
    Column("recall", Float),
    Column("fmeasure", Float, nullable=False),
)

# Means with their intervals; `levels` holds the limits at other levels than 95 %.
score_means = Table(
    "score_means",
    metadata,
    Column("job_key", Key, ForeignKey("jobs.key"), primary_key=True),
    Column("system", SmallInteger, primary_key=True, autoincrement=False),
    Column("measure", String(100), primary_key=True),
    Column("cases", BigInteger, nullable=False),
    Column("precision", Float),
    Column("recall", Float),
    Column("fmeasure", Float, nullable=False),
    Column("low", Float),
    Column("high", Float),
    Column("levels", JSON(none_as_null=True)),
)

# A pair of systems: the later minus the earlier, so that the baseline is what others are compared with.
comparisons = Table(
    "comparisons",
    metadata,
    Column("job_key", Key, ForeignKey("jobs.key"), primary_key=True),
    Column("measure", String(100), primary_key=True),
    Column("system", SmallInteger, primary_key=True, autoincrement=False),
    Column("baseline", SmallInteger, primary_key=True, autoincrement=False),
    Column("cases", BigInteger, nullable=False),
    Column("delta", Float, nullable=False),
    Column("low", Float),
    Column("high", Float),
    Column("levels", JSON(none_as_null=True)),
    Column("p_value", Float),
    Column("p_adjusted", Float),
    Column("wins", BigInteger, nullable=False),
    Column("ties", BigInteger, nullable=False),
    Column("losses", BigInteger, nullable=False),
)

# The jobs of an experiment in the order in which people read of them; jobs that were completed before may be among them. Of an
# evaluation, the summarize jobs that it has submitted.
experiment_steps = Table(
    "experiment_steps",
    metadata,
    Column("job_key", Key, ForeignKey("jobs.key"), primary_key=True),
    Column("number", SmallInteger, primary_key=True, autoincrement=False),
    Column("name", String(300), nullable=False),
    Column("step_key", Key, ForeignKey("jobs.key"), nullable=False),
    UniqueConstraint("job_key", "name"),
)

# One row per process start; `kinds` and `resident` are lists of names and model digests.
workers = Table(
    "workers",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", String(80), nullable=False),
    Column("device_name", String(200), nullable=False),
    Column("device_bytes", BigInteger, nullable=False),
    Column("engine", String(30), nullable=False),
    Column("kinds", JSON, nullable=False),
    Column("resident", JSON, nullable=False),
    Column("spec_version", Integer, nullable=False),
    Column("state", String(10), nullable=False),
    Column("chunk_key", Key),
    Column("started_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Index("ix_workers_seen_at", "seen_at"),
)

# What chunks took lately, by what decides it. No tenant's: `version_digest` names the files whose owners may read of it.
measured_speeds = Table(
    "measured_speeds",
    metadata,
    Column("model_digest", String(64), primary_key=True),
    Column("precision", String(10), primary_key=True),
    Column("max_new_tokens", Integer, primary_key=True, autoincrement=False),
    Column("num_beams", Integer, primary_key=True, autoincrement=False),
    Column("do_sample", Boolean, primary_key=True),
    Column("engine", String(30), primary_key=True),
    Column("device_name", String(200), primary_key=True),
    Column("dtype", String(20), primary_key=True),
    Column("version_digest", String(64), nullable=False),
    # Sums in which older chunks count less and less, hence no whole numbers.
    Column("dialogues", Float, nullable=False),
    Column("tokens_in", Float, nullable=False),
    Column("tokens_out", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    # Of the last load and the last warm-up that was measured.
    Column("load_s", Float),
    Column("warmup_s", Float),
    Column("chunks", BigInteger, nullable=False),
    Column("measured_at", Float, nullable=False),
)
