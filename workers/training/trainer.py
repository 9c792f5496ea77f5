"""transformers' Seq2SeqTrainer with our batches, our checkpoints and our reports.

One batch of the data loader is one optimizer step; it is computed in micro-batches that fit into memory, so a lack of memory
changes neither the number of steps nor which rows share one. transformers' own accumulation was rejected: its loop cannot cut
a batch anew, and with T5, whose loss ignores the number of items it is given, it adds up losses without dividing them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, TrainerState
from transformers.trainer_callback import PrinterCallback

from workers.engine.transformers import is_out_of_memory
from workers.training import files
from workers.training.arguments import training_arguments
from workers.training.checkpoint import TRAINER_STATE, Checkpoint, CheckpointWriter, Snapshot, restore_random
from workers.training.data import Collator, Example, micro_batches
from workers.training.events import Checkpointed, Evaluated, Event, Stepped
from workers.training.failures import Halt, LossNotFinite, TrainingOutOfMemory
from workers.training.grouping import EpochLoader, LengthGroupedBatches
from workers.training.journal import Journal
from workers.training.memory import free_memory, peak_memory_bytes
from workers.training.plan import TrainingPlan
from workers.training.preparing import trainable_weights
from workers.training.scoring import Evaluator
from workers.training.timetable import Schedule, Timetable

log = structlog.get_logger(__name__)

BEST_FILE = "best.safetensors"


@dataclass
class Surroundings:
    """What a trainer reports to and takes its orders from."""

    send: Callable[[Event], None]
    should_stop: Callable[[], bool]
    journal: Journal
    writer: CheckpointWriter
    evaluator: Evaluator | None


class StepTrainer(Seq2SeqTrainer):
    """Trains step by step, and reports each. `micro_batch` is the most rows that are computed at once."""

    # Never None once training runs, unlike what the base class declares.
    model: Any
    optimizer: Any
    lr_scheduler: Any
    train_dataset: Any

    def __init__(
        self,
        model: Any,
        plan: TrainingPlan,
        *,
        examples: Sequence[Example],
        pad: int,
        effective_batch: int,
        micro_batch: int,
        schedule: Schedule,
        around: Surroundings,
    ) -> None:
        self.plan = plan
        self.around = around
        self.micro_batch = micro_batch
        self.resumed: Checkpoint | None = None
        self.is_evaluation_due = False
        self._effective_batch = effective_batch
        self._rows_since_report = 0
        self._reported_at = 0.0
        self._step_loss = torch.zeros(())
        self._random_states: dict[str, Any] = {}
        super().__init__(
            model=model,
            args=training_arguments(plan, effective_batch=effective_batch, total_steps=schedule.total_steps),
            data_collator=Collator(pad),
            train_dataset=examples,
            callbacks=[Timetable(plan, schedule, around.should_stop)],
        )
        self.remove_callback(PrinterCallback)

    @property
    def best_file(self) -> Path:
        """Where the weights of the best evaluation are, when the run may stop early."""
        return self.plan.work_dir / BEST_FILE

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Let `run_to_the_end` begin with this checkpoint, whose weights are in the model by now."""
        self.resumed = checkpoint
        self.micro_batch = min(self.micro_batch, checkpoint.manifest.micro_batch)
        best = checkpoint.best()
        if best is not None:
            files.share(best, self.best_file)

    def run_to_the_end(self) -> None:
        """Train until the last step.

        Raises:
            Halt: the parent asked to stop; a checkpoint is there.
            LossNotFinite, TrainingOutOfMemory: training cannot go on.
        """
        self._reported_at = time.monotonic()
        self.train(resume_from_checkpoint=None if self.resumed is None else str(self.resumed.directory))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of one optimizer step each."""
        plan = self.plan
        lengths = [len(example.tokens) + len(example.target) for example in self.train_dataset]
        return EpochLoader(
            self.train_dataset,
            batch_sampler=LengthGroupedBatches(lengths, batch_size=self._effective_batch, seed=plan.seed),
            collate_fn=self.data_collator,
            num_workers=plan.dataloader_workers,
            pin_memory=plan.device == "cuda",
            # A loader without a generator of its own draws from the one that dropout uses.
            generator=torch.Generator().manual_seed(plan.seed),
        )

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Add up the gradients of one batch and return its loss, the mean over its target tokens.

        Raises:
            TrainingOutOfMemory: not even a single row fits.
        """
        self._rows_since_report += len(inputs["input_lengths"])
        while True:
            try:
                self._step_loss = self._accumulate(model, inputs)
                return self._step_loss
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Only here are the frames of the failed attempt gone, and with them its tensors.
            self._halve(len(inputs["input_lengths"]))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the model and report it; when a stop is asked for meanwhile, the evaluation stays due."""
        around = self.around
        assert around.evaluator is not None
        self.is_evaluation_due, self.control.should_evaluate = True, False
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            scores = around.evaluator.evaluate(self.model, around.should_stop)
        if scores is None:
            self.control.should_save = True
            return {}
        self.is_evaluation_due = False
        point = Evaluated(self.state.global_step, float(self.state.epoch), scores.loss, **scores.rouge)
        around.journal.record(point)
        if self.plan.early_stop_patience is not None:
            self._keep_best(point)
        self._reported_at = time.monotonic()
        return {}

    def catch_up(self, checkpoint: Checkpoint) -> None:
        """Make the evaluation that a stop cut off, with the weights of the checkpoint in the model.

        Raises:
            Halt: the parent asked to stop again.
        """
        self.state = TrainerState.load_from_json(str(checkpoint.directory / TRAINER_STATE))
        self.evaluate()
        if self.is_evaluation_due:
            raise Halt(checkpoint.manifest.step, str(checkpoint.directory))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report a step; the summary at the end of the run is not one."""
        if "loss" not in logs:
            return
        now = time.monotonic()
        seconds, self._reported_at = now - self._reported_at, now
        rows, self._rows_since_report = self._rows_since_report, 0
        self.around.journal.record(
            Stepped(
                step=self.state.global_step,
                epoch=float(self.state.epoch),
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                gradient_norm=logs["grad_norm"],
                samples_per_s=rows / max(seconds, 1e-9),
                memory_bytes=peak_memory_bytes(self.plan.device),
            )
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the estimate counts pads and is not used."""
        return 0

    def _accumulate(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        model.train()
        total = torch.zeros((), device=self.args.device)
        for tensors, share in micro_batches(inputs, self.micro_batch):
            with self.compute_loss_context_manager():
                loss = model(**self._prepare_inputs(tensors)).loss * share
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _halve(self, rows: int) -> None:
        """Go on with half of the rows at once. The gradients of the failed attempt are dropped, whatever it added up."""
        self.model.zero_grad(set_to_none=True)
        free_memory()
        tried = min(self.micro_batch, rows)
        if tried == 1:
            raise TrainingOutOfMemory(
                f"The device ran out of memory at step {self.state.global_step + 1} with a batch of one row. Lower "
                "--max-input-tokens, turn on --gradient-checkpointing, or use LoRA or a smaller model."
            )
        self.micro_batch = tried // 2
        log.warning("training_batch_split", step=self.state.global_step + 1, rows=self.micro_batch)

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        """Clip the gradients, and stop before numbers that are none get into the weights.

        Raises:
            LossNotFinite: the loss or the norm of the gradients is not finite.
        """
        norm: torch.Tensor = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if not torch.isfinite(norm + self._step_loss.to(norm.device)).item():
            raise LossNotFinite(self._not_finite())
        return norm

    def _not_finite(self) -> str:
        newest = self.around.writer.newest() or (self.resumed and self.resumed.directory.name)
        good = f"The last good checkpoint, {newest}, is kept and usable." if newest else "There is no checkpoint yet."
        return (
            f"The loss or its gradient was not a finite number at step {self.state.global_step + 1} (learning rate "
            f"{self._get_learning_rate():g}). {good} Try a lower --learning-rate or a longer --warmup."
        )

    def _keeps_best(self) -> bool:
        return self.plan.early_stop_patience is not None and self.around.journal.best() is not None

    def _keep_best(self, point: Evaluated) -> None:
        journal = self.around.journal
        if journal.best() is point:
            aside = self.best_file.with_name(f"{files.ASIDE}{BEST_FILE}")
            save_file(trainable_weights(self.model), aside)
            aside.replace(self.best_file)
        if journal.is_exhausted():
            self.control.should_training_stop = True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint in our form, and end here when the parent has asked for it."""
        around = self.around
        is_stop = around.should_stop()
        directory, digest = around.writer.write(
            Snapshot(
                step=self.state.global_step,
                weights=trainable_weights(self.model),
                optimizer=self.optimizer.state_dict(),
                scheduler=self.lr_scheduler.state_dict(),
                trainer_state=_state_text(self.state),
                points=around.journal.points,
                is_evaluation_due=self.is_evaluation_due,
                micro_batch=self.micro_batch,
                best=self.best_file if self._keeps_best() else None,
            )
        )
        around.send(Checkpointed(self.state.global_step, str(directory), digest))
        if is_stop:
            raise Halt(self.state.global_step, str(directory))
        self._reported_at = time.monotonic()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: the weights are in the model already."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.resumed is not None:
            state = self.resumed.state()
            self._random_states = state["random"]
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Go on with the checkpoint's random numbers; transformers calls this after it has drawn its own."""
        restore_random(self._random_states)


def _state_text(state: TrainerState) -> str:
    """Return transformers' state as it would be saved; the curve is kept elsewhere."""
    return json.dumps({**asdict(state), "log_history": []}, indent=1, sort_keys=True)
