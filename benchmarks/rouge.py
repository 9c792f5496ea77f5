"""`make bench-rouge`: pairs per second of our ROUGE beside rouge_score on the same pairs, and the time of the statistics.

Each round measures both for about as long; the best counts. Every figure of every pair is compared. rouge_score knows one core;
ours is measured on one too, both in processor time, and in a second process on all, both by the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.orchestration.machine import describe_run
from benchmarks.orchestration.processes import REPOSITORY
from benchmarks.page import replace_section
from models_store.builtin.dialogues import generate
from workers.evaluation.rouge import Score, score_pairs, score_pairs_slowly
from workers.evaluation.statistics import aggregate

GOAL = 40
ROUNDS = 3
# Lines of a summary, and pairs of that length. DialogSum's are as long as two; the goal is set for such and longer ones.
SIZES = {1: 1_000, 2: 1_000, 8: 150}
GOAL_WORDS = 20
SYSTEMS, MEASURES, RESAMPLES = 3, 4, 5_000
CASES = (500, 100_000)
DOCS = REPOSITORY / "docs" / "benchmarks.md"
RESULTS = REPOSITORY / "benchmarks" / "results" / "rouge.json"
BEGIN, END = "<!-- rouge: begin; written by `make bench-rouge` -->", "<!-- rouge: end -->"

Pairs = tuple[list[str], list[str]]


def main(arguments: list[str]) -> int:
    """Measure, print and write; 1 when the goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rouge", description=__doc__)
    parser.add_argument("--data", type=Path, help="JSON Lines with `summary`: measure on these texts and write nothing")
    parser.add_argument("--alone", action="store_true", help="measure in this process and print JSON")
    options = parser.parse_args(arguments)
    if options.alone:
        sys.stdout.write(json.dumps(_measure(options.data)) + "\n")
        return 0
    cores = len(os.sched_getaffinity(0))
    run = describe_run() | {"rounds": ROUNDS}
    run["versions"] = {name: version(name) for name in ("rouge_score", "rouge-score-rs", "nltk", "numpy")}
    run["one_core"], run["all_cores"] = (_measure_in_child(arguments, threads) for threads in (1, cores))
    if not options.data:
        run["statistics_s"] = {str(cases): _time_statistics(cases) for cases in CASES}
        _write(run)
    sys.stdout.write(_table(run) + "\n")
    return int(_least(run) < GOAL)


def _measure_in_child(arguments: Sequence[str], threads: int) -> list[dict[str, Any]]:
    """Measure in a process whose pool has this many threads: it is made once and stays."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.rouge", "--alone", *arguments]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def _measure(data: Path | None) -> list[dict[str, Any]]:
    sets = {"as given": _read_pairs(data)} if data else {_name(size): _make_pairs(size) for size in SIZES}
    return [{"texts": name} | _compare(pairs, stemming) for name, pairs in sets.items() for stemming in (True, False)]


def _compare(pairs: Pairs, stemming: bool) -> dict[str, Any]:
    """Return pairs per second of both. A difference in any figure ends the run."""
    ours, theirs = [], []
    for _ in range(ROUNDS):
        theirs_s, wanted = _timed(lambda: score_pairs_slowly(*pairs, stemming=stemming))
        ours_s, found = _timed(lambda: _score_often(pairs, stemming))
        if found != wanted:
            raise SystemExit("the figures differ")
        ours.append(ours_s / GOAL)
        theirs.append(theirs_s)
    count = len(pairs[0])
    words = sum(len(text.split()) for text in pairs[1]) / count
    return {"stemming": stemming, "pairs": count, "words": words, "ours": count / min(ours), "theirs": count / min(theirs)}


def _score_often(pairs: Pairs, stemming: bool) -> list[dict[str, Score]]:
    """Score as many times as should take as long as rouge_score does. Scores are let go as those of a chunk are."""
    for _ in range(GOAL - 1):
        score_pairs(*pairs, stemming=stemming)
    return score_pairs(*pairs, stemming=stemming)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    # On one core the processor's time is the time; other processes of a busy machine do not count.
    clock = time.process_time if os.environ.get("RAYON_NUM_THREADS") == "1" else time.perf_counter
    begun = clock()
    result = work()
    return clock() - begun, result


def _make_pairs(sentences: int) -> Pairs:
    """Return references of so many generated sentences, one a line, and texts that say about the same in other words."""
    draw = random.Random(sentences)
    known = [example.summary for example in generate(1_000, seed=1, split="train")]
    references = ["\n".join(draw.choices(known, k=sentences)) for _ in range(SIZES[sentences])]
    return [_reworded(reference, known, draw) for reference in references], references


def _reworded(text: str, known: Sequence[str], draw: random.Random) -> str:
    lines = [draw.choice(known) if draw.random() < 0.3 else line for line in text.split("\n")]
    words = " \n ".join(lines).split(" ")
    for _ in range(len(words) // 3):
        place = draw.randrange(len(words))
        words[place] = draw.choice(draw.choice(known).split(" "))
    return " ".join(words)


def _read_pairs(path: Path) -> Pairs:
    """Return the summaries of a file, each with the next one as its reference."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [row.get("summary") or row["summary1"] for row in rows]
    return texts, [*texts[1:], texts[0]]


