"""What users read back: the shapes that the api answers with and the client understands."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


class View(BaseModel):
    """A shape that grows: a client ignores fields that a newer server adds."""

    model_config = ConfigDict(extra="ignore")


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
