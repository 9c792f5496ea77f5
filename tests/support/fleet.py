"""Real worker processes for system tests: short leases, the fake engine, each with a model store of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tests.support.ledger import Ledger
from tests.support.nursery import ForkedProcess, Nursery
from tests.support.servers import die_with_parent

LEASE_S = 2.0
FAST = {
    "GISTMILL_WORKER__ENGINE": "fake",
    "GISTMILL_WORKER__LEASE_S": str(LEASE_S),
    "GISTMILL_WORKER__RENEW_S": "0.5",
    "GISTMILL_WORKER__WISH_S": "0.3",
    "GISTMILL_WORKER__COMMIT_S": "0",
    "GISTMILL_WORKER__SWEEP_S": "0.4",
    "GISTMILL_WORKER__MARGIN_S": "0.3",
    "GISTMILL_WORKER__RETRY_BASE_S": "0.1",
    "GISTMILL_WORKER__DRAIN_S": "10",
    # A worker that is stopped may be in a transaction: PostgreSQL ends its session, and so its locks, after so long.
    "GISTMILL_DATABASE__STATEMENT_TIMEOUT_S": "8",
    "GISTMILL_LOG__FORMAT": "text",
}


@dataclass
class WorkerProcess:
    """One worker process of the fleet."""

    uuid: str
    process: subprocess.Popen[bytes] | ForkedProcess
    log: Path

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 15.0) -> int:
        """Return its exit status."""
        return self.process.wait(timeout=timeout_s)

    @property
    def is_alive(self) -> bool:
        """True while it runs."""
        return self.process.poll() is None


@dataclass
class Fleet:
    """Starts workers against one database and one Redis; `stop` leaves no process behind.

    With a nursery its workers are forks, which saves most of what a start costs; without, each is a program of its own.
    """

    nursery: ClassVar[Nursery | None] = None

    directory: Path
    database_url: str
    redis_url: str
    environment: dict[str, str] = field(default_factory=dict)
    workers: list[WorkerProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(self.directory / "ledger.jsonl")

    def start(
        self,
        *,
        seconds_per_row: float = 0.0,
        drill: Sequence[dict[str, object]] = (),
        kinds: Sequence[str] = (),
        **environment: str,
    ) -> WorkerProcess:
        """Start one worker, without a launcher, for these kinds of jobs or for all.

        It keeps the ledger, and meets the blows of the drill (faults.py).
        """
        worker = str(uuid.uuid4())
        home = self.directory / worker
        home.mkdir(parents=True)
        log = home / "log"
        pinned = ["--device-uuid", "cpu-0", "--device-kind", "cpu", "--device-name", "CPU", "--device-bytes", str(2**34)]
        if kinds:
            pinned += ["--kinds", ",".join(kinds)]
        settings = (
            self.env(home)
            | {"GISTMILL_WORKER__FAKE_SECONDS_PER_ROW": str(seconds_per_row)}
            | {"GISTMILL_TEST_LEDGER": str(self.ledger.path), "GISTMILL_TEST_DRILL": json.dumps(list(drill))}
            | environment
        )
        process = self._begin(["--child", worker, *pinned], settings, log)
        started = WorkerProcess(worker, process, log)
        self.workers.append(started)
        return started

    def _begin(self, arguments: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes] | ForkedProcess:
        with log.open("wb") as output:
            if self.nursery is not None:
                return self.nursery.fork(arguments, environment=environment, descriptors=dict.fromkeys((1, 2), output.fileno()))
            return subprocess.Popen(
                [sys.executable, "-m", "tests.support.children.drilled_worker", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent,
            )

    def env(self, home: Path) -> dict[str, str]:
        """Return the environment of a process with this home."""
        urls = {"GISTMILL_DATABASE__URL": self.database_url, "GISTMILL_REDIS__URL": self.redis_url, "GISTMILL_HOME": str(home)}
        return dict(os.environ) | FAST | urls | self.environment

    def stop(self) -> None:
        """End every worker, the stopped ones too."""
        for worker in self.workers:
            if worker.is_alive:
                worker.send(signal.SIGCONT)
                worker.send(signal.SIGKILL)
                worker.wait()

    def logs(self) -> str:
        """Return what the workers logged."""
        return "\n".join(worker.log.read_text(errors="replace") for worker in self.workers)


@contextmanager
def running_fleet(path: Path, database_url: str, redis_url: str) -> Iterator[Fleet]:
    """Give a fleet without workers yet; at the end they stop, and what they logged is printed."""
    made = Fleet(path, database_url, redis_url)
    try:
        yield made
    finally:
        made.stop()
        print(made.logs())
