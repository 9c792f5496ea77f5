"""Every error that Gistmill raises on purpose.

GistmillError
├── InvalidInput            the request cannot be carried out as written
│   ├── InvalidDataset      rows or columns of a dataset are wrong; `details` name the lines
│   ├── InvalidSpec         a job's parameters are wrong; `details` name the fields
│   ├── InvalidSelection    a row selection does not parse or is out of range
│   ├── InvalidName         a name has characters that names may not have
│   └── QueryRefused        a SQL query asks for more than it may
│       └── QueryTimeout        or for longer
├── NotFound
│   ├── UnknownModel, UnknownPrompt, UnknownJob, UnknownDataset, UnknownComparison
├── Conflict
│   ├── DataMismatch            what is to be paired is not about the same data
│   ├── NameTaken, AlreadyRunning, JobIsOver, JobNotOver, NothingToRetry, DatasetLoading
│   ├── IdempotencyMismatch     the same key came with another body
│   └── IdempotencyInProgress   the first request with this key has not ended
├── NotAllowed
│   ├── Unauthorized, ForeignHost
├── ModelError              a checkpoint cannot be used; holds for the whole job
│   ├── ModelUnreadable, UnsafeModel, DigestMismatch, UnsupportedModel
│   └── TrainingFailed      or cannot be tuned as asked
│       ├── UnknownTargets, LossNotFinite, DiskTooSmall, TrainingOutOfMemory
├── EvaluationFailed        scores cannot be had as asked; holds for the whole job
│   ├── UnknownMetric, MetricFailed, NothingToScore, DependencyFailed
├── ItemError               holds for one item; the job goes on
│   ├── InputTooLong, DeviceOutOfMemory, GenerationFailed, WorkerCrashed, ChunkFailed
├── Unavailable             retrying is safe
│   ├── StoreUnavailable, QueueUnavailable, ApiUnreachable, ModelUnavailable
└── Stopped                 control flow in a worker, never shown to a user
    ├── LeaseLost, JobEnded, JobPaused, Draining, Stalled
        ├── DeviceTooSmall, DeviceFull
"""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Detail:
    """One thing that is wrong, and where: a line of a file or a JSON pointer into a request."""

    code: str
    message: str
    line: int | None = None
    pointer: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that are set, as JSON values."""
        return {key: value for key, value in asdict(self).items() if value is not None}


class GistmillError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, details: tuple[Detail, ...] | list[Detail] = (), **fields: Any) -> None:
        self.message = message or inspect.cleandoc(type(self).__doc__ or "").split("\n")[0]
        self.details = tuple(details)
        self.fields = fields
        super().__init__(self.message)


class InvalidInput(GistmillError):
    """The request cannot be carried out as written."""

    code, http_status = "invalid_input", 422


class InvalidDataset(InvalidInput):
    """The dataset has rows or columns that cannot be used."""

    code = "invalid_dataset"


class InvalidSpec(InvalidInput):
    """The job has parameters that cannot be used."""

    code = "invalid_spec"


class InvalidSelection(InvalidInput):
    """The row selection cannot be used. Write [0:10], [::100] or [10,20,30]."""

    code = "invalid_selection"


class InvalidName(InvalidInput):
    """The name may hold only letters, digits, '.', '_' and '-', and begins with a letter or digit."""

    code = "invalid_name"


class QueryRefused(InvalidInput):
    """The query was refused: only one SELECT over the documented views is allowed."""

    code = "query_refused"


class QueryTimeout(QueryRefused):
    """The query took longer than allowed. Ask for less, or for one job at a time."""

    code = "query_timeout"


class NotFound(GistmillError):
    """There is no such thing."""

    code, http_status, exit_code = "not_found", 404, 4


class UnknownModel(NotFound):
    """There is no model of this name. List them with: gistmill models list"""

    code = "unknown_model"


class UnknownPrompt(NotFound):
    """There is no prompt of this name."""

    code = "unknown_prompt"


class UnknownJob(NotFound):
    """There is no job of this id. List them with: gistmill jobs list"""

    code = "unknown_job"


class UnknownDataset(NotFound):
    """There is no dataset of this name or id. List them with: gistmill datasets list"""

    code = "unknown_dataset"


class UnknownComparison(NotFound):
    """There is no such evaluation. List them with: gistmill compare list"""

    code = "unknown_comparison"


class Conflict(GistmillError):
    """The state of things does not allow this now."""

    code, http_status, exit_code = "conflict", 409, 6


class DataMismatch(Conflict):
    """The summaries or references to be paired are not about the same data."""

    code = "data_mismatch"


class NameTaken(Conflict):
    """This name is already used for something else."""

    code = "name_taken"


class AlreadyRunning(Conflict):
    """A Gistmill stack already runs on this data directory."""

    code = "already_running"


class JobIsOver(Conflict):
    """The job has ended, so nothing about it can be changed."""

    code = "job_is_over"


class JobNotOver(Conflict):
    """The job has not ended. Wait until it ends, or cancel it first."""

    code = "job_not_over"


class NothingToRetry(Conflict):
    """No item of the job is missing its summary."""

    code = "nothing_to_retry"


class DatasetLoading(Conflict):
    """The dataset is still being loaded. Try again in a moment."""

    code, retryable = "dataset_loading", True


class IdempotencyMismatch(Conflict):
    """This Idempotency-Key was used before with another request body. Use a new key."""

    code, http_status = "idempotency_mismatch", 422


class IdempotencyInProgress(Conflict):
    """A request with this Idempotency-Key is being carried out. Try again in a moment."""

    code, retryable = "idempotency_in_progress", True


class NotAllowed(GistmillError):
    """This is not allowed."""

    code, http_status, exit_code = "not_allowed", 403, 5


class Unauthorized(NotAllowed):
    """The token is missing or wrong. Set GISTMILL_API__TOKEN or GISTMILL_API__TOKEN_FILE."""

    code, http_status = "unauthorized", 401


class ForeignHost(NotAllowed):
    """The Host header names a host that this server does not serve. Add it to GISTMILL_API__HOSTS."""

    code, http_status = "foreign_host", 421


class ModelError(GistmillError):
    """The model cannot be used."""

    code, http_status = "model_error", 422


class ModelUnreadable(ModelError):
    """The model's files are missing or cannot be read."""

    code = "model_unreadable"


