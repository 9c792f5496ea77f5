"""An engine whose first rows on a host are the trials by which its settings are chosen; see tuning.py."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence

from gistmill.specs import GenerationParameters
from workers.engine.base import Completion, Outcome, Row
from workers.engine.batched import BatchedEngine
from workers.engine.tuning import Setting, Tuner


class TunedEngine(BatchedEngine):
    """A batched engine that completes rows in slices, each under the setting that its tuner wants tried, until one is chosen.

    Without a tuner it works by the setting that it has.
    """

    tuner: Tuner | None = None
    clock: Callable[[], float] = staticmethod(time.perf_counter)

    @abstractmethod
    def _adopt(self, setting: Setting) -> bool:
        """Work by this setting from here on, or return False when that cannot be done. No batch is under way."""

    def complete(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each micro-batch as soon as it is finished; see `Engine.complete`."""
        rows = sorted(rows, key=lambda row: -len(row.tokens)) if self.tuner else rows
        while self.tuner and (trial := self.tuner.find_trial([len(row.tokens) for row in rows])):
            setting, count = trial
            if not self._adopt(setting):
                self.tuner = None
            elif (yield from self._try(self.tuner, setting, rows[:count], parameters, should_stop)):
                rows = rows[count:]
            else:
                return
        if rows:
            yield from super().complete(rows, parameters, should_stop)

    def _try(
        self,
        tuner: Tuner,
        setting: Setting,
        rows: Sequence[Row],
        parameters: GenerationParameters,
        should_stop: Callable[[], bool],
    ) -> Generator[list[Outcome], None, bool]:
        """Complete these rows as a trial of the setting in use; return False when told to stop meanwhile.

        What the caller does between two batches counts too: with one lane nothing is computed meanwhile.
        """
        done: list[Outcome] = []
        began_at = ended_at = self.clock()
        for outcomes in super().complete(rows, parameters, should_stop):
            ended_at = self.clock()
            done += outcomes
            yield outcomes
        made = [outcome for outcome in done if isinstance(outcome, Completion)]
        # A row that failed was tried several times, for a reason of its own.
        if len(made) == len(rows):
            tokens_in, tokens_out = sum(each.tokens_in for each in made), sum(each.tokens_out for each in made)
            tuner.note(setting, tokens_in=tokens_in, tokens_out=tokens_out, seconds=ended_at - began_at)
            if tuner.chosen:
                self._adopt(tuner.chosen)
                self.tuner = None
        return len(done) == len(rows)
