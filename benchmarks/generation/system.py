"""The whole system as a user runs it: `gistmill up`, `gistmill worker`, and `gistmill summarize` on a file, on SQLite.

Each round asks for another limit on the input, far above every prompt: that is another recipe, so that nothing of an earlier
round is shared, and the work is the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.generation.figures import Result, Round
from benchmarks.generation.work import PROMPT, write_rows
from benchmarks.orchestration.processes import MIB, Child, descendants, peak_rss_bytes, start_command
from gistmill.local.places import Places
from tests.support.servers import RedisServer, wait_until

CLI = [sys.executable, "-c", "from gistmill.cli import main; main()"]
UP_S, JOB_S = 120.0, 900.0
LEAST_LIMIT = 2_048


@dataclass(frozen=True)
class Form:
    """What is asked of a stack: how often each dialogue stands in the file, and at which precision."""

    name: str
    copies: int = 1
    precision: str = "native"


class Stack:
    """Redis, the api and some workers on a data directory of their own; `stop` leaves nothing behind.

    `tuned` are files of tuning that the workers begin with.
    """

    def __init__(
        self, directory: Path, model: Path, *, workers: int, most_tokens: int, device: str, tuned: Sequence[Path] = ()
    ) -> None:
        directory.mkdir(parents=True)
        self._directory, self._places = directory, Places(directory / "home")
        self._keep(tuned)
        self._most_tokens, self._limit = most_tokens, LEAST_LIMIT
        self._children: list[Child] = []
        self._redis = RedisServer(directory)
        self._redis.start()
        try:
            self._start_api()
            self._run("models", "add", str(model), "--name", "model")
            self._start_workers(workers, device)
        except BaseException:
            self.stop()
            raise

    def summarize(self, rows: Sequence[int], dialogues: Sequence[str], form: Form) -> Round:
        """Return what a file of these dialogues took, from the start of `gistmill summarize` to the job's end in SQL.

        Raises:
            RuntimeError: an item failed, or one that was generated before was shared.
        """
        file, output = self._directory / "rows.jsonl", self._directory / "summaries.jsonl"
        write_rows(file, dialogues, copies=form.copies)
        self._limit += 1
        options = ["--model", "model", "--prompt", PROMPT, "--max-new-tokens", str(self._most_tokens)]
        limits = ["--max-input-tokens", str(self._limit), "--precision", form.precision]
        begun = time.time()
        told = self._run("summarize", str(file), *options, *limits, "--output", str(output), "--json")
        job = json.loads(told)
        if job["counts"]["generated"] != len(dialogues) or job["counts"]["failed"]:
            raise RuntimeError(f"not every dialogue was generated anew: {job['counts']}")
        return _read_round(job, begun, output, rows, form.copies)

    @property
    def peak_mib(self) -> float:
        """The most memory that the workers ever held, the copies of shared pages included, MiB."""
        launcher = self._children[-1].pid
        return sum(peak_rss_bytes(pid) for pid in descendants(launcher)) / MIB

    def stop(self) -> None:
        """End everything: workers, api, redis."""
        for child in reversed(self._children):
            child.stop()
        self._redis.stop()

    def _keep(self, tuned: Sequence[Path]) -> None:
        """Let the host know what its engines have found out about their settings."""
        kept = self._places.home / "models" / "tuning"
        kept.mkdir(parents=True)
        for file in tuned:
            shutil.copy(file, kept)

    def _environment(self) -> dict[str, str]:
        return {
            "GISTMILL_HOME": str(self._places.home),
            "GISTMILL_REDIS__URL": self._redis.url,
            "GISTMILL_API__PORT": "0",
            "GISTMILL_LOG__LEVEL": "warning",
            "NO_COLOR": "1",
        }

    def _start_api(self) -> None:
        self._start("stack", "up", "--no-workers")
        wait_until(self._is_ready, timeout_s=UP_S, what="gistmill up")

    def _is_ready(self) -> bool:
        self._children[-1].require_alive()
        return (self._places.read_state() or {}).get("state") == "ready"

    def _start_workers(self, count: int, device: str) -> None:
        state = self._places.read_state() or {}
        api = {"GISTMILL_API__URL": state["url"], "GISTMILL_API__TOKEN": self._places.get_token()}
        self._start("worker", "worker", "--kinds", "summarize", "--device", device, "--processes", str(count), **api)
        wait_until(lambda: self._count_workers() == count, timeout_s=UP_S, what=f"{count} workers")

    def _count_workers(self) -> int:
        self._children[-1].require_alive()
        return sum(worker["state"] == "idle" for worker in json.loads(self._run("workers", "--json")))

    def _start(self, name: str, *arguments: str, **more: str) -> None:
        environment = self._environment() | more
        log = self._directory / f"{name}.log"
        self._children.append(start_command(name, [*CLI, *arguments], log=log, environment=environment))

    def _run(self, *arguments: str) -> str:
        """Run a command of the user's to its end, and return what it printed."""
        environment = dict(os.environ) | self._environment()
        done = subprocess.run([*CLI, *arguments], env=environment, capture_output=True, text=True, timeout=JOB_S)
        if done.returncode != 0:
            raise RuntimeError(f"gistmill {arguments[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout


@dataclass
class System:
    """One form of work on a stack: a contestant like the others."""

    stack: Stack
    form: Form
    dialogues: Sequence[str]
    result: Result = field(init=False)

    def __post_init__(self) -> None:
        """Begin without rounds."""
        self.result = Result(self.form.name)

    def warm_up(self, rows: Sequence[int]) -> None:
        """Summarize for the first time; a worker that is new loads the model meanwhile."""
        self.result.first_s = self._summarize(rows).seconds

    def measure(self, rows: Sequence[int]) -> None:
        """Add a round."""
        self.result.rounds.append(self._summarize(rows))
        self.result.peak_mib = self.stack.peak_mib

    def _summarize(self, rows: Sequence[int]) -> Round:
        return self.stack.summarize(rows, [self.dialogues[row] for row in rows], self.form)


def _read_round(job: dict[str, Any], begun: float, output: Path, rows: Sequence[int], copies: int) -> Round:
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return Round(
        rows=len(lines),
        seconds=datetime.fromisoformat(job["finished_at"]).timestamp() - begun,
        tokens_in=sum(line["tokens_in"] for line in lines),
        tokens_out=sum(line["tokens_out"] for line in lines),
        texts={row: line["summary"] for row, line in zip(rows, lines[::copies], strict=True)},
    )
