"""The SQL views: what users and their tools read. They are the contract; docs/reference/views.md is made from this file.

Expressions are SQL that SQLite and PostgreSQL share, with three macros: TIME(seconds) is a moment as users see it, NOW the
present in seconds, and TENANT(column) true for the rows that the reader may see (see `postgresql_views` and `sqlite_views`).

No condition of a user may be tried on another tenant's row, because its errors would tell about it. On PostgreSQL the views
are security barriers; on SQLite CROSS JOIN keeps the table with the tenant outermost, where the view's condition comes first.
Joins by key also compare the tenant: SQLite's authorizer hears of a table that is joined by its key alone as if the query named
it outside any view, and would refuse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PRIVATE_SCHEMA = "gistmill_private"

_TIME = re.compile(r"TIME\(([\w.]+)\)")
_TENANT = re.compile(r"TENANT\(([\w.]+)\)")


@dataclass(frozen=True)
class ViewColumn:
    """One documented column."""

    name: str
    type: str
    expression: str
    text: str


@dataclass(frozen=True)
class SqlView:
    """One documented view."""

    name: str
    text: str
    source: str
    columns: tuple[ViewColumn, ...]


def _columns(*rows: tuple[str, str, str, str]) -> tuple[ViewColumn, ...]:
    return tuple(ViewColumn(*row) for row in rows)


_MODEL = "m.name || '@' || m.version"

_JOBS = SqlView(
    "v_jobs",
    "One row per job. items = succeeded + failed + not_run once it has ended; generated + shared = succeeded.",
    "FROM jobs j LEFT JOIN datasets d ON d.key = j.dataset_key AND d.tenant_key = j.tenant_key "
    "LEFT JOIN models m ON m.key = j.model_key AND m.tenant_key = j.tenant_key "
    "LEFT JOIN jobs o ON o.key = j.retry_of_key AND o.tenant_key = j.tenant_key "
    "WHERE TENANT(j.tenant_key)",
    _columns(
        ("job_id", "text", "j.id", "The job's id, job_…; later jobs have larger ids."),
        ("kind", "text", "j.kind", "What the job does: summarize, finetune, evaluate or experiment."),
        ("state", "text", "j.state", "waiting, queued, running, cancelling, completed, failed or cancelled."),
        ("paused", "boolean", "j.paused", "Whether a pause is wished."),
        ("priority", "integer", "j.priority", "Higher runs first."),
        ("attempt", "integer", "j.attempt", "1, and one more after each retry."),
        ("retry_of", "text", "o.id", "The job whose failed rows this one takes with another spec, or null."),
        ("dataset_id", "text", "d.id", "The dataset whose rows the job takes."),
        ("dataset", "text", "d.name", "The dataset's name."),
        ("selection", "text", "j.spec ->> 'select'", "The row selection as asked for, or null for all rows."),
        ("model", "text", _MODEL, "The model version that writes, name@version."),
        ("model_digest", "text", "j.model_digest", "The sha256 that names the model's files."),
        ("prompt", "text", "j.spec ->> 'prompt'", "The prompt's name."),
        ("generation", "JSON", "j.spec -> 'generation'", "The generation parameters as asked for."),
        ("max_input_tokens", "integer", "CAST(j.spec ->> 'max_input_tokens' AS BIGINT)", "Most tokens of a prompt."),
        ("on_overflow", "text", "j.spec ->> 'on_overflow'", "What happens to a longer prompt: fail or truncate."),
        ("precision", "text", "j.spec ->> 'precision'", "native, float32, bfloat16 or int8."),
        ("labels", "JSON", "j.labels", "The labels given at submit."),
        ("items", "integer", "j.items", "Rows of the job."),
        ("distinct_dialogues", "integer", "j.distinct_dialogues", "Distinct dialogues among them."),
        ("succeeded", "integer", "j.succeeded", "Items with a summary."),
        ("failed", "integer", "j.failed", "Items with an error."),
        ("not_run", "integer", "j.not_run", "Items without either, under a job that was cancelled or has failed."),
        ("generated", "integer", "j.generated", "Items whose summary this job generated."),
        ("shared", "integer", "j.shared", "Items that point at a summary that was made already."),
        ("truncated", "integer", "j.truncated", "Items whose prompt was cut."),
        ("cut_off", "integer", "j.cut_off", "Items whose summary reached max_new_tokens."),
        ("chunks", "integer", "j.chunks", "Pieces in which the job is handed to workers."),
        ("chunks_left", "integer", "j.chunks_left", "Pieces that are not done."),
        ("error_code", "text", "j.error ->> 'code'", "Why the job as a whole failed, as a stable code."),
        ("error_message", "text", "j.error ->> 'message'", "Why the job as a whole failed, in words."),
        ("created_at", "time", "TIME(j.created_at)", "When it was submitted."),
        ("started_at", "time", "TIME(j.started_at)", "When a worker first took a piece of it."),
        ("finished_at", "time", "TIME(j.finished_at)", "When it ended."),
    ),
)

_SUMMARIES = SqlView(
    "v_summaries",
    "One row per item with a summary.",
    "FROM jobs j CROSS JOIN results r CROSS JOIN generations g "
    "LEFT JOIN dialogues t ON t.key = g.dialogue_key AND t.tenant_key = j.tenant_key "
    "LEFT JOIN dataset_rows i ON i.dataset_key = j.dataset_key AND i.row_number = r.row_number "
    "LEFT JOIN models m ON m.key = j.model_key AND m.tenant_key = j.tenant_key "
    "WHERE TENANT(j.tenant_key) AND r.job_key = j.key AND g.key = r.generation_key",
    _columns(
        ("job_id", "text", "j.id", "The job."),
        ("row_number", "integer", "r.row_number", "The row of the dataset, from 0."),
        ("item_id", "text", "i.id", "The row's id."),
        ("dialogue", "text", "t.text", "The dialogue."),
        ("summary", "text", "g.summary", "The summary."),
        ("model", "text", _MODEL, "The model version that wrote it, name@version."),
        ("prompt", "text", "j.spec ->> 'prompt'", "The prompt's name."),
        ("finish_reason", "text", "g.finish_reason", "stop: the model ended; length: max_new_tokens was reached."),
        ("tokens_in", "integer", "g.tokens_in", "Tokens that the model read, special tokens included."),
        ("tokens_out", "integer", "g.tokens_out", "Tokens that the model wrote."),
        ("truncated", "boolean", "g.truncated", "Whether the prompt was cut to max_input_tokens."),
        ("shared", "boolean", "r.shared", "Whether the summary was made already, by another item or job."),
        ("engine", "text", "g.engine", "The engine that ran."),
        ("device", "text", "g.device", "The device that it ran on."),
        ("dtype", "text", "g.dtype", "The number format that it computed in."),
        ("attempt", "integer", "r.attempt", "The job's attempt that brought the result."),
        ("generated_at", "time", "TIME(g.created_at)", "When the summary was written."),
        ("created_at", "time", "TIME(r.created_at)", "When this item got it."),
    ),
)

_ERRORS = SqlView(
    "v_errors",
    "One row per item that failed.",
    "FROM jobs j CROSS JOIN results r "
    "LEFT JOIN dataset_rows i ON i.dataset_key = j.dataset_key AND i.row_number = r.row_number "
    "LEFT JOIN dialogues t ON t.key = i.dialogue_key AND t.tenant_key = j.tenant_key "
    "WHERE TENANT(j.tenant_key) AND r.job_key = j.key AND r.generation_key IS NULL",
    _columns(
        ("job_id", "text", "j.id", "The job."),
        ("row_number", "integer", "r.row_number", "The row of the dataset, from 0."),
        ("item_id", "text", "i.id", "The row's id."),
        ("dialogue", "text", "t.text", "The dialogue."),
        ("code", "text", "r.error_code", "What went wrong, as a stable code."),
        ("message", "text", "r.error_message", "What went wrong, in words."),
        ("attempt", "integer", "r.attempt", "The job's attempt that brought the error."),
        ("created_at", "time", "TIME(r.created_at)", "When it was recorded."),
    ),
)

_DATASETS = SqlView(
    "v_datasets",
    "One row per dataset.",
    "FROM datasets d WHERE TENANT(d.tenant_key)",
    _columns(
        ("dataset_id", "text", "d.id", "The dataset's id, ds_…"),
        ("name", "text", "d.name", "Its name; the newest ready dataset of a name is meant by it."),
        ("state", "text", "d.state", "loading or ready."),
        ("format", "text", "d.format", "What it was read from: jsonl, csv or parquet."),
        ("rows", "integer", "d.rows", "Rows."),
        ("dialogues", "integer", "d.dialogues", "Distinct dialogues."),
        ("digest", "text", "d.digest", "The sha256 of its rows."),
        ("created_at", "time", "TIME(d.created_at)", "When its upload began."),
        ("ready_at", "time", "TIME(d.ready_at)", "When it could be used."),
    ),
)

_MODELS = SqlView(
    "v_models",
    "One row per model version.",
    "FROM models m WHERE TENANT(m.tenant_key)",
    _columns(
        ("name", "text", "m.name", "The model's name."),
        ("version", "integer", "m.version", "1, 2, …; a version never changes."),
        ("digest", "text", "m.digest", "The sha256 that names its files."),
        ("architecture", "text", "m.manifest ->> 'architecture'", "The model class."),
        ("parameters", "integer", "CAST(m.manifest ->> 'parameters' AS BIGINT)", "Number of weights."),
        ("weight_bytes", "integer", "m.weight_bytes", "Bytes of its weights."),
        ("dtype", "text", "m.manifest ->> 'dtype'", "The number format of its weights."),
        ("source", "text", "m.source", "Where it came from."),
        ("kind", "text", "m.kind", "model, or adapter on a base."),
        ("base", "text", "m.lineage ->> 'base'", "The version that it was trained from, or null."),
        ("base_digest", "text", "COALESCE(m.base_digest, m.lineage ->> 'base_digest')", "The sha256 of that base."),
        ("job_id", "text", "m.lineage ->> 'job'", "The finetune job that made it, or null."),
        ("dataset", "text", "m.lineage ->> 'dataset'", "The id of the dataset that it was trained on."),
        ("dataset_digest", "text", "m.lineage ->> 'dataset_digest'", "The sha256 of that dataset's rows."),
        ("prompt", "text", "m.lineage ->> 'prompt'", "The prompt that it was trained with."),
        ("parameters_asked", "JSON", "m.lineage -> 'parameters'", "The hyper-parameters of the job, as asked for."),
        ("code_version", "text", "m.lineage ->> 'code_version'", "The version of Gistmill that trained it."),
        ("created_at", "time", "TIME(m.created_at)", "When it was added."),
        ("removed_at", "time", "TIME(m.removed_at)", "When it was withdrawn from new jobs, or null."),
    ),
)

_METRICS = SqlView(
    "v_training_metrics",
    "One row per point of a training curve: an optimizer step, or an evaluation after one.",
    "FROM jobs j CROSS JOIN training_metrics p WHERE TENANT(j.tenant_key) AND p.job_key = j.key",
    _columns(
        ("job_id", "text", "j.id", "The finetune job."),
        ("kind", "text", "p.kind", "train: an optimizer step; eval: an evaluation on the validation data."),
        ("step", "integer", "p.step", "Optimizer steps done."),
        ("epoch", "real", "p.epoch", "Passes over the data done."),
        ("loss", "real", "p.loss", "Mean loss over the tokens that count; pads do not."),
        ("learning_rate", "real", "p.learning_rate", "The learning rate of the step."),
        ("gradient_norm", "real", "p.gradient_norm", "The norm of the gradient before clipping."),
        ("samples_per_s", "real", "p.samples_per_s", "Rows trained on per second."),
        ("memory_bytes", "integer", "p.memory_bytes", "Most memory used so far, of the GPU or else of the process."),
        ("rouge_1", "real", "p.rouge1", "Evaluations: mean ROUGE-1 F over the validation rows, 0 to 1."),
        ("rouge_2", "real", "p.rouge2", "Evaluations: mean ROUGE-2 F."),
        ("rouge_l", "real", "p.rougel", "Evaluations: mean ROUGE-L F."),
        ("rouge_lsum", "real", "p.rougelsum", "Evaluations: mean ROUGE-Lsum F."),
        ("created_at", "time", "TIME(p.created_at)", "When it was recorded."),
    ),
)

# The rule `each` scores the rows of a case one by one, `max` and `mean` the case.
_SCORES = SqlView(
    "v_scores",
    "One row per case, system and measure of an evaluation; per row under the rule `each`. Scores are 0 to 1.",
    "FROM jobs j CROSS JOIN scores s "
    "LEFT JOIN evaluation_systems y ON y.job_key = j.key AND y.number = s.system "
    "LEFT JOIN dataset_rows i ON i.dataset_key = j.dataset_key AND i.row_number = s.row_number "
    "WHERE TENANT(j.tenant_key) AND s.job_key = j.key",
    _columns(
        ("job_id", "text", "j.id", "The evaluate job."),
        ("system", "text", "y.name", "What was scored: a model by its name in the job, or a column."),
        ("row_number", "integer", "s.row_number", "The row, or the first row of the case, from 0."),
        ("item_id", "text", "i.id", "That row's id."),
        ("measure", "text", "s.measure", "rouge1, rouge2, rougeL, rougeLsum, or one of another metric."),
        ("precision", "real", "s.precision", "Precision, or null where the measure has none."),
        ("recall", "real", "s.recall", "Recall, or null where the measure has none."),
        ("fmeasure", "real", "s.fmeasure", "F-measure, or the value of a measure that is one number."),
    ),
)

_ROUGE = SqlView(
    "v_rouge",
    "One row per system and measure of an evaluation: the mean over its cases, with its interval.",
    "FROM jobs j CROSS JOIN score_means s "
    "LEFT JOIN evaluation_systems y ON y.job_key = j.key AND y.number = s.system "
    "LEFT JOIN jobs w ON w.key = y.summaries_key AND w.tenant_key = j.tenant_key "
    "LEFT JOIN models m ON m.key = w.model_key AND m.tenant_key = j.tenant_key "
    "WHERE TENANT(j.tenant_key) AND s.job_key = j.key",
    _columns(
        ("job_id", "text", "j.id", "The evaluate job."),
        ("system", "text", "y.name", "What was scored: a model by its name in the job, or a column."),
        ("model", "text", _MODEL, "The model version that wrote the summaries, or null for a column."),
        ("summaries_job_id", "text", "w.id", "The job that made the summaries, or null for a column."),
        ("measure", "text", "s.measure", "rouge1, rouge2, rougeL, rougeLsum, or one of another metric."),
        ("cases", "integer", "s.cases", "Cases, the witnesses of the interval."),
        ("precision", "real", "s.precision", "Mean precision."),
        ("recall", "real", "s.recall", "Mean recall."),
        ("fmeasure", "real", "s.fmeasure", "Mean F-measure."),
        ("low", "real", "s.low", "Lower limit of its 95 % interval; null for a single case."),
        ("high", "real", "s.high", "Upper limit of its 95 % interval."),
    ),
)

_COMPARISONS = SqlView(
    "v_comparisons",
    "One row per pair of systems and measure of an evaluation: system minus baseline.",
    "FROM jobs j CROSS JOIN comparisons c "
    "LEFT JOIN evaluation_systems y ON y.job_key = j.key AND y.number = c.system "
    "LEFT JOIN evaluation_systems b ON b.job_key = j.key AND b.number = c.baseline "
    "WHERE TENANT(j.tenant_key) AND c.job_key = j.key",
    _columns(
        ("job_id", "text", "j.id", "The evaluate job."),
        ("measure", "text", "c.measure", "rouge1, rouge2, rougeL, rougeLsum, or one of another metric."),
        ("system", "text", "y.name", "The one that is compared."),
        ("baseline", "text", "b.name", "The one that it is compared with."),
        ("cases", "integer", "c.cases", "Cases that both have."),
        ("delta", "real", "c.delta", "Difference of the mean F-measures, -1 to 1."),
        ("low", "real", "c.low", "Lower limit of its 95 % interval, paired bootstrap."),
        ("high", "real", "c.high", "Upper limit of its 95 % interval."),
        ("p_value", "real", "c.p_value", "Two-sided p-value of approximate randomization."),
        ("p_adjusted", "real", "c.p_adjusted", "The same after Holm over the pairs, when more than two are compared."),
        ("wins", "integer", "c.wins", "Cases in which the system scores higher."),
        ("ties", "integer", "c.ties", "Cases in which both score the same."),
        ("losses", "integer", "c.losses", "Cases in which the baseline scores higher."),
    ),
)

# Subqueries, because a table that is joined by its key alone is one that the authorizer would refuse.
_OF_A_JOB = "(SELECT g.summary FROM generations g WHERE g.key = r.generation_key)"
_OF_A_FILE = (
    "(SELECT p.metadata -> 'predictions' ->> y.column_name FROM evaluations e CROSS JOIN dataset_rows p "
    "WHERE e.job_key = j.key AND p.dataset_key = e.predictions_key AND p.row_number = c.row_number)"
)

_SIDE_BY_SIDE = SqlView(
    "v_side_by_side",
    "One row per case and system of an evaluation: the summary beside the dialogue and its references.",
    "FROM jobs j CROSS JOIN evaluation_cases c CROSS JOIN evaluation_systems y "
    "LEFT JOIN dataset_rows i ON i.dataset_key = j.dataset_key AND i.row_number = c.row_number "
    "LEFT JOIN dialogues t ON t.key = c.dialogue_key AND t.tenant_key = j.tenant_key "
    "LEFT JOIN results r ON r.job_key = y.summaries_key AND r.row_number = c.row_number "
    "LEFT JOIN scores s1 ON s1.job_key = j.key AND s1.dialogue_key = c.dialogue_key AND s1.row_number = c.row_number "
    "AND s1.system = y.number AND s1.measure = 'rouge1' "
    "LEFT JOIN scores s2 ON s2.job_key = j.key AND s2.dialogue_key = c.dialogue_key AND s2.row_number = c.row_number "
    "AND s2.system = y.number AND s2.measure = 'rouge2' "
    "LEFT JOIN scores s3 ON s3.job_key = j.key AND s3.dialogue_key = c.dialogue_key AND s3.row_number = c.row_number "
    "AND s3.system = y.number AND s3.measure = 'rougeL' "
    "LEFT JOIN scores s4 ON s4.job_key = j.key AND s4.dialogue_key = c.dialogue_key AND s4.row_number = c.row_number "
    "AND s4.system = y.number AND s4.measure = 'rougeLsum' "
    "WHERE TENANT(j.tenant_key) AND c.job_key = j.key AND y.job_key = j.key",
    _columns(
        ("job_id", "text", "j.id", "The evaluate job."),
        ("row_number", "integer", "c.row_number", "The first row of the case, from 0."),
        ("item_id", "text", "i.id", "That row's id."),
        ("outcome", "text", "c.outcome", "scored, failed, example, trained or no_reference."),
        ("system", "text", "y.name", "Whose summary it is."),
        ("dialogue", "text", "t.text", "The dialogue."),
        ("reference_summaries", "JSON", 'i."references"', "The references of that row."),
        ("summary", "text", f"COALESCE({_OF_A_JOB}, {_OF_A_FILE})", "The summary."),
        ("rouge_1", "real", "s1.fmeasure", "ROUGE-1 F of the case; of that row under the rule each."),
        ("rouge_2", "real", "s2.fmeasure", "ROUGE-2 F."),
        ("rouge_l", "real", "s3.fmeasure", "ROUGE-L F."),
        ("rouge_lsum", "real", "s4.fmeasure", "ROUGE-Lsum F."),
    ),
)

_EXPERIMENTS = SqlView(
    "v_experiments",
    "One row per step of an experiment, in the order of its steps; v_jobs, v_rouge and the others say more of each job.",
    "FROM jobs j CROSS JOIN experiment_steps e CROSS JOIN jobs w "
    "LEFT JOIN models m ON m.job_key = w.key AND m.tenant_key = j.tenant_key "
    "WHERE TENANT(j.tenant_key) AND j.kind = 'experiment' AND e.job_key = j.key AND w.key = e.step_key "
    "AND w.tenant_key = j.tenant_key",
    _columns(
        ("experiment_id", "text", "j.id", "The experiment's job."),
        ("experiment", "text", "j.spec ->> 'name'", "What kind of experiment it is: notebook."),
        ("experiment_state", "text", "j.state", "The experiment's state."),
        ("step", "integer", "e.number", "The step's number, from 1."),
        ("name", "text", "e.name", "What the step does."),
        ("job_id", "text", "w.id", "The step's job."),
        ("kind", "text", "w.kind", "summarize, finetune or evaluate."),
        ("state", "text", "w.state", "The state of the step's job."),
        ("model", "text", _MODEL, "Trainings: the model version that was made, name@version."),
        ("error_code", "text", "w.error ->> 'code'", "Why the step's job failed, as a stable code."),
        ("started_at", "time", "TIME(w.started_at)", "When a worker first took a piece of it."),
        ("finished_at", "time", "TIME(w.finished_at)", "When it ended."),
    ),
)

_WORKERS = SqlView(
    "v_workers",
    "One row per worker process. A job is named only to its own tenant.",
    "FROM workers w LEFT JOIN chunks c ON c.key = w.chunk_key LEFT JOIN jobs j ON j.key = c.job_key AND TENANT(j.tenant_key)",
    _columns(
        ("worker_id", "text", "w.id", "The process's id."),
        ("host", "text", "w.host", "The host's name."),
        ("pid", "integer", "w.pid", "The process number on that host."),
        ("device", "text", "w.device", "The device that it is pinned to."),
        ("device_name", "text", "w.device_name", "What the device is called."),
        ("device_bytes", "integer", "w.device_bytes", "The device's memory."),
        ("engine", "text", "w.engine", "The engine that it was told to use; v_summaries has the one that ran."),
        ("kinds", "JSON", "w.kinds", "The kinds of job that it takes."),
        ("state", "text", "w.state", "What it last said: idle, busy, draining or gone."),
        ("job_id", "text", "j.id", "The job that it works on."),
        ("started_at", "time", "TIME(w.started_at)", "When the process started."),
        ("seen_at", "time", "TIME(w.seen_at)", "When it was last heard of."),
        ("unseen_s", "real", "NOW - w.seen_at", "Seconds since then; a killed worker goes on growing here."),
    ),
)

_SPEED = SqlView(
    "v_speed",
    "One row per model version, generation parameters, engine and device that were measured: what the last chunks took.",
    "FROM models m CROSS JOIN measured_speeds s WHERE TENANT(m.tenant_key) AND s.version_digest = m.digest",
    _columns(
        ("model", "text", _MODEL, "The model version, name@version; all versions with the same files."),
        ("model_digest", "text", "s.model_digest", "The sha256 that names what ran: an adapter's with its base."),
        ("engine", "text", "s.engine", "The engine that ran."),
        ("device_name", "text", "s.device_name", "What the device is called."),
        ("dtype", "text", "s.dtype", "The number format that it computed in."),
        ("precision", "text", "s.precision", "native, float32, bfloat16 or int8, as asked for."),
        ("max_new_tokens", "integer", "s.max_new_tokens", "The limit of a summary's length."),
        ("num_beams", "integer", "s.num_beams", "Beams; 1 is greedy, or sampling."),
        ("do_sample", "boolean", "s.do_sample", "Whether it sampled."),
        ("dialogues_per_s", "real", "s.dialogues / NULLIF(s.seconds, 0)", "Dialogues per second in the engine, by one worker."),
        (
            "tokens_per_s",
            "real",
            "(s.tokens_in + s.tokens_out) / NULLIF(s.seconds, 0)",
            "Tokens read and written per second in the engine, without load and warm-up; null until a second micro-batch.",
        ),
        ("tokens_in_mean", "real", "s.tokens_in / NULLIF(s.dialogues, 0)", "Mean tokens that the model read per dialogue."),
        ("tokens_out_mean", "real", "s.tokens_out / NULLIF(s.dialogues, 0)", "Mean tokens that it wrote per dialogue."),
        ("load_s", "real", "s.load_s", "Seconds that the last load of the model took, conversion included, fetching not."),
        ("warmup_s", "real", "s.warmup_s", "What the first micro-batch after a load last took beyond its work."),
        ("chunks", "integer", "s.chunks", "Chunks measured; about the last 20 decide the speeds."),
        ("measured_at", "time", "TIME(s.measured_at)", "When the last chunk was measured."),
    ),
)

VIEWS = (
    _JOBS, _SUMMARIES, _ERRORS, _SCORES, _ROUGE, _COMPARISONS, _SIDE_BY_SIDE, _EXPERIMENTS, _DATASETS, _MODELS, _METRICS,
    _WORKERS, _SPEED,
)  # fmt: skip


def postgresql_views() -> list[str]:
    """Return the statements that make the views on PostgreSQL.

    A reader sees the tenants in gistmill_private.visible: see reader.py.
    """
    time = r"to_timestamp(\1)"
    visible = rf"\1 IN (SELECT tenant_key FROM {PRIVATE_SCHEMA}.visible)"
    now = "CAST(extract(epoch from clock_timestamp()) AS double precision)"
    return [f"CREATE VIEW {view.name} WITH (security_barrier) AS {_select(view, time, now, visible)}" for view in VIEWS]


def sqlite_views(tenant_key: int | None = None, *, prefix: str = "") -> list[str]:
    """Return the statements that make the views on SQLite.

    Without a tenant they show everything, as does the file itself. With one they are temporary views, under prefixed names,
    of that tenant's rows only.
    """
    kind = "VIEW" if tenant_key is None else "TEMP VIEW"
    visible = "1" if tenant_key is None else rf"\1 = {tenant_key:d}"
    time = r"strftime('%Y-%m-%dT%H:%M:%fZ', \1, 'unixepoch')"
    now = "(julianday('now') - 2440587.5) * 86400.0"
    return [f"CREATE {kind} {prefix}{view.name} AS {_select(view, time, now, visible)}" for view in VIEWS]


def _select(view: SqlView, time: str, now: str, visible: str) -> str:
    columns = ", ".join(f"{column.expression} AS {column.name}" for column in view.columns)
    text = _TIME.sub(time, f"SELECT {columns} {view.source}").replace("NOW", now)
    return _TENANT.sub(visible, text)


def document() -> str:
    """Return docs/reference/views.md."""
    lines = [
        "# SQL views",
        "",
        "<!-- Made from gistmill/db/views.py by `python -m gistmill.admin document-views`; do not edit. -->",
        "",
        "These views are what Gistmill promises to SQL users; the tables below them may change. Read them with"
        ' `gistmill sql "select …"`, with `POST /v1/query`, or with any SQL tool on the database itself.',
        "",
        "Over `gistmill sql` and `/v1/query` they show the rows of one tenant, and nothing else can be read. A tool that opens"
        " the SQLite file, or connects to PostgreSQL as the owner of the tables, sees every tenant.",
        "",
        "To read a part of a large job, put conditions on `job_id` and `row_number`, as in"
        " `where job_id = 'job_…' and row_number < 5`: on PostgreSQL, `order by … limit 5` alone sorts the whole job first.",
        "",
        "Types: `time` is `timestamptz` on PostgreSQL and text in ISO 8601 (UTC) on SQLite; `boolean` is 0 or 1 on SQLite;"
        " `JSON` is `json` on PostgreSQL and text on SQLite.",
    ]
    for view in VIEWS:
        lines += ["", f"## {view.name}", "", view.text, "", "| column | type | what it holds |", "|---|---|---|"]
        lines += [f"| `{column.name}` | {column.type} | {column.text} |" for column in view.columns]
    return "\n".join(lines) + "\n"
