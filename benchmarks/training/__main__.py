"""`make bench-training`: samples per second of full tuning on CPUs, in one run, each contestant from the same weights."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.training import contestants
from benchmarks.training.contestants import BATCH, Outcome
from benchmarks.training.stage import set_up

HELD_OUT = 52
GOAL_RECIPE, GOAL_PLAIN = 5.0, 1.15
# Another order of the same rows moves the loss this much after so few steps.
LOSS_TOLERANCE = 1.01


def main(arguments: list[str]) -> int:
    """Measure and print; 1 when a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--data", type=Path, help="JSON Lines with dialogue and summary; without it, generated dialogues")
    parser.add_argument("--steps", type=int, default=56, help="steps of 8 rows that the plain Trainer and Gistmill train")
    parser.add_argument(
        "--recipe-steps", type=int, help="steps of the notebook's recipe, which all cost the same; without it, --steps"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        outcomes = _measure(Path(name), options)
    return _report(outcomes)


def _measure(directory: Path, options: argparse.Namespace) -> list[Outcome]:
    stage = set_up(directory, data=options.data, rows=options.steps * BATCH, held_out=HELD_OUT)
    return [
        contestants.gistmill(stage, directory / "gistmill", steps=options.steps),
        contestants.plain(stage, directory / "plain", steps=options.steps),
        contestants.recipe(stage, directory / "recipe", steps=options.recipe_steps or options.steps),
    ]


def _report(outcomes: list[Outcome]) -> int:
    ours, plain, recipe = outcomes
    sys.stdout.write(f"full tuning, FLAN-T5-small's shape, batch {BATCH}, float32, {torch.get_num_threads()} threads\n")
    for outcome in outcomes:
        sys.stdout.write(
            f"{outcome.name:18} {outcome.samples_per_s:7.3f} samples/s over {outcome.samples} samples, "
            f"held-out loss {outcome.loss:.4f}\n"
        )
    verdicts = [
        (
            f"{ours.samples_per_s / recipe.samples_per_s:.2f} times the recipe",
            ours.samples_per_s,
            GOAL_RECIPE * recipe.samples_per_s,
        ),
        (
            f"{ours.samples_per_s / plain.samples_per_s:.2f} times a plain Trainer",
            ours.samples_per_s,
            GOAL_PLAIN * plain.samples_per_s,
        ),
        ("held-out loss beside a plain Trainer", plain.loss * LOSS_TOLERANCE, ours.loss),
        ("held-out loss beside the recipe", recipe.loss * LOSS_TOLERANCE, ours.loss),
    ]
    for words, more, less in verdicts:
        sys.stdout.write(f"{'met' if more >= less else 'NOT MET'}: {words}\n")
    return int(any(more < less for _, more, less in verdicts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
