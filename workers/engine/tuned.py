"""An engine whose first rows on a host are the trials by which its settings are chosen; see tuning.py."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence

from gistmill.specs import GenerationParameters
from workers.engine.base import Completion, More, Outcome, Row
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
        self,
        rows: Sequence[Row],
        parameters: GenerationParameters,
        should_stop: Callable[[], bool],
        more: More | None = None,
    ) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each micro-batch as soon as it is finished; see `Engine.complete`."""
        further: Sequence[Row] | None = rows
        while self.tuner and further is not None:
            rows = sorted(further, key=lambda row: -len(row.tokens))
            if not (yield from self._tune(self.tuner, rows, parameters, should_stop)):
                return
            if should_stop():
                return
            further = None if more is None else more()
            if further is not None and not further:
                yield []
        if further is not None:
            yield from super().complete(further, parameters, should_stop, more)

    def _tune(
        self, tuner: Tuner, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> Generator[list[Outcome], None, bool]:
        """Complete these rows, longest first, as far as they go in trials; return False when told to stop."""
        lengths = [len(row.tokens) for row in rows]
        too_long = tuner.count_too_long(lengths)
        if too_long and tuner.find_trial(lengths[too_long:]):
            # Before the trials: with one of these in front, none of the rows behind it would be tried.
            done = yield from self._collect(rows[:too_long], parameters, should_stop)
            if len(done) < too_long:
                return False
            rows = rows[too_long:]
        while self.tuner and (trial := tuner.find_trial([len(row.tokens) for row in rows])):
            setting, count = trial
            if not self._adopt(setting):
                self.tuner = None
            elif (yield from self._try(tuner, setting, rows[:count], parameters, should_stop)):
                rows = rows[count:]
            else:
                return False
        done = yield from self._collect(rows, parameters, should_stop)
        return len(done) == len(rows)

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
        began_at = self.clock()
        done = yield from self._collect(rows, parameters, should_stop)
        made = [outcome for outcome in done if isinstance(outcome, Completion)]
        # A row that failed was tried several times, for a reason of its own.
        if len(made) == len(rows):
            tokens_in, tokens_out = sum(each.tokens_in for each in made), sum(each.tokens_out for each in made)
            tuner.note(setting, tokens_in=tokens_in, tokens_out=tokens_out, seconds=self.clock() - began_at)
            if tuner.chosen:
                self._adopt(tuner.chosen)
                self.tuner = None
        return len(done) == len(rows)

    def _collect(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> Generator[list[Outcome], None, list[Outcome]]:
        """Complete these rows and return all their outcomes as well."""
        done: list[Outcome] = []
        for outcomes in super().complete(rows, parameters, should_stop):
            done += outcomes
            yield outcomes
        return done
