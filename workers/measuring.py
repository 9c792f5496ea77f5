"""Measures the engine while it works: seconds inside it, tokens and dialogues of a chunk, apart from load and warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from weakref import WeakSet

from sqlalchemy import Connection

from gistmill.db import speed
from gistmill.db.speed import Measurement, Work
from workers.engine.base import Completion, Engine, Outcome


class Meter:
    """Tells the engines that have run in this process from those whose first micro-batch still warms them up.

    `load_s` returns the seconds that an engine took to load.
    """

    def __init__(self, device_name: str, load_s: Callable[[Engine], float | None]) -> None:
        self.device_name = device_name
        self.load_s = load_s
        self._warm: WeakSet[Engine] = WeakSet()

    def is_warm(self, engine: Engine) -> bool:
        """Return whether the engine has completed a micro-batch."""
        return engine in self._warm

    def note_warm(self, engine: Engine) -> None:
        """Note that the engine has completed a micro-batch."""
        self._warm.add(engine)


class ChunkMeter:
    """Measures one chunk; one for each run of a chunk. Its calls come from one thread at a time."""

    def __init__(self, meter: Meter, work: Work) -> None:
        self._meter = meter
        self._work = work
        self._version_digest = ""
        self._engine: Engine | None = None
        self._steady = _Sums()
        self._first: _Sums | None = None
        self._load_s: float | None = None

    def timed(self, engine: Engine, batches: Iterable[list[Outcome]], *, version_digest: str) -> Iterator[list[Outcome]]:
        """Pass the micro-batches of `engine.generate` on; only the time in which the engine is asked for them counts.

        `version_digest` names the files of the model version: an adapter's own.
        """
        self._engine, self._version_digest = engine, version_digest
        # Failures that come before the first completion took no forward pass: their time is the next batch's.
        seconds = 0.0
        began_at = time.perf_counter()
        for outcomes in batches:
            seconds += time.perf_counter() - began_at
            completions = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
            if completions:
                self._sums_of(engine).add(completions, seconds)
                seconds = 0.0
            yield outcomes
            began_at = time.perf_counter()

    def ending(self) -> Callable[[Connection], None] | None:
        """Return what writes the measurement down, or None when the engine completed nothing."""
        if self._engine is None or not (self._first or self._steady.dialogues):
            return None
        return partial(speed.record, measurement=self._measurement(self._engine))

    def _sums_of(self, engine: Engine) -> _Sums:
        """Return where a micro-batch of the engine counts: the first one after the load is warm-up, and no speed."""
        if self._meter.is_warm(engine):
            return self._steady
        self._meter.note_warm(engine)
        self._load_s = self._meter.load_s(engine)
        self._first = _Sums()
        return self._first

    def _measurement(self, engine: Engine) -> Measurement:
        steady = self._steady
        return Measurement(
            work=self._work,
            version_digest=self._version_digest,
            engine=engine.name,
            device_name=self._meter.device_name[:200],
            dtype=engine.dtype,
            dialogues=steady.dialogues,
            tokens_in=steady.tokens_in,
            tokens_out=steady.tokens_out,
            seconds=steady.seconds,
            load_s=self._load_s,
            warmup_s=self._warmup_s(),
        )

    def _warmup_s(self) -> float | None:
        """Return what the first micro-batch took beyond its tokens at the speed of the later ones, or None if unknown."""
        first, steady = self._first, self._steady
        if first is None or not steady.tokens:
            return None
        return max(0.0, first.seconds - first.tokens * steady.seconds / steady.tokens)


class _Sums:
    """Sums over micro-batches."""

    def __init__(self) -> None:
        self.dialogues = 0
        self.tokens_in = 0
        self.tokens_out = 0
        self.seconds = 0.0

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.tokens_in + self.tokens_out

    def add(self, completions: list[Completion], seconds: float) -> None:
        """Add a micro-batch that took so long."""
        self.dialogues += len(completions)
        self.tokens_in += sum(completion.tokens_in for completion in completions)
        self.tokens_out += sum(completion.tokens_out for completion in completions)
        self.seconds += seconds
