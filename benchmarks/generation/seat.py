"""The near end of a contestant's process: started, asked, and ended whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.generation.contestants import Entry
from benchmarks.generation.figures import Result, Round
from benchmarks.orchestration.processes import MIB, REPOSITORY, peak_rss_bytes
from tests.support.servers import die_with_parent
from workers import allocator


class Seat:
    """A contestant in a process of its own, with what was measured of it so far.

    `most_rows` limits the rows of a round; those that it takes stand for all.
    """

    def __init__(self, entry: Entry, log: Path, **spec: Any) -> None:
        self.entry = entry
        self.result = Result(entry.name)
        self.most_rows = 2**31
        self._log = log
        begun = time.perf_counter()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.generation.booth", json.dumps(asdict(entry) | spec)],
                cwd=REPOSITORY,
                env=os.environ | _more_environment(entry, spec["device"]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                preexec_fn=die_with_parent,
            )
        self.result.setting = self._read()["setting"]
        self.result.load_s = time.perf_counter() - begun

    def warm_up(self, rows: Sequence[int]) -> None:
        """Let it answer for the first time, and note how long that took."""
        self.result.first_s = self.answer(rows).seconds

    def tune(self, rows: Sequence[int]) -> None:
        """Let it find its fastest setting on these rows."""
        self.result.setting = self._ask({"do": "tune", "rows": list(rows)})["setting"]

    def answer(self, rows: Sequence[int]) -> Round:
        """Let it answer these rows, or those that stand for them, and return what it took."""
        told = self._ask({"do": "answer", "rows": list(rows), "most_rows": self.most_rows})
        texts = {int(row): text for row, text in told.pop("texts").items()}
        return Round(rows=len(texts), texts=texts, **told)

    def measure(self, rows: Sequence[int]) -> None:
        """Add a round."""
        self.result.rounds.append(self.answer(rows))
        self.result.peak_mib = peak_rss_bytes(self._process.pid) / MIB

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.entry.name} ended: {tail}")
        told: dict[str, Any] = json.loads(line)
        return told


def _more_environment(entry: Entry, device: str) -> dict[str, str]:
    """Return what the launcher adds to a worker's environment, for an engine of ours; a peer runs as its user starts it."""
    return allocator.environment(os.environ) if entry.kind == "engine" and device == "cpu" else {}
