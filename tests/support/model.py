"""Gistmill's jobs and chunks as plain Python: what SQL must hold after every step. No locks, no SQL, no time."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from gistmill.control.retry import retryable_codes
from gistmill.db.claim import Claim

MAX_FAILURES = MAX_CRASHES = 3
ALIVE = ("queued", "running")
FINAL = ("completed", "failed", "cancelled")
LOST = ("failed", "cancelled")


@dataclass
class End:
    """How an item ended: `code` None is a summary."""

    code: str | None
    attempt: int
    epoch: int


@dataclass
class ModelChunk:
    """A range of ranks."""

    first: int
    last: int
    state: str = "queued"
    epoch: int = 0
    owner: str | None = None
    failures: int = 0
    crashes: int = 0
    progressed: bool = False
    rests: bool = False
    outcome: str | None = None

    def queue(self) -> None:
        """Wait to be claimed again."""
        self.state, self.owner = "queued", None

    def reopen(self) -> None:
        """Wait to be claimed as if never claimed before, save for the epoch."""
        self.queue()
        self.failures = self.crashes = 0
        self.outcome, self.rests = None, False

    def end(self, outcome: str) -> None:
        """Be done."""
        self.state, self.owner, self.outcome = "done", None, outcome


@dataclass
class ModelJob:
    """A job with its chunks by ordinal. `ranks` says which dialogue each row holds; all rows are selected.

    It waits for `needs`, and its `dependents` wait for it.
    """

    key: int
    id: str
    ranks: dict[int, int]
    chunks: list[ModelChunk]
    state: str = "queued"
    paused: bool = False
    attempt: int = 1
    codes: tuple[str, ...] | None = None
    ends: dict[int, End] = field(default_factory=dict)
    not_run: int = 0
    needs: list[ModelJob] = field(default_factory=list)
    dependents: list[ModelJob] = field(default_factory=list)
    error: str | None = None

    @property
    def succeeded(self) -> int:
        """Items with a summary."""
        return sum(end.code is None for end in self.ends.values())

    @property
    def failed(self) -> int:
        """Items with an error."""
        return len(self.ends) - self.succeeded

    @property
    def left(self) -> int:
        """Chunks that are not done."""
        return sum(chunk.state != "done" for chunk in self.chunks)

    def is_pending(self, row: int) -> bool:
        """True when the item has no end, or an error that the current attempt takes up again."""
        end = self.ends.get(row)
        if end is None:
            return True
        is_old = end.code is not None and end.attempt < self.attempt
        return is_old and (self.codes is None or end.code in self.codes)

    def pending(self, first: int, last: int) -> list[int]:
        """Return the pending rows of a range of ranks, by rank and row."""
        rows = [row for row, rank in self.ranks.items() if first <= rank <= last and self.is_pending(row)]
        return sorted(rows, key=lambda row: (self.ranks[row], row))

    def next_chunk(self) -> ModelChunk | None:
        """Return what a claim of this job takes."""
        if self.state not in ALIVE or self.paused:
            return None
        return next((chunk for chunk in self.chunks if chunk.state == "queued" and not chunk.rests), None)

    def settle(self) -> None:
        """End the job when no chunk is left."""
        if self.left == 0 and self.state in (*ALIVE, "cancelling"):
            self.finish("cancelled" if self.state == "cancelling" else "completed")

    def finish(self, state: str, error: str | None = None) -> None:
        """End, and let those that wait know."""
        self.state, self.error = state, error
        self.not_run = len(self.ranks) - len(self.ends)
        for job in self.dependents:
            job.judge()

    def judge(self) -> None:
        """Go on when every need has completed, fail when one is lost."""
        if self.state != "waiting":
            return
        if self.has_lost_need():
            self.finish("failed", "dependency_failed")
        elif all(need.state == "completed" for need in self.needs):
            self.state = "queued"
            self.settle()

    def has_lost_need(self) -> bool:
        """True when a job that this one needs has failed or was cancelled."""
        return any(need.state in LOST for need in self.needs)

    def owns(self, claim: Claim) -> ModelChunk | None:
        """Return the claim's chunk if it is still this claim's."""
        return self._find(claim, "running")

    def keeps(self, claim: Claim) -> ModelChunk | None:
        """Return the chunk that was claimed ahead if it is still reserved for this claim."""
        return self._find(claim, "reserved")

    def _find(self, claim: Claim, state: str) -> ModelChunk | None:
        mine = (chunk for chunk in self.chunks if chunk.state == state and chunk.owner == claim.worker)
        return next((chunk for chunk in mine if chunk.epoch == claim.epoch and chunk.first == claim.first_rank), None)

    def record(self, chunk: ModelChunk, rows: list[int], code: str | None) -> None:
        """Give rows their ends."""
        chunk.progressed = True
        for row in rows:
            if self.is_pending(row):
                self.ends[row] = End(code, self.attempt, chunk.epoch)

    def give_back(self, chunk: ModelChunk, *, rests: bool = False) -> None:
        """Queue a chunk, or close it under a job that ended."""
        chunk.queue()
        chunk.rests = rests
        if self.state not in ALIVE:
            chunk.end("cancelled")
            self.settle()

    def fail(self, chunk: ModelChunk) -> None:
        """Cost the chunk a failure."""
        chunk.failures += 1
        if chunk.failures < MAX_FAILURES:
            self.give_back(chunk)
            return
        if self.state not in FINAL:
            self._fail_pending(chunk, "chunk_failed")
        chunk.end("done")
        self.settle()

    def fail_whole(self, chunk: ModelChunk) -> None:
        """End the job because of what happened in this chunk."""
        chunk.end("failed")
        if self.state not in FINAL:
            self.finish("failed", "error")

    def crash(self, chunk: ModelChunk) -> None:
        """Take a chunk away from an owner that is gone."""
        did_run = chunk.state == "running"
        if chunk.progressed:
            chunk.crashes = 0
        self.give_back(chunk)
        if chunk.state == "done" or chunk.progressed or not did_run:
            return
        unfinished = sorted({self.ranks[row] for row in self.pending(chunk.first, chunk.last)})
        if len(unfinished) > 1:
            border = unfinished[len(unfinished) // 2 - 1]
            self.chunks.append(ModelChunk(border + 1, chunk.last))
            chunk.last, chunk.crashes = border, 0
            return
        chunk.crashes += 1
        if chunk.crashes >= MAX_CRASHES:
            self._fail_pending(chunk, "worker_crashed")
            chunk.end("failed")
            self.settle()

    def cancel(self) -> None:
        """Wish the end of the job."""
        self.state = "cancelling"
        self._close_unrun()
        self.settle()

    def sweep(self) -> None:
        """Close what is queued under a job that ended, and with it what is reserved."""
        if self.state not in (*ALIVE, "waiting") and any(chunk.state == "queued" for chunk in self.chunks):
            self._close_unrun()
        self.settle()

    def _close_unrun(self) -> None:
        for chunk in self.chunks:
            if chunk.state in ("queued", "reserved"):
                chunk.end("cancelled")

    def missing(self, *, retryable: bool) -> int:
        """Return how many items a retry would take up."""
        codes = retryable_codes() if retryable else None
        return self.not_run + sum(self._is_failed_with(end, codes) for end in self.ends.values())

    def retry(self, *, retryable: bool) -> None:
        """Begin a new attempt over what is missing."""
        codes = retryable_codes() if retryable else None
        ranks = {self.ranks[row] for row, end in self.ends.items() if self._is_failed_with(end, codes)}
        by_first = sorted(self.chunks, key=lambda chunk: chunk.first)
        firsts = [chunk.first for chunk in by_first]
        holding = [by_first[bisect_right(firsts, rank) - 1] for rank in ranks]
        for chunk in self.chunks:
            if chunk in holding or chunk.outcome in LOST:
                chunk.reopen()
        self.paused, self.codes = False, codes
        self._begin_attempt()
        for job in self.dependents:
            job.revive()
        self.judge()

    def can_retry(self, *, retryable: bool) -> bool:
        """True when something is missing, or nothing but the state of a completed job, and no need is lost."""
        misses = self.missing(retryable=retryable) > 0 or (self.state != "completed" and not self.failed)
        return misses and not self.has_lost_need()

    def revive(self) -> None:
        """Wait again for a need that is taken up again."""
        if self.state == "failed" and self.error == "dependency_failed" and not self.has_lost_need():
            for chunk in self.chunks:
                if chunk.state == "done" and chunk.outcome in LOST:
                    chunk.reopen()
            self._begin_attempt()
            for job in self.dependents:
                job.revive()

    def _begin_attempt(self) -> None:
        self.state, self.error, self.not_run = "waiting", None, 0
        self.attempt += 1

    def _fail_pending(self, chunk: ModelChunk, code: str) -> None:
        for row in self.pending(chunk.first, chunk.last):
            self.ends[row] = End(code, self.attempt, chunk.epoch)

    @staticmethod
    def _is_failed_with(end: End, codes: tuple[str, ...] | None) -> bool:
        return end.code is not None and (codes is None or end.code in codes)
