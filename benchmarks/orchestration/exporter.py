"""A client in a process of its own that reads all results of a job: `exporter URL TOKEN JOB`. Prints what it saw as JSON."""

from __future__ import annotations

import json
import os
import sys
import time

from benchmarks.orchestration.processes import MIB, rss_bytes
from gistmill.client import Client

LOOK_EVERY = 2_000


def main(url: str, token: str, job_id: str) -> None:
    """Read every result once, keep none, and say how many there were and how the memory went."""
    rows, in_order, last, memory = 0, True, -1, [rss_bytes(os.getpid())]
    started = time.perf_counter()
    with Client(url, token) as client:
        for result in client.job(job_id).results(follow=False):
            rows += 1
            in_order, last = in_order and result.row == last + 1, result.row
            if rows % LOOK_EVERY == 0:
                memory.append(rss_bytes(os.getpid()))
    seconds = time.perf_counter() - started
    head = max(1, len(memory) // 10)
    rise = max(0, max(memory[head:], default=0) - max(memory[:head])) / MIB
    report = {"rows": rows, "each_once_in_order": in_order, "seconds": round(seconds, 2), "client_rise_mib": round(rise, 1)}
    sys.stdout.write(json.dumps(report | {"client_peak_mib": round(max(memory) / MIB, 1)}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:4])
