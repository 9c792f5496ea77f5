"""`python -m benchmarks.orchestration`: one run, its figures and its goals. Everything it starts is stopped at the end."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog

from benchmarks.orchestration.beside import measure_beside
from benchmarks.orchestration.bulk import measure_bulk
from benchmarks.orchestration.chunks import measure_long_chunks, measure_scaling, measure_small_chunks, summarize_overhead
from benchmarks.orchestration.corpus import write_corpus
from benchmarks.orchestration.machine import describe_run, measure_pace
from benchmarks.orchestration.peer import measure_peer
from benchmarks.orchestration.processes import REPOSITORY
from benchmarks.orchestration.report import as_text, write_docs, write_json
from benchmarks.orchestration.stack import production_settings, running_stack

DATABASES = ("sqlite", "postgresql")
RESULTS = REPOSITORY / "benchmarks" / "results" / "orchestration.json"
FULL_ITEMS = 1_000_000
SECOND_SEED = 1


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write down; goals that are not met do not change the exit status."""
    options = _parse(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    run = describe_run() | {"items": options.items, "worker_settings": production_settings(), "databases": {}}
    with tempfile.TemporaryDirectory(prefix="gm-bench-") as name:
        directory = Path(name)
        corpus, more = directory / "corpus.jsonl", directory / "more.jsonl"
        run["mean_characters"] = round(write_corpus(corpus, options.items), 1)
        write_corpus(more, max(1, options.items // 5), seed=SECOND_SEED)
        for kind in DATABASES if options.database == "both" else (options.database,):
            run["databases"][kind] = _measure(kind, directory / kind, corpus, more, options)
    sys.stdout.write(as_text(run))
    # Only a full run is what the documentation speaks of.
    is_full = options.items == FULL_ITEMS and options.database == "both"
    if is_full or options.output:
        write_json(options.output or RESULTS, run)
    if is_full:
        write_docs(run)
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.orchestration", description="Measure what Gistmill itself costs."
    )
    parser.add_argument("--items", type=int, default=FULL_ITEMS, help="distinct dialogues")
    parser.add_argument("--peer-items", type=int, default=20_000, help="items of plain Celery, which is then scaled")
    parser.add_argument("--database", choices=(*DATABASES, "both"), default="both")
    parser.add_argument("--output", type=Path, help="where the JSON goes; a short run writes none by itself")
    return parser.parse_args(arguments)


def _measure(kind: str, directory: Path, corpus: Path, more: Path, options: argparse.Namespace) -> dict[str, Any]:
    with running_stack(kind, directory) as stack:
        figures: dict[str, Any] = {"durability": stack.database.durability, "pace": measure_pace(directory)}
        _say(kind, "the bulk")
        figures |= measure_bulk(stack, corpus, options.items)
        _say(kind, "an ingest beside a running job")
        figures["beside"] = measure_beside(stack, figures["dataset"], more)
        figures["overhead"] = summarize_overhead(stack.stop_workers())
        _say(kind, "small chunks")
        figures["overhead_small"] = measure_small_chunks(stack, directory)
        _say(kind, "chunks of five seconds")
        stack.database.rest()
        figures["overhead_5s"] = measure_long_chunks(stack, directory)
        _say(kind, "1 and 16 workers")
        figures["scaling"] = measure_scaling(stack, directory)
        _say(kind, "plain Celery")
        figures["peer"] = measure_peer(stack, directory, options.peer_items, million=options.items)
    return figures


def _say(kind: str, what: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {kind}: {what}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
