"""A real worker that notes where the time of each chunk went: `python -m workers` with a clock at its fault points.

GISTMILL_BENCHMARK_CHUNKS names a file; a line is written per chunk. `seconds` reaches from the end of the chunk before to the
end of this one; `generating` from its first micro-batch to its last transaction, beside which the others were written;
`recording` is that last one, for which the device has to wait. What is left is the overhead: passing the bell on, the claim,
looking up what is pending and what exists, rendering and tokenizing the prompts, the finish, and the logs. So it holds for
chunks of one page; between the pages of a longer one a device that waits for its reader would count as generating.
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
    """Notes the time of fault points; the thread that runs chunks passes most of them, its writer those of recording."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._ended_at: float | None = None
        self._begun_at: float | None = None
        self._recording_at = self._recorded_at = 0.0
        self._rows = 0

    def __call__(self, name: str, facts: dict[str, object]) -> None:
        """Note the time of a point."""
        now = time.perf_counter()
        if name == "claim.committed":
            self._claimed(facts)
        elif name == "generate.begun":
            self._begun_at = self._begun_at or now
        elif name == "record.begun":
            # What exists already is recorded without being generated.
            self._begun_at = self._begun_at or now
            self._recording_at = now
            rows = facts["rows"]
            assert isinstance(rows, list)
            self._rows += len(rows)
        elif name == "record.committed":
            self._recorded_at = now
        elif name == "ending.committed":
            self._ended(now)

    def _claimed(self, facts: dict[str, object]) -> None:
        self._begun_at = None
        self._rows = 0
        if facts.get("claim") is None:
            # The worker goes to sleep: the time until the next bell belongs to no chunk.
            self._ended_at = None

    def _ended(self, now: float) -> None:
        if self._ended_at is not None:
            generating, recording = 0.0, 0.0
            if self._begun_at is not None:
                generating = self._recording_at - self._begun_at
                recording = self._recorded_at - self._recording_at
            times = {"seconds": now - self._ended_at, "generating": generating, "recording": recording, "rows": self._rows}
            self._file.write(json.dumps(times) + "\n")
        self._ended_at = now


if __name__ == "__main__":
    with open(os.environ["GISTMILL_BENCHMARK_CHUNKS"], "w", buffering=1) as notes:
        faults.arm(Clock(notes))
        sys.exit(main())
