"""`make bench` and `make bench-quick`: Gistmill's engines and the whole system beside every peer, in one run."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.generation import plan, roofline
from benchmarks.generation.contestants import DIRECT
from benchmarks.generation.figures import Result
from benchmarks.generation.goals import FULL, QUICK, Verdict, judge
from benchmarks.generation.plan import Stage
from benchmarks.generation.report import as_fields, as_markdown, describe_stage, write_docs, write_json
from benchmarks.generation.stage import Measurement
from benchmarks.orchestration.machine import describe_run
from benchmarks.orchestration.processes import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results" / "generation.json"
PACKAGES = ("torch", "transformers", "tokenizers", "ctranslate2", "sqlalchemy", "celery")
SIZES = {"full": plan.full, "quick": plan.quick, "tiny": plan.tiny}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; only a full run on generated dialogues is written down. 1 when a quick run shows a collapse."""
    options = _parse(arguments)
    run = describe_run() | {"device": _describe_device(options.device), "threads": options.threads, "size": options.size}
    run["versions"] = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    run["data"] = "of a file" if options.data else "generated"
    peak = _find_peak(options)
    run["peak_gflop_per_s"] = peak and round(peak / 1e9, 1)
    verdicts: list[Verdict] = []
    run["stages"] = {}
    stages = [stage for stage in SIZES[options.size]() if not options.stages or stage.name in options.stages]
    for stage in stages:
        # What a stage leaves behind is a few gigabytes.
        with tempfile.TemporaryDirectory(prefix="gm-bench-") as name:
            results, run["stages"][stage.name] = _measure(stage, Path(name), options, peak)
        if stage is not stages[-1]:
            # What comes behind it takes long, and may be ended.
            sys.stderr.write(as_markdown(run | {"stages": {stage.name: run["stages"][stage.name]}, "goals": []}) + "\n")
            sys.stderr.flush()
        if stage.is_judged and options.device == "cpu":
            verdicts = judge(QUICK if options.size == "quick" else FULL, results)
    run["goals"] = as_fields(verdicts)
    sys.stdout.write(as_markdown(run) + "\n")
    is_full = options.size == "full" and not options.data and not options.stages and options.device == "cpu"
    if is_full or options.output:
        write_json(options.output or RESULTS, run)
    if is_full:
        write_docs(run)
    return int(options.size == "quick" and not all(verdict.is_met for verdict in verdicts))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="full", help="tiny only shows that every path works")
    parser.add_argument("--data", type=Path, help="JSON Lines with dialogue; without it, generated dialogues")
    parser.add_argument("--stages", nargs="+", default=[], help="only these: small, small-500, base, gist-tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where all contestants run")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each contestant")
    parser.add_argument("--output", type=Path, help="where the JSON goes; a short run writes none by itself")
    return parser.parse_args(arguments)


def _measure(
    stage: Stage, directory: Path, options: argparse.Namespace, peak: float | None
) -> tuple[dict[str, Result], dict[str, Any]]:
    measurement = Measurement(stage, directory / stage.name, data=options.data, device=options.device, threads=options.threads)
    results = {result.name: result for result in measurement.run()}
    shape = roofline.read_shape(measurement.model)
    # Every contestant reads the same dialogues, the fast ones all of them, and ctranslate2 called directly is in every stage.
    tokens = results[DIRECT.name].mean_tokens
    return results, describe_stage(results, shape, limit_flop_per_s=peak, tokens=tokens)


def _find_peak(options: argparse.Namespace) -> float | None:
    if options.device == "cpu":
        return roofline.measure_peak_flop_per_s(options.threads)
    found = roofline.find_accelerator(_describe_device(options.device))
    return None if found is None else found.flop_per_s


def _describe_device(device: str) -> str:
    if device == "cpu":
        return "cpu"
    import torch

    return str(torch.cuda.get_device_name())


if __name__ == "__main__":
    sys.exit(main())
