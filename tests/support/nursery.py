"""A process that forks workers with their imports behind them: a worker's start is then a tenth of a second instead of two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.servers import die_with_parent

POLL_S = 0.01


class ForkedProcess:
    """A child of the nursery, with what tests use of `subprocess.Popen`; threads may share it."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self._asking = threading.Lock()
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        # How it ended is told once: of two threads that asked at the same moment, the later one would ask for nobody.
        with self._asking:
            if self.returncode is None:
                self.returncode = self._nursery.ask(ended=self.pid)["status"]
            return self.returncode

    def wait(self, timeout: float) -> int:
        """Return the exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after this time.
        """
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout)
            time.sleep(POLL_S)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Nursery:
    """Starts drilled workers by forking; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.children.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,
        )

    def fork(self, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path) -> ForkedProcess:
        """Start a worker with these arguments, this environment and nothing else of the test's; it appends to the log."""
        answer = self.ask(arguments=list(arguments), environment=dict(environment), log=str(log))
        return ForkedProcess(self, answer["pid"])

    def ask(self, **question: object) -> dict[str, Any]:
        """Ask the process and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process, and with it what it forked."""
        self._process.kill()
        self._process.communicate()
