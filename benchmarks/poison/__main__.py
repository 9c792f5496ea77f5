"""`python -m benchmarks.poison`: the same work twice on the same fleet, without and with a dialogue that kills every worker."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import structlog

from benchmarks.orchestration.corpus import dialogues
from benchmarks.orchestration.processes import start_module
from benchmarks.orchestration.stack import Stack, running_stack
from gistmill.specs import SummarizeSpec
from tests.support.faults import kill_on_dialogue
from tests.support.servers import wait_until

MODEL = "gist-tiny"
MARKER = "[[deadly]]"
ROW_S = 0.05


def main(arguments: list[str] | None = None) -> int:
    """Measure, print; the exit status does not depend on the ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.poison", description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the healthy work takes the fleet")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    rows = int(options.workers * options.seconds / ROW_S)
    with tempfile.TemporaryDirectory(prefix="gm-bench-") as name:
        directory = Path(name)
        with running_stack(options.database, directory / "stack") as stack:
            launcher = _launch(stack, directory, options.workers)
            try:
                with_none = _run(stack, directory, list(dialogues(rows, seed=1)))
                with_one = _run(stack, directory, [*dialogues(rows, seed=2), f"#Eve#: this is {MARKER}."])
            finally:
                launcher.stop()
        deaths = sum("'struck'" in line or '"struck"' in line for line in (directory / "ledger").read_text().splitlines())
    sys.stdout.write(
        f"{rows} healthy dialogues of {ROW_S} s on {options.workers} workers ({options.database}):\n"
        f"  alone                      {with_none['seconds']:.1f} s\n"
        f"  with one deadly dialogue   {with_one['seconds']:.1f} s, {deaths} workers killed, "
        f"{with_one['succeeded']} succeeded, {with_one['failed']} failed\n"
        f"  throughput kept            {with_none['seconds'] / with_one['seconds']:.3f} (goal: at least 0.8)\n"
    )
    return 0 if (with_one["succeeded"], with_one["failed"]) == (rows, 1) else 1


def _launch(stack: Stack, directory: Path, workers: int) -> Any:
    environment = stack.environment(directory / "workers") | {
        "GISTMILL_WORKER__FAKE_SECONDS_PER_ROW": str(ROW_S),
        "GISTMILL_TEST_LEDGER": str(directory / "ledger"),
        "GISTMILL_TEST_DRILL": json.dumps([kill_on_dialogue(MARKER)]),
    }
    launcher = start_module("launcher", "benchmarks.poison.fleet", str(workers), log=directory / "log", environment=environment)
    with stack.client() as client:
        client.get_model(MODEL)
        wait_until(lambda: len(list(client.list_workers())) == workers, timeout_s=60, what="the workers")
    return launcher


def _run(stack: Stack, directory: Path, texts: list[str]) -> dict[str, Any]:
    """Run a job over these dialogues; return its counts and the seconds from its submission to its end."""
    corpus = directory / f"{len(texts)}-rows.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(number), "dialogue": text}) + "\n" for number, text in enumerate(texts)))
    with stack.client() as client:
        dataset = client.add_dataset(corpus)
        view = client.submit(SummarizeSpec(dataset=dataset.id, model=MODEL)).wait(timeout_s=3600).view
    assert view.created_at is not None
    assert view.finished_at is not None
    seconds = (view.finished_at - view.created_at).total_seconds()
    return {"seconds": seconds, "succeeded": view.counts.succeeded, "failed": view.counts.failed}


if __name__ == "__main__":
    sys.exit(main())
