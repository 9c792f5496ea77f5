"""A real worker that notes where the time of each chunk went: `python -m workers` with a clock at its fault points.

GISTMILL_BENCHMARK_CHUNKS names a file; a line is written per chunk. `seconds` reaches from the end of the chunk before to the
end of this one; `generating` is the time inside the engine's micro-batches, `recording` that of the transactions that write
them. What is left is the overhead: passing the bell on, the claim, looking up what is pending and what exists, rendering and
tokenizing the prompts, the finish, and the logs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import IO

from gistmill import faults
from workers.__main__ import main


class Clock:
    """Adds up the time between fault points of the thread that runs chunks."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._mark: float | None = None
        self._ended_at: float | None = None
        self._generating = self._recording = 0.0
        self._rows = 0

    def __call__(self, name: str, facts: dict[str, object]) -> None:
        """Note the time of a point."""
        now = time.perf_counter()
        if name == "claim.committed":
            self._claimed(facts)
        elif name == "generate.begun":
            # Micro-batches that are recorded together are one stretch of the engine.
            self._mark = self._mark or now
        elif name == "record.begun":
            # What exists already is recorded without being generated.
            self._generating += now - (self._mark or now)
            self._mark = now
            rows = facts["rows"]
            assert isinstance(rows, list)
            self._rows += len(rows)
        elif name == "record.committed":
            self._recording += now - (self._mark or now)
            self._mark = None
        elif name == "ending.committed":
            self._ended(now)

    def _claimed(self, facts: dict[str, object]) -> None:
        self._generating = self._recording = 0.0
        self._rows = 0
        if facts.get("claim") is None:
            # The worker goes to sleep: the time until the next bell belongs to no chunk.
            self._ended_at = None

    def _ended(self, now: float) -> None:
        if self._ended_at is not None:
            seconds = now - self._ended_at
            times = {"seconds": seconds, "generating": self._generating, "recording": self._recording, "rows": self._rows}
            self._file.write(json.dumps(times) + "\n")
        self._ended_at = now


if __name__ == "__main__":
    with open(os.environ["GISTMILL_BENCHMARK_CHUNKS"], "w", buffering=1) as notes:
        faults.arm(Clock(notes))
        sys.exit(main())
