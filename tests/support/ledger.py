"""The ledger: what workers did, appended to a file that the system under test knows nothing of."""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from gistmill.db.claim import Claim
from gistmill.db.session import Database
from gistmill.db.tables import results


@dataclass(frozen=True)
class Entry:
    """One thing that one process did."""

    event: str
    pid: int
    at: float
    chunk: int = 0
    epoch: int = 0
    job: int = 0
    rows: tuple[int, ...] = ()
    blow: str = ""


@dataclass
class Ledger:
    """Entries in the order in which they were written; O_APPEND keeps the lines of several processes whole."""

    path: Path
    _descriptor: int = field(default=-1, repr=False)

    def note(self, event: str, facts: dict[str, object]) -> None:
        """Append an entry."""
        if self._descriptor < 0:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        claim, rows = facts.get("claim"), facts.get("rows")
        line: dict[str, Any] = {"event": event, "pid": os.getpid(), "at": time.monotonic(), "blow": facts.get("blow", "")}
        if isinstance(claim, Claim):
            line |= {"chunk": claim.chunk_key, "epoch": claim.epoch, "job": claim.job_key}
        if isinstance(rows, list) and all(isinstance(row, int) for row in rows):
            line["rows"] = rows
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")

    def read(self) -> Iterator[Entry]:
        """Yield the entries; a line that its writer did not live to end is left out."""
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                body = json.loads(line)
            except ValueError:
                continue
            yield Entry(**body | {"rows": tuple(body.get("rows", ()))})

    def blows(self) -> Counter[str]:
        """Return how often each blow fell."""
        return Counter(entry.blow for entry in self.read() if entry.event == "struck")


def assert_agrees(ledger: Ledger, database: Database) -> None:
    """What SQL holds is what some owner wrote under its epoch, and what was committed is there.

    Raises:
        AssertionError: a result nobody wrote under its epoch, a commit that was lost, or one epoch granted twice.
    """
    begun: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    committed: set[tuple[int, int]] = set()
    grants: Counter[tuple[int, int]] = Counter()
    for entry in ledger.read():
        if entry.event == "record.begun":
            begun[entry.chunk, entry.epoch] |= set(entry.rows)
        elif entry.event == "record.committed":
            committed |= {(entry.job, row) for row in entry.rows}
        elif entry.event == "claim.committed" and entry.chunk:
            grants[entry.chunk, entry.epoch] += 1
    assert [grant for grant, times in grants.items() if times > 1] == [], "one epoch was granted twice"
    with database.read() as connection:
        rows = connection.execute(select(results)).all()
    stored = {(row.job_key, row.row_number) for row in rows}
    assert committed <= stored, f"committed, but not there: {sorted(committed - stored)[:10]}"
    # Errors that a reaper or a failing ending writes to what is left of a chunk have no micro-batch.
    stray = [
        (row.job_key, row.row_number, row.epoch)
        for row in rows
        if row.error_code not in ("worker_crashed", "chunk_failed") and row.row_number not in begun[row.chunk_key, row.epoch]
    ]
    assert stray == [], f"written by nobody under that epoch: {stray[:10]}"
