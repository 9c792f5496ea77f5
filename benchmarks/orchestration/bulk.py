"""The million: accepted, run through two workers, and exported."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.orchestration.processes import MIB, REPOSITORY
from benchmarks.orchestration.stack import TOKEN, Stack
from benchmarks.orchestration.watch import BELLS_EVERY_S, LOOK_EVERY_S, READ_EVERY_S, Bells, Growth, Latency, Memory, Watcher
from gistmill.client import Job
from gistmill.specs import SummarizeSpec

MODEL = "gist-tiny"
WORKERS = 2
# The runner's thread and the heartbeat of a process share one lock, so a process is one ringer; the api is one more.
RINGERS = WORKERS + 1


def measure_bulk(stack: Stack, corpus: Path, items: int) -> dict[str, Any]:
    """Return the figures of one big job; the workers are left running, the dataset and the job are there."""
    with stack.client() as client:
        client.get_model(MODEL)
        stack.start_workers(WORKERS)
        bells, memory = Bells(stack), Memory(stack)
        with ExitStack() as watches:
            watches.enter_context(Watcher(bells.look, BELLS_EVERY_S))
            watches.enter_context(Watcher(memory.look, LOOK_EVERY_S))
            began_at = time.perf_counter()
            dataset = client.add_dataset(corpus)
            loaded_at = time.perf_counter()
            job = client.submit(SummarizeSpec(dataset=dataset.id, model=MODEL))
            accepted_at = time.perf_counter()
            latency = Latency(stack, job.id)
            with Watcher(latency.look, READ_EVERY_S):
                _wait(stack, job)
            ended_at = time.perf_counter()
            latency.close()
            export = _export(stack, job.id)
            memory.look()
    counts = job.counts
    if (counts.succeeded, counts.items, dataset.dialogues) != (items, items, items):
        raise RuntimeError(f"The job ended with {counts} for {items} distinct items.")
    if (export["rows"], export["each_once_in_order"]) != (items, True):
        raise RuntimeError(f"The export is not the {items} results in order: {export}")
    return {
        "dataset": dataset.id,
        "job": job.id,
        "accept": {
            "dataset_s": round(loaded_at - began_at, 2),
            "job_s": round(accepted_at - loaded_at, 2),
            "together_s": round(accepted_at - began_at, 2),
        },
        "run": {
            "workers": WORKERS,
            "seconds": round(ended_at - accepted_at, 2),
            "items_per_s": round(items / (ended_at - accepted_at), 1),
            "with_intake_items_per_s": round(items / (ended_at - began_at), 1),
        },
        "bells": {"most": bells.most, "looks": bells.looks, "live_workers": WORKERS, "ringers": RINGERS},
        "progress": _progress(latency.seconds),
        "export": export,
        "peak_rss_mib": memory.peaks_mib,
    }


def _wait(stack: Stack, job: Job) -> None:
    while not _is_over(job):
        for worker in stack.workers:
            worker.child.require_alive()
        time.sleep(0.1)


def _is_over(job: Job) -> bool:
    # The counts are read with the state: a job that ended has all of them.
    return job.refresh().state in ("completed", "failed", "cancelled")


def _progress(seconds: list[float]) -> dict[str, Any]:
    """Compare how long a read of the counts takes in the first and in the last fifth of the job."""
    fifth = max(1, len(seconds) // 5)
    early, late = statistics.median(seconds[:fifth]), statistics.median(seconds[-fifth:])
    return {
        "reads": len(seconds),
        "early_ms": round(early * 1000, 2),
        "late_ms": round(late * 1000, 2),
        "longest_ms": round(max(seconds) * 1000, 1),
    }


def _export(stack: Stack, job_id: str) -> dict[str, Any]:
    assert stack.api is not None
    growth = Growth(stack.api.pid)
    command = [sys.executable, "-m", "benchmarks.orchestration.exporter", stack.url, TOKEN, job_id]
    with Watcher(growth.look, 0.1):
        report: dict[str, Any] = json.loads(subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout)
    return report | {
        "rows_per_s": round(report["rows"] / report["seconds"], 1),
        "api_rise_mib": growth.rise_mib(),
        "api_peak_mib": round(max(growth.bytes) / MIB, 1),
    }
