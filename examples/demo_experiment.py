"""The demo of experiments: the whole notebook on the built-in base, its worker killed on the way, and a report.

`make demo-experiment` runs it: prompts, generation parameters, full tuning, LoRA, and the three models on dialogues that none
of them has seen. It ends with status 1 unless the figures say original < LoRA <= full.
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

    from gistmill.client import Client
    from gistmill.client.experiment import Experiment
    from gistmill.views import ComparisonView, ExperimentView, PairView
    from models_store.builtin.dialogues import Example

ROOT = Path(__file__).parent.parent
HOME = ROOT / "demo-data"
BASE = "gist-tiny-base"
MEASURE = "rougeLsum"
TRAINING_ROWS, TEST_ROWS, SAMPLE_ROWS = 3_200, 200, 20
BATCH = {"batch_size": 32, "warmup_steps": 10}
FULL = BATCH | {"learning_rate": 2e-3, "checkpoint_every": 20}
LORA = BATCH | {"learning_rate": 1e-2, "rank": 16, "alpha": 16}
KILL_AT_STEP = 30
LONGEST_S = 1_800


def main() -> int:
    """Run the notebook, kill a worker on the way, write the report, and say whether the models are in the order expected."""
    os.environ["GISTMILL_HOME"] = str(HOME)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Two threads tune this small model hardly faster than one, and far slower where something else wants a core.
    os.environ.setdefault("GISTMILL_WORKER__THREADS", "1")
    from gistmill.client import Client
    from models_store.builtin.dialogues import generate

    started_at = time.monotonic()
    HOME.mkdir(exist_ok=True)
    # Another seed each time: otherwise a second run would find every summary in SQL and take no time at all.
    seed = int(time.time()) % 2**31
    training = write_rows(HOME / "experiment-training.jsonl", list(generate(TRAINING_ROWS, seed=seed, split="train")))
    test = write_rows(HOME / "experiment-test.jsonl", list(generate(TEST_ROWS, seed=seed, split="held_out")))
    print("Starting redis, the api and one worker …", flush=True)
    with Client() as client:
        stop_earlier(client)
        experiment = client.experiment(
            "notebook",
            training,
            test=test,
            model=BASE,
            sample=SAMPLE_ROWS,
            generation={"max_new_tokens": 48},
            full=FULL,
            lora=LORA,
        )
        print(f"Submitted {experiment.id}: {len(experiment.steps)} steps", flush=True)
        follow(client, experiment)
        if experiment.state != "completed":
            print(f"The experiment ended as {experiment.state}: {experiment.view.error}", file=sys.stderr)
            return 1
        report = HOME / "experiment.md"
        report.write_text(experiment.report(), encoding="utf-8")
        comparison = experiment.comparison()
        print(f"\n{comparison.table()}\nThe report is in {report}.")
    print(f"Everything was stopped after {time.monotonic() - started_at:.0f} s.")
    return 0 if is_in_order(comparison.view) else 1


def stop_earlier(client: Client) -> None:
    """Cancel what an interrupted run of the demo left: it would go on beside this one."""
    for view in client.list_experiments():
        if view.state not in ("completed", "failed", "cancelled"):
            client.job(view.id).cancel()


def write_rows(path: Path, examples: Sequence[Example]) -> Path:
    """Write the dialogues with their summaries as references."""
    lines = [json.dumps({"id": str(place), "dialogue": e.dialogue, "summary": e.summary}) for place, e in enumerate(examples)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def follow(client: Client, experiment: Experiment) -> None:
    """Show the steps until the experiment ends, and kill the worker that trains once."""
    from gistmill.cli.steps import show_steps

    has_killed = False

    def on_change(view: ExperimentView) -> None:
        nonlocal has_killed
        show(view)
        has_killed = has_killed or kill_worker(client, view)

    with show_steps(live=False) as show:
        experiment.wait(on_change=on_change, timeout_s=LONGEST_S)


def kill_worker(client: Client, view: ExperimentView) -> bool:
    """Kill the worker of the full tuning when that is far enough to have a checkpoint; its launcher starts another."""
    tuning = next(step for step in view.steps if step.name == "full tuning")
    if tuning.state != "running" or tuning.done < KILL_AT_STEP:
        return False
    found = [worker for worker in client.list_workers() if worker.job == tuning.job]
    for worker in found:
        os.kill(worker.pid, signal.SIGKILL)
        print(f"Killed the worker at step {tuning.done} of the full tuning.", flush=True)
    return bool(found)


def is_in_order(view: ComparisonView) -> bool:
    """Say and return whether LoRA is surely better than the original, and full tuning at least as good as LoRA."""
    gain, rest = find_pair(view, "lora", "original"), find_pair(view, "lora", "full")
    is_better = gain.low is not None and gain.low > 0
    is_no_better_than_full = rest.delta <= 0
    means = ", ".join(f"{system.name} {100 * system.scores[MEASURE].fmeasure:.2f}" for system in view.systems)
    verdict = "original < LoRA <= full" if is_better and is_no_better_than_full else "not as expected: original < LoRA <= full"
    print(f"{MEASURE} of {view.counts['scored']} dialogues: {means}: {verdict}")
    return is_better and is_no_better_than_full


def find_pair(view: ComparisonView, system: str, baseline: str) -> PairView:
    """Return how these two compare on the measure."""
    return next(pair for pair in view.pairs if (pair.system, pair.baseline, pair.measure) == (system, baseline, MEASURE))


if __name__ == "__main__":
    sys.exit(main())
