"""What a training child tells its parent: one JSON object per line. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Started:
    """Training begins, after `resumed_step` steps that earlier runs made. Steps are optimizer steps in every event."""

    trainable_parameters: int
    total_parameters: int
    total_steps: int
    resumed_step: int
    batch_size: int
    gradient_accumulation: int


@dataclass(frozen=True)
class Stepped:
    """One optimizer step was made. `loss` is the mean over target tokens, pads left out; `epoch` is a fraction."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    samples_per_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Evaluated:
    """The model after this step was scored on the validation rows; ROUGE lies in [0, 1]."""

    step: int
    epoch: float
    loss: float | None
    rouge1: float | None
    rouge2: float | None
    rougeL: float | None  # noqa: N815 - the measure's own name
    rougeLsum: float | None  # noqa: N815 - the measure's own name


@dataclass(frozen=True)
class Working:
    """Work goes on between two steps: rows are read, or the model is being scored. At most once in five seconds."""


@dataclass(frozen=True)
class Checkpointed:
    """A checkpoint of this step is whole and on disk; `digest` stands for its content."""

    step: int
    directory: str
    digest: str


@dataclass(frozen=True)
class Finished:
    """Training is over and the result lies in `directory`. Final."""

    step: int
    directory: str


@dataclass(frozen=True)
class Halted:
    """The child was asked to stop; the checkpoint in `directory` goes on from here. Final."""

    step: int
    directory: str


@dataclass(frozen=True)
class Failed:
    """Training cannot go on, and the same plan would fail again. Final."""

    code: str
    message: str


Event = Started | Stepped | Evaluated | Working | Checkpointed | Finished | Halted | Failed
Ending = Finished | Halted | Failed
KINDS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (Started, Stepped, Evaluated, Working, Checkpointed, Finished, Halted, Failed)
}


def to_json(event: Event) -> str:
    """Return the event as one line of JSON, without its end of line."""
    return json.dumps({"event": type(event).__name__, **asdict(event)}, allow_nan=False)


def from_json(line: str | bytes) -> Event:
    """Return the event of a line.

    Raises:
        ValueError, KeyError, TypeError: the line holds no event.
    """
    fields = json.loads(line)
    return KINDS[fields.pop("event")](**fields)
