"""A run from its plan to its final event."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gistmill.errors import GistmillError
from workers.engine.checkpoint import LoadedModel, load_model
from workers.engine.transformers import is_out_of_memory
from workers.training.checkpoint import Checkpoint, CheckpointWriter, find_newest
from workers.training.configuration import configuration_digest
from workers.training.data import Example, Row, encode, pad_token, read_rows
from workers.training.events import Ending, Event, Failed, Finished, Halted, Started
from workers.training.failures import DiskFull, Halt, TrainingOutOfMemory
from workers.training.journal import Journal
from workers.training.plan import TrainingPlan
from workers.training.preparing import count_parameters, precision_of, prepare, restore_weights
from workers.training.pulse import Pulse
from workers.training.result import publish
from workers.training.room import check_room, is_disk_full
from workers.training.scoring import Evaluator
from workers.training.timetable import Schedule
from workers.training.trainer import StepTrainer, Surroundings

log = structlog.get_logger(__name__)

# The notebook's batch on a CPU, where larger ones are no faster; a GPU is not busy with that.
BATCH_SIZES = {"cpu": 8, "cuda": 32}

Send = Callable[[Event], None]
ShouldStop = Callable[[], bool]


def run(plan: TrainingPlan, send: Send, should_stop: ShouldStop) -> Ending:
    """Train by the plan, or go on where an earlier run of it was ended, and return how it ended."""
    try:
        return carry_out(prepare_run(plan, send, should_stop), plan, send)
    except Halt as halt:
        return Halted(halt.step, halt.directory)
    except GistmillError as error:
        return Failed(error.code, error.message)
    except (OSError, SafetensorError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return Failed(TrainingOutOfMemory.code, "The device has no memory for the model and its optimizer. Try LoRA.")
        if is_disk_full(error, free_bytes=shutil.disk_usage(plan.work_dir).free):
            return Failed(DiskFull.code, "The disk became full during the run. Make room, or keep fewer checkpoints.")
        raise


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to begin."""

    model: Any
    trainer: StepTrainer
    journal: Journal
    schedule: Schedule
    configuration: str


def prepare_run(plan: TrainingPlan, send: Send, should_stop: ShouldStop) -> PreparedRun:
    """Load the base and the rows and check what can be checked before the first step.

    Raises:
        ModelError: the base cannot be read.
        TrainingFailed: rows, targets or disk do not allow the run.
    """
    if plan.threads:
        torch.set_num_threads(plan.threads)
    pulse = Pulse(send, should_stop)
    plan.work_dir.mkdir(parents=True, exist_ok=True)
    rows = read_rows(plan.train_file)
    loaded = load_model(plan.base_dir, device=plan.device, precision=precision_of(plan))
    model = prepare(loaded.model, plan)
    check_room(model, plan)
    effective_batch = micro_batch(plan) * plan.gradient_accumulation
    configuration = configuration_digest(plan, effective_batch=effective_batch)
    journal = Journal(send, metric=plan.early_stop_metric, patience=plan.early_stop_patience)
    schedule = Schedule.of(plan, rows=len(rows), effective_batch=effective_batch)
    writer = CheckpointWriter(plan.work_dir, configuration=configuration, kept=plan.kept_checkpoints)
    trainer = StepTrainer(
        model,
        plan,
        examples=_encode(rows, loaded, plan, pulse),
        pad=pad_token(loaded),
        effective_batch=effective_batch,
        micro_batch=micro_batch(plan),
        schedule=schedule,
        around=Surroundings(send, pulse.should_stop, journal, writer, _make_evaluator(plan, loaded, pulse)),
    )
    return PreparedRun(model, trainer, journal, schedule, configuration)


def carry_out(prepared: PreparedRun, plan: TrainingPlan, send: Send) -> Ending:
    """Train to the end, from the newest checkpoint that belongs to the run.

    Raises:
        Halt: the parent asked to stop.
        TrainingFailed: training cannot go on.
    """
    checkpoint = find_newest((plan.work_dir, *plan.resume_dirs), configuration=prepared.configuration)
    step = 0 if checkpoint is None else checkpoint.manifest.step
    send(_started(prepared, plan, checkpoint))
    if checkpoint is not None:
        _go_on_from(checkpoint, prepared)
    if step < prepared.schedule.total_steps and not prepared.journal.is_exhausted():
        prepared.trainer.run_to_the_end()
        step = prepared.trainer.state.global_step
    _take_best(prepared, plan)
    return Finished(step, str(publish(prepared.model, plan)))


def micro_batch(plan: TrainingPlan) -> int:
    """Return how many rows to compute at once, until memory runs out."""
    return plan.batch_size or BATCH_SIZES[plan.device]


def _encode(rows: Sequence[Row], loaded: LoadedModel, plan: TrainingPlan, pulse: Pulse) -> list[Example]:
    limits = {"max_input_tokens": plan.max_input_tokens, "max_target_tokens": plan.max_target_tokens}
    return encode(rows, loaded, tick=pulse.beat, **limits)


def _make_evaluator(plan: TrainingPlan, loaded: LoadedModel, pulse: Pulse) -> Evaluator | None:
    if plan.validation_file is None:
        return None
    rows = read_rows(plan.validation_file)
    return Evaluator(
        loaded,
        rows=rows,
        examples=_encode(rows, loaded, plan, pulse),
        most_input_tokens=plan.max_input_tokens,
        most_new_tokens=plan.max_target_tokens,
    )


def _started(prepared: PreparedRun, plan: TrainingPlan, checkpoint: Checkpoint | None) -> Started:
    trainable, total = count_parameters(prepared.model)
    rows = micro_batch(plan) if checkpoint is None else min(micro_batch(plan), checkpoint.manifest.micro_batch)
    return Started(
        trainable_parameters=trainable,
        total_parameters=total,
        total_steps=prepared.schedule.total_steps,
        resumed_step=0 if checkpoint is None else checkpoint.manifest.step,
        batch_size=rows,
        gradient_accumulation=-(-micro_batch(plan) * plan.gradient_accumulation // rows),
    )


def _go_on_from(checkpoint: Checkpoint, prepared: PreparedRun) -> None:
    log.info("training_resumed", step=checkpoint.manifest.step)
    prepared.journal.replay(checkpoint.points())
    restore_weights(prepared.model, checkpoint.weights())
    prepared.trainer.go_on_from(checkpoint)
    if checkpoint.manifest.is_evaluation_due:
        prepared.trainer.catch_up(checkpoint)


def _take_best(prepared: PreparedRun, plan: TrainingPlan) -> None:
    """Go back to the weights of the best evaluation when the run was to stop early; the last ones are worse or equal."""
    best = prepared.journal.best()
    if plan.early_stop_patience is not None and best is not None:
        restore_weights(prepared.model, load_file(prepared.trainer.best_file))
        log.info("best_weights_taken", step=best.step)
