"""What users read back: the shapes that the api answers with and the client understands."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

# T5's positions are relative: it reads on behind this length, at which it was trained, but less surely.
TRAINED_TOKENS = 512


class View(BaseModel):
    """A shape that grows: a client ignores fields that a newer server adds."""

    # Each is built when it is first used: a command uses few of them, and every command imports them all.
    model_config = ConfigDict(extra="ignore", defer_build=True)


class Counts(View):
    """The counts of a job. items = succeeded + failed + not_run once it ended; generated + shared = succeeded."""

    items: int = 0
    distinct: int = Field(0, description="Distinct dialogues among the items.")
    generated: int = Field(0, description="Items whose summary this job generated.")
    shared: int = Field(0, description="Items that point at a summary that was made already.")
    succeeded: int = 0
    failed: int = 0
    not_run: int = 0
    truncated: int = Field(0, description="Items whose prompt was cut.")
    cut_off: int = Field(0, description="Items whose summary reached max_new_tokens.")


class JobView(View):
    """A job as it stands."""

    id: str
    kind: str
    state: str
    paused: bool = False
    attempt: int = Field(1, description="One more after each retry.")
    retry_of: str | None = Field(None, description="The job whose failed rows this one takes, with another spec.")
    dataset: str
    select: str | None = None
    model: str
    prompt: str
    generation: dict[str, Any] = {}
    priority: int = 0
    labels: dict[str, str] = {}
    counts: Counts = Counts()
    chunks_left: int = 0
    waits_for: str | None = Field(None, description="Why nothing runs, when a reason is known.")
    training: dict[str, Any] | None = Field(None, description="Finetune jobs: parameters, steps, the last loss and speed.")
    evaluation: dict[str, Any] | None = Field(None, description="Evaluate jobs: cases, and how many have ended.")
    produced: str | None = Field(None, description="Finetune jobs: the model version that was made, as a reference.")
    error: dict[str, Any] | None = None
    warnings: list[str] = []
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    dialogues_per_s: float | None = Field(None, description="Distinct dialogues that reached an end per second of running.")


class MetricView(View):
    """A point of a training curve: an optimizer step, or an evaluation after one."""

    cursor: str = Field(description="Ask for `after` this to go on behind it.")
    kind: str = Field(description="train or eval")
    step: int = Field(description="Optimizer steps done.")
    epoch: float
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    samples_per_s: float | None = None
    memory_bytes: int | None = None
    rouge1: float | None = None
    rouge2: float | None = None
    rougel: float | None = None
    rougelsum: float | None = None


class PromptView(View):
    """A version of a prompt."""

    name: str
    version: int
    digest: str
    template: str = Field(description="With {dialogue} where the dialogue stands.")
    is_built_in: bool = False
    examples: list[dict[str, Any]] = Field([], description="The rows that it shows: row, id, dialogue, summary.")
    dataset: str | None = Field(None, description="The dataset that they come from.")
    created_at: datetime | None = None


class RenderedPrompt(View):
    """What a model reads for a row."""

    prompt: str = Field(description="name@version")
    row: int
    id: str
    text: str
    tokens: list[str] | None = None
    token_ids: list[int] | None = None
    decoded: str | None = Field(None, description="The text that the tokens mean: the round trip.")
    budget: int | None = Field(None, description="Most tokens of a prompt.")


Levels = dict[str, tuple[float, float]]


class MeanView(View):
    """The mean of a measure over the cases, 0 to 1, with its interval; no interval for a single case."""

    cases: int
    precision: float | None = None
    recall: float | None = None
    fmeasure: float
    low: float | None = Field(None, description="Lower limit at 95 %.")
    high: float | None = Field(None, description="Upper limit at 95 %.")
    levels: Levels = Field({}, description="Limits by level: 90, 95 and 99.")


class CostView(View):
    """What a tuned model cost."""

    training_s: float | None = Field(None, description="Seconds of the finetune job from its first claim to its end.")
    memory_bytes: int | None = Field(None, description="Most memory that the training used.")
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    artifact_bytes: int | None = Field(None, description="Bytes of the model's or adapter's weights.")


class SystemView(View):
    """One of those that are compared."""

    name: str
    model: str | None = Field(None, description="The model version that wrote its summaries.")
    prompt: str | None = None
    generation: dict[str, Any] = {}
    job: str | None = Field(None, description="The job that made its summaries.")
    column: str | None = Field(None, description="The column that held its summaries.")
    cost: CostView | None = None
    empty: int = Field(0, description="Scored cases whose summary is empty.")
    scores: dict[str, MeanView] = Field({}, description="By measure, such as rougeLsum.")


class PairView(View):
    """Two systems on one measure: the system minus the baseline, 0 to 1."""

    measure: str
    system: str
    baseline: str
    cases: int
    delta: float
    low: float | None = None
    high: float | None = None
    levels: Levels = {}
    p_value: float | None = Field(None, description="Two-sided, approximate randomization.")
    p_adjusted: float | None = Field(None, description="After Holm, when more than two are compared.")
    wins: int
    ties: int
    losses: int


class ComparisonView(View):
    """An evaluation as it stands."""

    id: str = Field(description="The evaluate job.")
    state: str
    dataset: str
    dataset_digest: str
    select: str | None = None
    baseline: str
    measures: list[str] = []
    cases: int = Field(0, description="Distinct dialogues of the job.")
    ended: int = Field(0, description="Those that were scored or left out so far.")
    counts: dict[str, int] = Field({}, description="scored, and what was left out: failed, example, trained, no_reference.")
    systems: list[SystemView] = []
    pairs: list[PairView] = []
    signature: str = ""
    notes: list[str] = Field([], description="What a reader of the figures must know.")
    error: dict[str, Any] | None = None
    created_at: datetime | None = None
    finished_at: datetime | None = None


class CaseView(View):
    """A case side by side: its dialogue, references, and every system's summary with its scores."""

    cursor: str = Field(description="Ask for `after` this to go on behind it.")
    row: int
    id: str
    outcome: str = Field(description="scored, failed, example, trained or no_reference")
    dialogue: str
    references: list[str] = []
    summaries: dict[str, str | None] = {}
    scores: dict[str, dict[str, float]] = Field({}, description="F-measure by system and measure.")
    delta: float | None = Field(None, description="The system asked for minus the baseline, on the measure asked for.")


