"""Deterministic text without torch: for tests, fault drills and measuring the orchestration alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

from gistmill.errors import DeviceOutOfMemory, GenerationFailed
from gistmill.faults import point
from gistmill.specs import GenerationParameters
from workers.engine.base import Completion, Outcome, Row
from workers.engine.batched import BatchedEngine, BatchFailed

POISON = "[[poison]]"
LONGEST_WAIT_S = 0.05
QUOTED_WORDS = 6
DEFAULT_BUDGET_TOKENS = 8192


class FakeEngine(BatchedEngine):
    """Completes a prompt with its first words and a digest; words are its tokens, which are merely numbered.

    Each row takes `seconds_per_row`. A text that holds `fail_on` fails alone; a batch of more than `out_of_memory_over_rows`
    rows runs out of memory. No end token is shown, but it counts as one token out, as with a real model.
    """

    name = "fake"
    device = "cpu"
    dtype = "none"
    weight_bytes = 0

    def __init__(
        self,
        *,
        seconds_per_row: float = 0.0,
        fail_on: str = POISON,
        out_of_memory_over_rows: int | None = None,
        budget_tokens: int = DEFAULT_BUDGET_TOKENS,
        max_rows: int = 8,
    ) -> None:
        self.seconds_per_row = seconds_per_row
        self.fail_on = fail_on
        self.out_of_memory_over_rows = out_of_memory_over_rows
        self.budget_tokens = budget_tokens
        self.max_rows = max_rows

    def close(self) -> None:
        """Do nothing: there is no memory to give back."""

    def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
        # A lone surrogate is no text; the real tokenizers refuse it too.
        for text in texts:
            text.encode()
        return [list(range(len(text.split())))[:limit] for text in texts]

    def _forward(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> list[Outcome] | None:
        if self.out_of_memory_over_rows is not None and len(rows) > self.out_of_memory_over_rows:
            raise BatchFailed(DeviceOutOfMemory())
        if any(self.fail_on in row.prompt.text for row in rows):
            raise BatchFailed(GenerationFailed(f"The fake engine fails on {self.fail_on}."))
        point("generate.begun", rows=rows)
        outcomes = [_complete(row, parameters) for row in rows]
        steps = max(outcome.tokens_out for outcome in outcomes)
        if not self._decode(steps, self.seconds_per_row * len(rows), should_stop):
            return None
        return list[Outcome](outcomes)

    def _decode(self, steps: int, seconds: float, should_stop: Callable[[], bool]) -> bool:
        """Let the time of a micro-batch pass in decode steps of at most 50 ms; False when told to stop."""
        steps = max(steps, int(seconds / LONGEST_WAIT_S) + 1)
        started = time.monotonic()
        for step in range(1, steps + 1):
            wait_s = min(seconds / steps, started + seconds * step / steps - time.monotonic())
            if wait_s > 0:  # A sleep of nothing takes 75 microseconds, more than all the rest of a row.
                time.sleep(wait_s)
            if should_stop():
                return False
        return True


def _complete(row: Row, parameters: GenerationParameters) -> Completion:
    words = row.prompt.text.split()[: len(row.tokens)]
    identity = " ".join(words)
    if parameters.do_sample:
        identity += f"\n{parameters.seed}:{row.prompt.noise}:{parameters.temperature}:{parameters.top_p}:{parameters.top_k}"
    elif parameters.num_beams > 1:
        identity += f"\n{parameters.num_beams}"
    written = ["summary", "of", *words[:QUOTED_WORDS], hashlib.sha256(identity.encode()).hexdigest()[:8]]
    finished = len(written) < parameters.max_new_tokens
    return Completion(
        key=row.prompt.key,
        text=" ".join(written[: parameters.max_new_tokens]),
        finish_reason="stop" if finished else "length",
        tokens_in=len(row.tokens),
        tokens_out=min(len(written) + 1, parameters.max_new_tokens),
        truncated=row.truncated,
    )
