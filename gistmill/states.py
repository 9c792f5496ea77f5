"""The states that jobs, chunks, datasets and items can be in. docs/state-machine.md draws the moves between them."""

from __future__ import annotations

from enum import StrEnum


class JobKind(StrEnum):
    """What a job does; there is one queue per kind that workers take."""

    SUMMARIZE = "summarize"
    FINETUNE = "finetune"
    EVALUATE = "evaluate"
    EXPERIMENT = "experiment"


# The others have a result of another kind: a model, scores. A chunk that fails for good fails its job.
KINDS_WITH_ITEMS = frozenset({JobKind.SUMMARIZE})
# An experiment has no chunk: it completes with the jobs that it needs.
WORKED_KINDS = tuple(kind for kind in JobKind if kind != JobKind.EXPERIMENT)
# These run no model: a process of their own takes them, so that they wait for no device.
SCORED_KINDS = frozenset({JobKind.EVALUATE})


class JobState(StrEnum):
    """Where a job is on its way. A pause is a wish beside the state."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True when nothing can change the job any more, save a retry."""
        return self in FINAL_JOB_STATES


FINAL_JOB_STATES = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})
CLAIMABLE_JOB_STATES = frozenset({JobState.QUEUED, JobState.RUNNING})
STOPPED_JOB_STATES = FINAL_JOB_STATES | {JobState.CANCELLING}


class ChunkState(StrEnum):
    """Where a leased piece of a job is. `reserved`: a worker that runs another one will run it next."""

    QUEUED = "queued"
    RESERVED = "reserved"
    RUNNING = "running"
    DONE = "done"


# These have an owner and a lease.
HELD_CHUNK_STATES = (ChunkState.RUNNING, ChunkState.RESERVED)


class DatasetState(StrEnum):
    """Whether a dataset can be used."""

    LOADING = "loading"
    READY = "ready"


class ItemState(StrEnum):
    """How an item ended. `not_run` exists only under a cancelled or failed job."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NOT_RUN = "not_run"