class StepView(View):
    """A job of an experiment."""

    number: int
    name: str
    job: str
    kind: str
    state: str
    done: int = Field(0, description="Items, optimizer steps or cases that have ended.")
    total: int | None = Field(None, description="How many there are, once that is known.")
    failed: int = Field(0, description="Items that failed.")
    produced: str | None = Field(None, description="Trainings: the model version that was made.")
    waits_for: str | None = Field(None, description="Why nothing runs, when a reason is known.")
    error: dict[str, Any] | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class ExperimentView(View):
    """An experiment as it stands. It completes with its steps."""

    id: str = Field(description="The experiment's job.")
    name: str
    state: str
    paused: bool = False
    model: str = Field(description="The base, name@version.")
    dataset: str
    dataset_digest: str
    test: str = Field(description="The dataset that is tested on.")
    test_digest: str
    spec: dict[str, Any] = Field(description="What was asked for, with the rows that were chosen.")
    steps: list[StepView] = []
    comparisons: dict[str, str] = Field({}, description="Evaluate jobs by name: prompts, generation, models.")
    error: dict[str, Any] | None = None
    warnings: list[str] = []
    created_at: datetime | None = None
    finished_at: datetime | None = None


class DatasetView(View):
    """A dataset as it stands."""

    id: str
    name: str
    state: str
    digest: str
    rows: int
    dialogues: int = Field(description="Distinct dialogues.")
    format: str
    created_at: datetime | None = None
    warnings: list[str] = []


class ModelView(View):
    """A model version. An adapter's figures are its own; its architecture is its base's."""

    name: str
    version: int
    digest: str
    kind: str = Field("model", description="model or adapter")
    base: str | None = Field(None, description="The model that an adapter belongs to, name@version.")
    base_digest: str | None = None
    architecture: str
    parameters: int
    weight_bytes: int
    dtype: str
    source: str
    aliases: list[str] = []
    job: str | None = Field(None, description="The job that made it.")
    lineage: dict[str, Any] | None = Field(None, description="What a trained version came from.")
    created_at: datetime | None = None
    removed_at: datetime | None = Field(None, description="Since when no new job can use it.")


