"""Checkpoints that a resumed run goes on from as if nothing had happened.

Files, in checkpoints/ of a run's work directory:
    checkpoint-<step>/weights.safetensors   the weights that training changes
    checkpoint-<step>/best.safetensors      those of the best evaluation, when the run may stop early
    checkpoint-<step>/state.pt              optimizer, scheduler and random states; read with weights_only=True
    checkpoint-<step>/trainer_state.json    transformers' own state: step and epoch, and so the place in the data
    checkpoint-<step>/journal.jsonl         every event of the curve so far
    checkpoint-<step>/manifest.json         what run it belongs to, and the sha256 of all of the above
    .writing-checkpoint-<step>/             one that was not finished
"""

from __future__ import annotations

import hashlib
import random
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file

from models_store.manifest import sha256_of
from workers.training import files
from workers.training.events import Evaluated, Stepped, from_json, to_json
from workers.training.journal import Point
from workers.training.plan import CHECKPOINTS

log = structlog.get_logger(__name__)

WEIGHTS = "weights.safetensors"
BEST = "best.safetensors"
STATE = "state.pt"
TRAINER_STATE = "trainer_state.json"
JOURNAL = "journal.jsonl"
MANIFEST = "manifest.json"
NAME = re.compile(r"checkpoint-(\d{9})")


@dataclass(frozen=True)
class Snapshot:
    """A run between two steps.

    `is_evaluation_due` says that the evaluation that belongs to this step was not made; `micro_batch` is the most rows that
    fitted into memory at once; `best` is a file of weights.
    """

    step: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    trainer_state: str
    points: Sequence[Point]
    is_evaluation_due: bool
    micro_batch: int
    best: Path | None


class Manifest(BaseModel):
    """What a checkpoint consists of: file names with their sha256, and the digest of the run's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    configuration: str
    is_evaluation_due: bool
    micro_batch: int
    files: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files were checked."""

    directory: Path
    manifest: Manifest

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights that training changes."""
        return load_file(self.directory / WEIGHTS)

    def best(self) -> Path | None:
        """Return the file of the best weights so far, or None."""
        return self.directory / BEST if BEST in self.manifest.files else None

    def state(self) -> dict[str, Any]:
        """Return the states of optimizer, scheduler and random numbers."""
        state: dict[str, Any] = torch.load(self.directory / STATE, map_location="cpu", weights_only=True)
        return state

    def points(self) -> list[Point]:
        """Return the curve up to this step."""
        lines = (self.directory / JOURNAL).read_text(encoding="utf-8").splitlines()
        return [event for event in map(from_json, lines) if isinstance(event, Stepped | Evaluated)]


class CheckpointWriter:
    """Writes the checkpoints of one run and keeps the newest `kept`."""

    def __init__(self, work_dir: Path, *, configuration: str, kept: int) -> None:
        self._directory = work_dir / CHECKPOINTS
        self._configuration = configuration
        self._kept = kept

    def write(self, snapshot: Snapshot) -> tuple[Path, str]:
        """Write a checkpoint, remove those that are too old, and return its directory and digest."""
        target = self._directory / f"checkpoint-{snapshot.step:09d}"
        with files.written_aside(target) as aside:
            _write_parts(aside, snapshot)
            manifest = Manifest(
                step=snapshot.step,
                configuration=self._configuration,
                is_evaluation_due=snapshot.is_evaluation_due,
                micro_batch=snapshot.micro_batch,
                files={path.name: sha256_of(path) for path in sorted(aside.iterdir())},
            )
            text = manifest.model_dump_json(indent=1)
            (aside / MANIFEST).write_text(text, encoding="utf-8")
        self._prune()
        return target, hashlib.sha256(text.encode()).hexdigest()

    def newest(self) -> str | None:
        """Return the name of the newest checkpoint that this run wrote, or None."""
        return max((path.name for path in list_checkpoints(self._directory)), default=None)

    def _prune(self) -> None:
        for path in sorted(list_checkpoints(self._directory))[: -self._kept]:
            shutil.rmtree(path)


def find_newest(work_dirs: Iterable[Path], *, configuration: str) -> Checkpoint | None:
    """Return the valid checkpoint of the highest step among these work directories, or None.

    One that is cut short, changed, or of another configuration is left as it is, logged and passed over. Of equal steps, that
    of the first directory is taken.
    """
    found = [path for work_dir in work_dirs for path in list_checkpoints(work_dir / CHECKPOINTS)]
    for path in sorted(found, key=lambda path: path.name, reverse=True):
        checkpoint = _read(path, configuration)
        if checkpoint is not None:
            return checkpoint
    return None


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the directories of all checkpoints here, valid or not."""
    return [path for path in directory.iterdir() if NAME.fullmatch(path.name)] if directory.is_dir() else []


def random_states() -> dict[str, Any]:
    """Return the states of all sources of random numbers, as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random(states: dict[str, Any]) -> None:
    """Set all sources of random numbers to these states."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def _write_parts(directory: Path, snapshot: Snapshot) -> None:
    save_file({name: weight.contiguous() for name, weight in snapshot.weights.items()}, directory / WEIGHTS)
    if snapshot.best is not None:
        files.share(snapshot.best, directory / BEST)
    state = {"optimizer": snapshot.optimizer, "scheduler": snapshot.scheduler, "random": random_states()}
    torch.save(state, directory / STATE)
    (directory / TRAINER_STATE).write_text(snapshot.trainer_state, encoding="utf-8")
    with (directory / JOURNAL).open("w", encoding="utf-8") as journal:
        journal.writelines(f"{to_json(point)}\n" for point in snapshot.points)


def _read(directory: Path, configuration: str) -> Checkpoint | None:
    """Return the checkpoint when all of it is there, unchanged and of this configuration; else log why not."""
    try:
        manifest = Manifest.model_validate_json((directory / MANIFEST).read_bytes())
        reason = _find_fault(directory, manifest, configuration)
    except (OSError, ValidationError) as error:
        reason = f"it cannot be read ({type(error).__name__})"
    if reason is None:
        return Checkpoint(directory, manifest)
    log.warning("checkpoint_skipped", directory=str(directory), reason=reason)
    return None


def _find_fault(directory: Path, manifest: Manifest, configuration: str) -> str | None:
    if manifest.configuration != configuration:
        return "it belongs to another configuration"
    broken = [name for name, digest in manifest.files.items() if sha256_of(directory / name) != digest]
    return f"{broken[0]} does not have the digest that the manifest names" if broken else None
