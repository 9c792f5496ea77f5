"""What a chunk costs beside its work, and how far workers scale when the engine takes its time."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.orchestration.bulk import MODEL, WORKERS
from benchmarks.orchestration.corpus import write_corpus
from benchmarks.orchestration.stack import Stack
from gistmill.plan import DIALOGUES_AT_UNKNOWN_SPEED
from gistmill.specs import GenerationParameters, SummarizeSpec

SCALED_TO = 16
# A row takes so long that 16 workers leave most of two cores idle: 160 rows a second in all.
SLOW_ROW_S = 0.1
SLOW_ROWS_PER_WORKER = 320
LONG_CHUNK_S = 5.0
# What a chunk of a job at unknown speed holds: at the speed of the bulk it would hold a share of the job, four times as much.
LONG_CHUNK_ROWS = DIALOGUES_AT_UNKNOWN_SPEED
# Fifteen for each worker: in the first ones it, its connections and the database's plans are still cold.
LONG_CHUNKS = 30
# Few enough that a job at unknown speed has chunks of the least size, and nobody has measured these parameters.
SMALL_CHUNKS = 100
UNMEASURED_SMALL, UNMEASURED_LONG = GenerationParameters(max_new_tokens=64), GenerationParameters(max_new_tokens=96)
USUAL = GenerationParameters()


def summarize_overhead(noted: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the overhead of these chunks: their time less that of generating and recording; see timed_worker."""
    if not noted:
        raise RuntimeError("No worker noted a chunk.")
    overheads = sorted(chunk["seconds"] - chunk["generating"] - chunk["recording"] for chunk in noted)
    return {
        "chunks": len(noted),
        "rows_per_chunk": statistics.median(chunk["rows"] for chunk in noted),
        "chunk_s": round(statistics.median(chunk["seconds"] for chunk in noted), 4),
        "generating_s": round(statistics.median(chunk["generating"] for chunk in noted), 4),
        "recording_s": round(statistics.median(chunk["recording"] for chunk in noted), 4),
        "overhead_median_ms": round(statistics.median(overheads) * 1000, 2),
        "overhead_p95_ms": round(overheads[int(len(overheads) * 0.95)] * 1000, 2),
        "overhead_share": round(sum(overheads) / sum(chunk["seconds"] for chunk in noted), 5),
    }


def measure_small_chunks(stack: Stack, directory: Path) -> dict[str, Any]:
    """Return the overhead of chunks as small as a first job has them, on two workers, when an engine takes no time."""
    stack.start_workers(WORKERS)
    _run(stack, directory, DIALOGUES_AT_UNKNOWN_SPEED * SMALL_CHUNKS, seed=6, generation=UNMEASURED_SMALL)
    return summarize_overhead(stack.stop_workers())


def measure_long_chunks(stack: Stack, directory: Path) -> dict[str, Any]:
    """Return the overhead of chunks of five seconds on two workers.

    Raises:
        RuntimeError: the chunks were not of five seconds.
    """
    rows = LONG_CHUNK_ROWS * LONG_CHUNKS
    stack.start_workers(WORKERS, seconds_per_row=LONG_CHUNK_S / LONG_CHUNK_ROWS)
    _run(stack, directory, rows, seed=5, generation=UNMEASURED_LONG)
    found = summarize_overhead(stack.stop_workers())
    if found["rows_per_chunk"] != LONG_CHUNK_ROWS:
        raise RuntimeError(f"The chunks held {found['rows_per_chunk']:.0f} rows and took {found['chunk_s']:.1f} s.")
    return found


def measure_scaling(stack: Stack, directory: Path) -> dict[str, Any]:
    """Return how the time of a job with the same rows per worker compares on 1 and on 16 workers."""
    seconds = {}
    for workers in (1, SCALED_TO):
        stack.start_workers(workers, seconds_per_row=SLOW_ROW_S)
        seconds[workers] = _run(stack, directory, SLOW_ROWS_PER_WORKER * workers, seed=100 + workers)
        stack.stop_workers()
    speed = {workers: SLOW_ROWS_PER_WORKER * workers / seconds[workers] for workers in seconds}
    return {
        "seconds_per_row": SLOW_ROW_S,
        "rows_per_worker": SLOW_ROWS_PER_WORKER,
        "items_per_s_of_1": round(speed[1], 3),
        f"items_per_s_of_{SCALED_TO}": round(speed[SCALED_TO], 3),
        "efficiency": round(speed[SCALED_TO] / speed[1] / SCALED_TO, 4),
    }


def _run(stack: Stack, directory: Path, rows: int, *, seed: int, generation: GenerationParameters = USUAL) -> float:
    """Run a job over so many new rows; return the seconds from its submission to its end, by the database's clock."""
    corpus = directory / f"rows-{seed}.jsonl"
    write_corpus(corpus, rows, seed=seed)
    with stack.client() as client:
        dataset = client.add_dataset(corpus)
        job = client.submit(SummarizeSpec(dataset=dataset.id, model=MODEL, generation=generation)).wait(timeout_s=600)
    view = job.view
    if view.counts.succeeded != rows or view.created_at is None or view.finished_at is None:
        raise RuntimeError(f"The job ended {view.state} with {json.dumps(view.counts.model_dump())}.")
    return (view.finished_at - view.created_at).total_seconds()
