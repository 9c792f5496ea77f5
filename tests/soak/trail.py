"""The ledger read while it is written: who holds what, which blows fell, and when the fleet went on."""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRESS = ("claim.committed", "record.committed", "ending.committed")


@dataclass(frozen=True)
class Step:
    """A claim, a micro-batch or an ending that was committed; times are the monotonic clock's, which processes share."""

    at: float
    pid: int
    chunk: int
    job: int


class Trail:
    """What the ledger tells so far. For several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._offset = 0
        self._steps: list[Step] = []
        self._blows: dict[str, Step] = {}
        # Per process, the chunks it took; 0 when it gave one back or found none.
        self._held: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)

    def blow(self, label: str) -> Step | None:
        """Return when the blow with this label fell, or None while it has not."""
        with self._lock:
            self._refresh()
            return self._blows.get(label)

    def held_by(self, pid: int, *, at: float | None = None) -> int:
        """Return the chunk that a process held then, or holds now; 0 for none."""
        with self._lock:
            self._refresh()
            held = self._held.get(pid, [])
            index = len(held) if at is None else bisect_right(held, (at, 2**62))
            return held[index - 1][1] if index else 0

    def next_step(self, after: float, *, pid: int = 0, chunk: int = 0, job: int = 0) -> Step | None:
        """Return the first step behind this moment: of this process, on this chunk, for this job, or any."""
        with self._lock:
            self._refresh()
            later = self._steps[bisect_right(self._steps, after, key=lambda step: step.at) :]
        wanted = ((pid, "pid"), (chunk, "chunk"), (job, "job"))
        return next((step for step in later if all(not key or getattr(step, name) == key for key, name in wanted)), None)

    def _refresh(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                self._note(json.loads(line))
            except ValueError:
                continue
        # Processes write in another order than they look at the clock; nearly sorted lists sort in linear time.
        self._steps.sort(key=lambda step: step.at)

    def _note(self, body: dict[str, Any]) -> None:
        event, at, chunk = body["event"], body["at"], body.get("chunk", 0)
        step = Step(at, body["pid"], chunk, body.get("job", 0))
        if event == "struck":
            self._blows[body["blow"]] = step
        if event in PROGRESS and chunk:
            self._steps.append(step)
        if event == "claim.committed":
            self._held[step.pid].append((at, chunk))
        elif event == "ending.committed":
            self._held[step.pid].append((at, 0))
