"""What a soak will do: faults and jobs, each with its time, drawn from the seed alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault: its class, when, which seat is the victim, and what its class drew for it."""

    number: int
    name: str
    lane: str
    at_s: float
    seat: int
    parameters: dict[str, float]

    def __str__(self) -> str:
        drawn = " ".join(f"{name}={value:g}" for name, value in self.parameters.items())
        return f"seat {self.seat}" + (f" {drawn}" if drawn else "")


@dataclass(frozen=True)
class PlannedJob:
    """One job to submit: the way it takes, its dialogues, and how it is cut and drawn."""

    name: str
    at_s: float
    over_http: bool
    is_second_tenant: bool
    texts: tuple[str, ...]
    per_chunk: int
    priority: int
    seed: int | None
    asks_again: bool

    @property
    def spec(self) -> dict[str, object]:
        """The fields of the job's spec that are not the same for all."""
        sampling = {} if self.seed is None else {"generation": {"do_sample": True, "seed": self.seed}}
        return {"labels": {"soak": self.name}, "priority": self.priority} | sampling


@dataclass(frozen=True)
class Met:
    """That a fault was met: when it began, when it ended, and whom it hit (0: everybody).

    `seconds` is how long the recovery took where the fault's class measures that itself.
    """

    at: float
    ended_at: float
    pid: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that is drawn from one seed."""

    seed: int
    minutes: float
    database: str
    faults: tuple[Fault, ...]
    jobs: tuple[PlannedJob, ...]
    required: int
    classes: tuple[str, ...]
