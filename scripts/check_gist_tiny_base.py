"""Check gist-tiny-base: small, fluent, ignorant of the task, and quick to learn it, fully and with LoRA.

Tunes as a worker does and scores held-out generated dialogues in float32 on a CPU; prints the figures and exits 1 when a bar is
missed. Seconds count everything from the start of the training process to its result.

Usage: python -m scripts.check_gist_tiny_base [--count 500] [--threads 2] [--model DIR] [--methods full lora]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from gistmill import prompts
from models_store.builtin.dialogues import Example, generate
from scripts.check_gist_tiny import SEED, measure, summarize
from scripts.train_gist_tiny_base import MAKERS, OUT, TOKENIZER_FILES, collate
from workers.training.child import TrainingChild
from workers.training.events import Failed, Finished, Started
from workers.training.plan import TrainingPlan

Method = Literal["full", "lora"]

PROMPT = "instruction"
MOST_BYTES = 4_000_000
MOST_UNTUNED = 0.3
MOST_SECONDS = 120
MOST_SHARE = 0.10
TRAINING_SEED = 41
BATCH = 50


@dataclass(frozen=True)
class Setting:
    """How one method is tuned, and the least ROUGE-1 F that it must reach. The rank serves LoRA alone."""

    examples: int
    learning_rate: float
    least_rouge1: float
    rank: int = 16
    batch_size: int = 32


SETTINGS: dict[Method, Setting] = {
    "full": Setting(examples=3_200, learning_rate=2e-3, least_rouge1=0.8),
    "lora": Setting(examples=3_200, learning_rate=1e-2, least_rouge1=0.6),
}


@dataclass(frozen=True)
class Tuned:
    """A tuned model on disk, the share of the parameters that were trained, and what that took."""

    directory: Path
    share: float
    seconds: float
    cpu_seconds: float
    steps: int


def main() -> int:
    """Print the figures; return 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=OUT)
    parser.add_argument("--methods", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    examples = list(generate(arguments.count, seed=SEED, split="held_out"))
    is_good = check_untuned(examples, arguments.model)
    for method in arguments.methods:
        is_good &= check_tuned(examples, arguments.model, method=method, threads=arguments.threads)
    return 0 if is_good else 1


def check_untuned(examples: Sequence[Example], directory: Path) -> bool:
    """Print size, language and ROUGE-1 F before tuning; return whether size and ROUGE-1 keep to their bars."""
    size_bytes = sum(path.stat().st_size for path in directory.iterdir())
    untuned = measure(examples, summarize(examples, directory, prompt=PROMPT)).rouge1
    print(f"held-out dialogues    {len(examples)}")
    print(f"bytes in all files    {size_bytes:,}   (at most {MOST_BYTES:,})")
    for maker, share in pieces_right(examples, directory).items():
        print(f"  {maker:<20}{share:.4f} of the pieces right, each after the true ones before it")
    print(f"untuned, ROUGE-1 F    {untuned:.4f}   (under {MOST_UNTUNED})", flush=True)
    return size_bytes <= MOST_BYTES and untuned < MOST_UNTUNED


def pieces_right(examples: Sequence[Example], directory: Path) -> dict[str, float]:
    """Return the share of target pieces that the model finds in each exercise, given the true pieces before."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32).eval()
    source = random.Random(SEED)
    shares: dict[str, float] = {}
    for maker in MAKERS:
        right = total = 0
        for start in range(0, len(examples), BATCH):
            batch = collate(tokenizer, [maker(source, example) for example in examples[start : start + BATCH]])
            with torch.inference_mode():
                guesses = model(**batch).logits.argmax(-1)
            right += int((guesses == batch["labels"]).sum())
            total += int((batch["labels"] != -100).sum())
        shares[maker.__name__] = right / total
    return shares


def check_tuned(examples: Sequence[Example], base: Path, *, method: Method, threads: int) -> bool:
    """Tune, print what came of it, and return whether it keeps to the bars."""
    setting = SETTINGS[method]
    with tempfile.TemporaryDirectory() as scratch:
        tuned = tune(base, Path(scratch), method=method, threads=threads)
        report = measure(examples, summarize(examples, tuned.directory, prompt=PROMPT))
    print(f"{method}: {setting}, {tuned.steps} steps, {threads} threads")
    print(f"  trainable share     {tuned.share:.2%}" + (f"   (at most {MOST_SHARE:.0%})" if method == "lora" else ""))
    print(f"  seconds             {tuned.seconds:.0f}   (at most {MOST_SECONDS}; {tuned.cpu_seconds:.0f} of CPU)")
    print(f"  ROUGE-1 F           {report.rouge1:.4f}   (at least {setting.least_rouge1})")
    print(f"  names, thing exact  {report.names_and_thing:.4f}")
    print(f"  outcome right       {report.outcome:.4f}", flush=True)
    is_small = method == "full" or tuned.share <= MOST_SHARE
    return is_small and tuned.seconds <= MOST_SECONDS and report.rouge1 >= setting.least_rouge1


def tune(base: Path, scratch: Path, *, method: Method, threads: int) -> Tuned:
    """Run the training child on generated dialogues; return the tuned model, with an adapter merged into its base.

    Raises:
        RuntimeError: training failed; the message is the child's.
    """
    setting = SETTINGS[method]
    plan = TrainingPlan(
        base_dir=base,
        method=method,
        rank=setting.rank,
        alpha=setting.rank,
        epochs=1,
        max_steps=None,
        learning_rate=setting.learning_rate,
        batch_size=setting.batch_size,
        weight_decay=0.01,
        warmup_steps=10,
        seed=TRAINING_SEED,
        train_file=write_rows(scratch / "train.jsonl", setting.examples),
        validation_file=None,
        evaluate_every=None,
        early_stop_patience=None,
        early_stop_metric="loss",
        checkpoint_every=1_000_000,
        device="cpu",
        threads=threads,
        work_dir=scratch / "work",
        resume_dirs=(),
    )
    started_at, cpu_before = time.monotonic(), children_cpu_seconds()
    started, finished = follow(plan)
    seconds, cpu_seconds = time.monotonic() - started_at, children_cpu_seconds() - cpu_before
    result = Path(finished.directory)
    directory = merge(base, result, scratch / "merged") if method == "lora" else result
    return Tuned(directory, started.trainable_parameters / started.total_parameters, seconds, cpu_seconds, finished.step)


def children_cpu_seconds() -> float:
    """Return what ended child processes have used of the CPU, which other load on the machine hardly changes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_rows(path: Path, count: int) -> Path:
    """Write training rows as the trainer reads them and return their file."""
    prompt = prompts.get(PROMPT)
    rows = generate(count, seed=TRAINING_SEED, split="train")
    lines = (json.dumps({"prompt": prompt.render(row.dialogue), "references": [row.summary]}) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def follow(plan: TrainingPlan) -> tuple[Started, Finished]:
    """Run a plan to its end and return how it started and how it finished."""
    started: Started | None = None
    with TrainingChild(plan) as child:
        child.start()
        while True:
            event = child.next_event(timeout_s=60.0)
            if isinstance(event, Started):
                started = event
            elif isinstance(event, Failed):
                raise RuntimeError(f"Training failed ({event.code}): {event.message}")
            elif isinstance(event, Finished):
                assert started is not None
                return started, event


def merge(base: Path, adapter: Path, out: Path) -> Path:
    """Write the base with the adapter merged into it, in float32, and return where."""
    model = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    for name in TOKENIZER_FILES:
        shutil.copyfile(base / name, out / name)
    return out


if __name__ == "__main__":
    sys.exit(main())