def _time_statistics(cases: int) -> float:
    draw = np.random.default_rng(0)
    values = {str(measure): draw.beta(2.0, 4.0, (SYSTEMS, cases)) for measure in range(MEASURES)}
    return _timed(lambda: aggregate(values, resamples=RESAMPLES, seed=0))[0]


def _table(run: dict[str, Any]) -> str:
    lines = [
        "| Texts | Stemming | rouge_score, pairs/s of processor time | ours | times | on all cores, by the wall | times |",
        "|---|---|---|---|---|---|---|",
    ]
    for one, every in zip(run["one_core"], run["all_cores"], strict=True):
        lines.append(
            f"| {one['texts']}, {one['words']:.0f} words | {'yes' if one['stemming'] else 'no'} | {one['theirs']:,.0f} "
            f"| {one['ours']:,.0f} | {_times(one):.0f} | {every['ours']:,.0f} | {_times(every):.0f} |"
        )
    least = _least(run)
    verdict = "met" if least >= GOAL else "**not met**"
    lines += [
        "",
        f"Goal for texts of {GOAL_WORDS} words and more, at least {GOAL} times rouge_score with identical figures, "
        f"on one core: {verdict}, {least:.0f} times at least.",
    ]
    for cases, seconds in run.get("statistics_s", {}).items():
        what = f"{int(cases):,} cases, {SYSTEMS} systems, {MEASURES} measures, {RESAMPLES:,} resamples"
        lines.append(f"Means, intervals and paired tests of {what}: {seconds:.2f} s.")
    return "\n".join(lines)


def _times(row: dict[str, Any]) -> float:
    """Return how many times as fast as rouge_score ours is."""
    return float(row["ours"]) / float(row["theirs"])


def _least(run: dict[str, Any]) -> float:
    return min(_times(row) for row in run["one_core"] if row["words"] >= GOAL_WORDS)


def _write(run: dict[str, Any]) -> None:
    """Write all that was measured, and the section of docs/benchmarks.md in place of the last one."""
    RESULTS.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    machine, versions = run["machine"], ", ".join(f"{name} {value}" for name, value in run["versions"].items())
    about = (
        f"{run['date'][:10]}, commit `{run['commit'][:12]}`; {machine['cores']} cores ({machine['cpu']}), {machine['system']}, "
        f"load average at the start {machine['load_average_at_start'][0]}; {versions}."
    )
    replace_section(DOCS, BEGIN, END, f"{about}\n\n{_table(run)}")


def _name(sentences: int) -> str:
    return "1 sentence" if sentences == 1 else f"{sentences} lines"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