class WorkerView(View):
    """A worker process."""

    id: str
    host: str
    pid: int
    device: str
    device_name: str
    engine: str
    kinds: list[str]
    state: str = Field(description="idle, busy, draining or gone")
    job: str | None = None
    model: str | None = None
    started_at: datetime | None = None
    seen_at: datetime | None = None


class ResultView(View):
    """One summarized item."""

    cursor: str = Field(description="Ask for `after` this to go on behind it.")
    row: int
    id: str
    summary: str
    finish_reason: str
    tokens_in: int
    tokens_out: int
    truncated: bool = False
    shared: bool = False


class ItemErrorView(View):
    """One failed item."""

    cursor: str
    row: int
    id: str
    code: str
    message: str


class SteerRequest(BaseModel):
    """Which jobs to steer, and how. `preview` counts them and changes nothing."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["cancel", "pause", "resume", "retry"]
    where: list[str] = Field(default_factory=list, max_length=32, description="NAME=VALUE, for example label.team=support.")
    state: str | None = None
    up_to: str | None = Field(None, max_length=100, description="Leave out jobs submitted after this one.")
    failed: bool = Field(False, description="Retry: leave out jobs with items that were never run.")
    retryable: bool = Field(False, description="Retry: only items whose error may not happen again.")
    preview: bool = False


class RetryRequest(BaseModel):
    """What of a job to take up again. With `set` its failed rows become a new job, with these changes to the spec."""

    model_config = ConfigDict(extra="forbid")

    failed: bool = False
    retryable: bool = False
    set: dict[str, Any] = Field(default_factory=dict, max_length=32)


class RefusalView(View):
    """A job that was left as it is."""

    job: str
    code: str
    message: str


class SteerView(View):
    """What came of steering a selection."""

    matched: int = Field(description="Jobs that the selection names and the action would change.")
    up_to: str | None = Field(None, description="The newest of them.")
    changed: int = 0
    refused: int = Field(0, description="Jobs that had moved on and were left as they are.")
    refusals: list[RefusalView] = Field([], description="The first of those.")


class Page(View, Generic[T]):
    """A page of a list."""

    data: list[T]
    has_more: bool = False
    next: str | None = None


class QueryView(View):
    """The answer to a SQL query."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool = Field(False, description="True when more rows than allowed were left out.")


class TokensIn(View):
    """Tokens of the prompts of distinct dialogues, special tokens included, before anything is cut."""

    total: int = Field(description="Of all prompts; from the mean of a sample when not all were counted.")
    p50: int
    p95: int
    max: int = Field(description="Of those counted.")
    counted: int = Field(description="Prompts that were counted: all, or a sample spread evenly over lengths.")
    is_sample: bool
    over_limit_rows: int = Field(description="Rows whose prompt exceeds the limit: they fail, or are cut.")
    over_trained_rows: int = Field(description=f"Rows whose prompt exceeds {TRAINED_TOKENS} tokens.")


class SpeedView(View):
    """What was measured on one kind of device."""

    engine: str
    device_name: str
    tokens_per_s: float = Field(description="Tokens read and written per second in the engine, by one worker.")
    load_s: float | None = None
    warmup_s: float | None = None
    measured_at: datetime | None = None


class EstimateView(View):
    """What a job would do, and how long it would take. Nothing was submitted."""

    dataset: str
    model: str
    prompt: str
    rows: int
    distinct: int = Field(description="Distinct dialogues among the rows.")
    stored: int = Field(description="Summaries that exist already and are not made again.")
    to_generate: int = Field(description="Summaries that the model has to write.")
    limit_tokens: int = Field(description="Most tokens of a prompt.")
    on_overflow: str
    tokens_in: TokensIn | None = Field(None, description="Null when they could not be counted; a warning says why.")
    chunks: int
    live_workers: int = Field(description="Live workers that write summaries; when there is none, the time is that of one.")
    expected_s: float | None = Field(None, description="Seconds from the first chunk to the last, load and warm-up apart.")
    basis: str = Field(description="What the expected time rests on.")
    speeds: list[SpeedView] = []
    warnings: list[str] = []
