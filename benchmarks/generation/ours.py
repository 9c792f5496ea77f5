"""Gistmill's engines alone: loaded as a worker loads them, called as a worker calls them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.generation.contestants import Answer
from benchmarks.generation.work import spread_evenly
from gistmill.specs import GenerationParameters
from models_store.store import Store
from workers.engine.base import Completion, Engine, Prompt
from workers.engine.loading import load_engine, load_greedy_engine
from workers.engine.tuned import TunedEngine

MAX_INPUT_TOKENS = 2_048


class OurEngine:
    """An engine of ours, bare: no queue, no SQL."""

    def __init__(
        self, directory: Path, *, scratch: Path, engine: str, device: str, most_tokens: int, precision: str, threads: int
    ) -> None:
        self._engine = _load(engine, directory, Store(scratch), device, precision, threads)
        self._parameters = GenerationParameters(max_new_tokens=most_tokens)

    @property
    def setting(self) -> str:
        """Lanes and batches of an engine that chooses them."""
        if not isinstance(self._engine, TunedEngine):
            return ""
        return f"{self._engine.lanes} lanes, batches of {self._engine.budget_tokens} tokens"

    def tune(self, prompts: Sequence[str]) -> None:
        """Answer these prompts until the engine has found its settings: it does so on real work.

        Prompts that are too few or too long for a trial change nothing: then it works on as it began.
        """
        while isinstance(self._engine, TunedEngine) and self._engine.tuner is not None:
            tuner, trials = self._engine.tuner, self._engine.tuner.trials
            self.answer(prompts, len(prompts))
            if tuner.trials == trials:
                return

    def answer(self, prompts: Sequence[str], most_rows: int) -> Answer:
        """Complete the prompts, or so many of them, spread over all lengths."""
        rows = spread_evenly([len(prompt) for prompt in prompts], most_rows)
        texts: dict[int, str] = {}
        batches: list[list[int]] = []
        written = 0
        for outcomes in self._engine.generate(
            [Prompt(row, prompts[row]) for row in rows],
            self._parameters,
            max_input_tokens=MAX_INPUT_TOKENS,
            on_overflow="fail",
            should_stop=lambda: False,
        ):
            done = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
            if len(done) < len(outcomes):
                raise RuntimeError(f"the engine failed on {len(outcomes) - len(done)} rows")
            texts |= {each.key: each.text for each in done}
            written += sum(each.tokens_out for each in done)
            batches.append([each.tokens_in for each in done])
        return Answer(texts, sum(map(sum, batches)), written, batches)


def _load(engine: Any, directory: Path, store: Store, device: str, precision: Any, threads: int) -> Engine:
    if engine == "transformers":
        return load_engine(engine, directory, device=device, precision=precision, threads=threads)
    loaded = load_greedy_engine(engine, directory, store, device=device, precision=precision, threads=threads)
    if loaded is None:
        raise RuntimeError(f"the engine {engine} cannot run this model here")
    return loaded
