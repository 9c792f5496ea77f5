"""The demo of fine-tuning: a LoRA adapter for the built-in base, its worker killed half-way, and summaries with the result.

`make demo-finetune` runs it: gist-tiny-base knows the language of the generated dialogues but not the task.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gistmill.client import Client, Job
    from models_store.builtin.dialogues import Example

ROOT = Path(__file__).parent.parent
HOME = ROOT / "demo-data"
BASE = "gist-tiny-base"
TRAINING_ROWS, HELD_OUT_ROWS = 3_200, 60
KILL_AT_STEP = 30
CHECKPOINT_EVERY = 20
SHOWN = 3


def main() -> int:
    """Tune, kill, resume, summarize, compare, and stop everything that was started."""
    os.environ["GISTMILL_HOME"] = str(HOME)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from gistmill.client import Client
    from models_store.builtin.dialogues import generate

    started_at = time.monotonic()
    HOME.mkdir(exist_ok=True)
    training = write_rows(HOME / "training.jsonl", list(generate(TRAINING_ROWS, seed=11, split="train")))
    held_out = list(generate(HELD_OUT_ROWS, seed=12, split="held_out"))
    questions = write_rows(HOME / "held-out.jsonl", held_out)
    print("Starting redis, the api and one worker …", flush=True)
    with Client() as client:
        before = summarize(client, questions, BASE)
        job = client.finetune(
            training,
            model=BASE,
            method="lora",
            rank=16,
            alpha=16,
            targets=("q", "v"),
            epochs=1,
            learning_rate=1e-2,
            batch_size=32,
            checkpoint_every=CHECKPOINT_EVERY,
            seed=int(time.time()) % 2**31,
        )
        print(f"Submitted {job.id}: {job.view.model}, LoRA", flush=True)
        kill_worker(client, job)
        follow(job)
        if job.state != "completed" or job.view.produced is None:
            print(f"The job ended as {job.state}: {job.view.error}", file=sys.stderr)
            return 1
        curve = job.metrics()
        steps = [point.step for point in curve if point.kind == "train"]
        assert steps == list(range(1, len(steps) + 1)), "the curve has gaps or doubles"
        print(f"{job.view.produced}: {len(steps)} steps in SQL, none missing, none twice. Last loss {curve.losses[-1][1]:.3f}.")
        after = summarize(client, questions, job.view.produced)
    show(held_out, before, after)
    print(f"\nEverything was stopped after {time.monotonic() - started_at:.0f} s.")
    return 0


def write_rows(path: Path, examples: Sequence[Example]) -> Path:
    """Write the dialogues with their summaries as references."""
    lines = [json.dumps({"id": str(place), "dialogue": e.dialogue, "summary": e.summary}) for place, e in enumerate(examples)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def summarize(client: Client, path: Path, model: str) -> list[str]:
    """Return the model's summaries in the order of the file."""
    job = client.summarize(path, model=model, prompt="instruction", generation={"max_new_tokens": 48}).wait(timeout_s=300)
    if job.state != "completed" or job.counts.failed:
        raise SystemExit(f"The job ended as {job.state} with {job.counts.failed} failed items: {job.view.error}")
    return [result.summary for result in job.results()]


def kill_worker(client: Client, job: Job) -> None:
    """Kill the worker that trains, once it is far enough to have a checkpoint; its launcher starts another."""
    while (job.refresh().view.training or {}).get("step", 0) < KILL_AT_STEP:
        if job.state in ("completed", "failed", "cancelled"):
            return
        time.sleep(0.2)
    for worker in client.list_workers():
        if worker.job == job.id:
            os.kill(worker.pid, signal.SIGKILL)
            print(f"Killed the worker at step {(job.view.training or {})['step']}.", flush=True)


def follow(job: Job) -> None:
    """Show the training until it ends."""
    from gistmill.training_progress import show_training

    with show_training(live=False) as line:
        job.wait(on_change=line, timeout_s=600)


def show(examples: Sequence[Example], before: Sequence[str], after: Sequence[str]) -> None:
    """Print a few dialogues with both summaries, and the mean ROUGE-1 of all."""
    for example, old, new in list(zip(examples, before, after, strict=True))[:SHOWN]:
        print(f"\n--- {example.dialogue}\n=> before: {old}\n=> after:  {new}\n=> wanted: {example.summary}")
    scores = f"{score(examples, before):.3f} before, {score(examples, after):.3f} after"
    print(f"\nROUGE-1 on {len(examples)} held-out dialogues: {scores}")


def score(examples: Sequence[Example], summaries: Sequence[str]) -> float:
    """Return the mean ROUGE-1 F."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    scores = [scorer.score(e.summary, text)["rouge1"].fmeasure for e, text in zip(examples, summaries, strict=True)]
    return float(sum(scores) / len(scores))


if __name__ == "__main__":
    sys.exit(main())
