"""Three ways to train the same model on the same rows, batch 8: the notebook's recipe, a plain Trainer, and ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from benchmarks.training.stage import Stage, load_examples, masked_loss
from workers.engine.checkpoint import load_model
from workers.training.data import Example
from workers.training.events import Event, Finished, Stepped
from workers.training.plan import TrainingPlan
from workers.training.run import carry_out, prepare_run

BATCH = 8
RECIPE_WIDTH = 512
RATE = 1e-3
SEED = 7
FEWEST_WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Outcome:
    """`seconds` and `samples` leave the first steps out, which warm up; `loss` is on the held-out rows, pads left out."""

    name: str
    samples: int
    seconds: float
    loss: float

    @property
    def samples_per_s(self) -> float:
        """Samples per second once it was warm."""
        return self.samples / self.seconds


def recipe(stage: Stage, directory: Path, *, steps: int) -> Outcome:
    """The notebook's: every sample padded to 512 tokens on both sides, the pads of its labels counted in the loss."""

    def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        inputs = _padded([example.tokens for example in examples], 0, RECIPE_WIDTH)
        return {
            "input_ids": inputs,
            "attention_mask": (inputs != 0).long(),
            "labels": _padded([example.target for example in examples], 0, RECIPE_WIDTH),
        }

    return _train_plainly("notebook's recipe", stage, directory, collate, steps=steps)


def plain(stage: Stage, directory: Path, *, steps: int) -> Outcome:
    """A Trainer that pads each batch to its longest row and leaves pads out of the loss."""

    def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        inputs = _padded([example.tokens for example in examples], 0, max(len(example.tokens) for example in examples))
        longest = max(len(example.target) for example in examples)
        return {
            "input_ids": inputs,
            "attention_mask": (inputs != 0).long(),
            "labels": _padded([example.target for example in examples], -100, longest),
        }

    return _train_plainly("plain Trainer", stage, directory, collate, steps=steps)


def gistmill(stage: Stage, directory: Path, *, steps: int) -> Outcome:
    """What a finetune job runs."""
    plan = TrainingPlan(
        base_dir=stage.base,
        method="full",
        learning_rate=RATE,
        batch_size=BATCH,
        max_steps=steps,
        seed=SEED,
        train_file=stage.train_file,
        checkpoint_every=10**6,
        max_input_tokens=RECIPE_WIDTH,
        work_dir=directory,
    )
    clock = _StepClock()

    def send(event: Event) -> None:
        if isinstance(event, Stepped):
            clock.tick()

    prepared = prepare_run(plan, send, lambda: False)
    ending = carry_out(prepared, plan, send)
    if not isinstance(ending, Finished):
        raise RuntimeError(f"the run did not finish: {ending}")
    loss = masked_loss(prepared.model, load_examples(stage, stage.held_out_file))
    return Outcome("gistmill", clock.warm_steps * BATCH, clock.seconds, loss)


class _StepClock:
    """Times the steps after the first two."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def tick(self) -> None:
        """Note the end of a step."""
        self._times.append(time.perf_counter())

    @property
    def warm_steps(self) -> int:
        """How many steps were timed."""
        return len(self._times) - FEWEST_WARM_UP_STEPS

    @property
    def seconds(self) -> float:
        """How long they took."""
        return self._times[-1] - self._times[FEWEST_WARM_UP_STEPS - 1]


class _ClockedTrainer(Seq2SeqTrainer):
    """transformers' own trainer, timed at the end of each step."""

    clock: _StepClock

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Note the step."""
        if "loss" in logs:
            self.clock.tick()


def _train_plainly(
    name: str, stage: Stage, directory: Path, collate: Callable[[Sequence[Example]], dict[str, torch.Tensor]], *, steps: int
) -> Outcome:
    model: Any = load_model(stage.base, device="cpu", precision="float32").model
    trainer = _ClockedTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(directory),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            seed=SEED,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=load_examples(stage, stage.train_file),  # type: ignore[arg-type]
        data_collator=collate,
    )
    trainer.clock = _StepClock()
    trainer.train()
    loss = masked_loss(model, load_examples(stage, stage.held_out_file))
    return Outcome(name, trainer.clock.warm_steps * BATCH, trainer.clock.seconds, loss)


def _padded(rows: Sequence[Any], filler: int, width: int) -> torch.Tensor:
    padded = torch.full((len(rows), width), filler, dtype=torch.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.from_numpy(row)
    return padded