class UnsafeModel(ModelError):
    """The model holds pickled data, which can run code when it is read."""

    code = "unsafe_model"


class DigestMismatch(ModelError):
    """A file of the model does not have the digest that its manifest names."""

    code = "digest_mismatch"


class UnsupportedModel(ModelError):
    """The model is not an encoder-decoder text model, or needs something that is not allowed."""

    code = "unsupported_model"


class TrainingFailed(ModelError):
    """The training cannot go on, and would end in the same way again."""

    code = "training_failed"


class UnknownTargets(TrainingFailed):
    """The model has no modules of these names to adapt."""

    code = "unknown_targets"


class LossNotFinite(TrainingFailed):
    """The loss is not a finite number any more. Try a smaller --learning-rate."""

    code = "loss_not_finite"


class DiskTooSmall(TrainingFailed):
    """The disk has no room for the checkpoints of this training."""

    code = "disk_full"


class TrainingOutOfMemory(TrainingFailed):
    """The device has no memory for a batch of one row. Try --gradient-checkpointing or shorter inputs."""

    code = "training_out_of_memory"


class EvaluationFailed(GistmillError):
    """The evaluation cannot go on, and would end in the same way again."""

    code, http_status = "evaluation_failed", 422


class UnknownMetric(EvaluationFailed):
    """There is no metric of this name. The operator puts modules into GISTMILL_WORKER__METRICS_DIR."""

    code = "unknown_metric"


class MetricFailed(EvaluationFailed):
    """The metric module raised an error."""

    code = "metric_failed"


class NothingToScore(EvaluationFailed):
    """No case is left that can be scored."""

    code = "nothing_to_score"


class DependencyFailed(EvaluationFailed):
    """A job that this one needs has failed or was cancelled. Retry that one, and this one goes on."""

    code = "dependency_failed"


class ItemError(GistmillError):
    """One item failed."""

    code, http_status = "item_failed", 422


class InputTooLong(ItemError):
    """The prompt has more tokens than allowed. Raise --max-input-tokens or use --on-overflow truncate."""

    code = "input_too_long"


class DeviceOutOfMemory(ItemError):
    """The device ran out of memory on this item alone."""

    code, retryable = "out_of_memory", True


class GenerationFailed(ItemError):
    """The model failed on this item."""

    code = "generation_failed"


class WorkerCrashed(ItemError):
    """The worker ended three times while it worked on this dialogue alone."""

    code, retryable = "worker_crashed", True


class ChunkFailed(ItemError):
    """The chunk of this item failed more often than its retries allow."""

    code, retryable = "chunk_failed", True


class Unavailable(GistmillError):
    """A service does not answer. Trying again is safe."""

    code, http_status, retryable = "unavailable", 503, True


class StoreUnavailable(Unavailable):
    """The database does not answer. Trying again is safe."""

    code = "store_unavailable"


class QueueUnavailable(Unavailable):
    """Redis does not answer. Trying again is safe."""

    code = "queue_unavailable"


class ApiUnreachable(Unavailable):
    """The Gistmill server does not answer. Is it running? Start one with: gistmill up"""

    code = "api_unreachable"


class ModelUnavailable(Unavailable):
    """The model could not be fetched. Trying again is safe."""

    code = "model_unavailable"


class Stopped(GistmillError):
    """The work was told to stop."""

    code, retryable = "stopped", True


class LeaseLost(Stopped):
    """Another worker owns the chunk now, or nobody does: write nothing."""

    code, http_status = "lease_lost", 409


class JobEnded(Stopped):
    """The job was cancelled or has failed: stop its chunk."""

    code = "job_ended"


class JobPaused(Stopped):
    """The job was paused: give the chunk back."""

    code = "job_paused"


class DeviceTooSmall(Stopped):
    """The model's weights do not fit this device's whole memory: a larger device must take the job."""

    code = "device_too_small"


class DeviceFull(Stopped):
    """The device has no room for the model at the moment: give the chunk back for a while."""

    code = "device_full"


class Draining(Stopped):
    """The worker was asked to end: give the chunk back."""

    code = "draining"


class Stalled(Stopped):
    """The work made no progress within its limit: give the chunk back."""

    code = "stalled"
