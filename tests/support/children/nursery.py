"""Forks drilled workers that have their imports behind them. A line of JSON asks for one, or for its end; a line answers.

It has one thread and opens nothing, so a fork of it is what a worker is after its imports; what follows is the same as in
`python -m tests.support.children.drilled_worker`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from typing import Any

from tests.support.children import drilled_worker
from tests.support.servers import die_with_parent

# What every worker imports, on the way to its first bell at the latest. None of it reads the environment of the worker.
IMPORTED = (
    "workers.app",
    "celery.worker.consumer",
    "celery.concurrency.solo",
    "celery.app.trace",
    "kombu.matcher",
    "billiard.pool",
)


def main() -> int:
    """Answer until nobody can ask any more; in a fork, be the worker that was asked for."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        question = json.loads(line)
        if "ended" in question:
            answer = {"status": find_status(question["ended"])}
        else:
            pid = os.fork()
            if pid == 0:
                settle(question)
                return drilled_worker.work(question["arguments"])
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)
    return 0


def find_status(pid: int) -> int | None:
    """Return how a worker ended, as subprocess does, None while it lives."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def settle(wish: dict[str, Any]) -> None:
    """Give this fork the environment, the log and the end that a worker of the test's own would have."""
    die_with_parent()
    os.environ.clear()
    os.environ.update(wish["environment"])
    log = os.open(wish["log"], os.O_WRONLY | os.O_APPEND)
    for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(source, target)


if __name__ == "__main__":
    sys.exit(main())
