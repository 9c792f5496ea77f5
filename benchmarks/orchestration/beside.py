"""Does a bulk ingest hold up those who must renew a lease? A prober writes while a dataset is loaded beside a running job."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.orchestration.bulk import MODEL
from benchmarks.orchestration.processes import REPOSITORY
from benchmarks.orchestration.stack import Stack
from gistmill.errors import JobIsOver
from gistmill.specs import SummarizeSpec
from tests.support.servers import wait_until


def measure_beside(stack: Stack, dataset: str, more: Path) -> dict[str, Any]:
    """Return how long small writes took while `more` was loaded and a job over `dataset` ran; the job is cancelled then."""
    with stack.client() as client:
        # Another prompt makes other generations: nothing that exists already is shared.
        job = client.submit(SummarizeSpec(dataset=dataset, model=MODEL, prompt="none"))
        wait_until(lambda: job.refresh().counts.succeeded > 0, timeout_s=60, what="the job to run")
        command = [sys.executable, "-m", "benchmarks.orchestration.prober", stack.database.url]
        prober = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
        try:
            assert prober.stdout is not None
            if prober.stdout.readline() != b"ready\n":
                raise RuntimeError("The prober did not start.")
            before = job.refresh().counts.succeeded
            started = time.perf_counter()
            loaded = client.add_dataset(more)
            seconds = time.perf_counter() - started
            done = job.refresh().counts.succeeded - before
            was_running = job.state == "running"
            prober.terminate()
            delays = sorted(json.loads(prober.communicate(timeout=60)[0]))
        finally:
            prober.kill()
        # It may have ended since it was last asked about, above all a short one.
        with suppress(JobIsOver):
            job.cancel()
        wait_until(lambda: job.refresh().state in ("cancelled", "completed"), timeout_s=60, what="the job to end")
    return {
        "rows_loaded": loaded.rows,
        "seconds": round(seconds, 2),
        "items_of_the_job_meanwhile": done,
        "job_ran_to_the_end_of_the_load": was_running,
        "writes": len(delays),
        "median_ms": round(delays[len(delays) // 2] * 1000, 1),
        "p99_ms": round(delays[int(len(delays) * 0.99)] * 1000, 1),
        "longest_ms": round(delays[-1] * 1000, 1),
    }
