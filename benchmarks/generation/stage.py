"""One stage: its model, its contestants side by side in processes of their own, and their rounds one after the other."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.generation.contestants import LOOP, SORTED, Entry
from benchmarks.generation.figures import Result
from benchmarks.generation.models import make_model
from benchmarks.generation.plan import MOST_ROWS, SLOW, Stage
from benchmarks.generation.seat import Seat
from benchmarks.generation.system import Form, Stack, System
from benchmarks.generation.work import PROMPT, make_dialogues, make_short_dialogues, read_dialogues, spread_evenly
from gistmill import prompts

BUILT_IN = Path(__file__).resolve().parents[2] / "models_store" / "builtin"
FIRST_ROWS = 4
TRIAL_ROWS = 12
FEWEST_SLOW_ROWS = {LOOP.name: 4, SORTED.name: 16}
# The largest batches that are tried must be full, one for each of two threads.
LEAST_TUNE_ROWS = {"sorted": 32, "ctranslate2": 64, "engine": 64}
# The least chunk: so many rows for each worker make one chunk for each, and a worker is warm after its first.
WARM_ROWS = 16


class Measurement:
    """A stage in the making: `run` returns the results of all contestants."""

    def __init__(self, stage: Stage, directory: Path, *, data: Path | None, device: str, threads: int) -> None:
        self._stage, self._directory, self._device, self._threads = stage, directory, device, threads
        directory.mkdir(parents=True)
        self.dialogues = _find_dialogues(stage, data)
        self.model = (
            BUILT_IN / stage.model if stage.ends_by_itself else make_model(directory / "model", stage.model, self.dialogues)
        )
        self.rows: list[int] = []

    def run(self) -> list[Result]:
        """Start the contestants, let them warm up and tune, and measure the rounds, every other one in reverse."""
        with ExitStack() as stack:
            seats = [self._take_seat(entry, stack) for entry in self._stage.entries]
            systems = self._start_systems(stack)
            self._limit(seats)
            contestants: list[Seat | System] = [*seats, *systems]
            for number in range(self._stage.rounds):
                for contestant in contestants[:: 1 if number % 2 == 0 else -1]:
                    self._say(f"round {number + 1} of {self._stage.rounds}: {contestant.result.name}, {len(self.rows)} rows")
                    contestant.measure(self.rows)
        results = [contestant.result for contestant in contestants]
        self._check(results)
        return results

    def _take_seat(self, entry: Entry, stack: ExitStack) -> Seat:
        self._say(f"starting {entry.name}")
        scratch = self._directory / f"{entry.name}.files"
        scratch.mkdir()
        seat = Seat(
            entry,
            self._directory / f"{entry.name}.log",
            model=str(self.model),
            prompts=str(self._write_prompts()),
            scratch=str(scratch),
            device=self._device,
            threads=self._threads,
            most_tokens=self._stage.most_tokens,
        )
        stack.callback(seat.stop)
        seat.warm_up(self._spread(FIRST_ROWS))
        if self._stage.tune_rows:
            self._say(f"tuning {entry.name}")
            seat.tune(self._spread(max(self._stage.tune_rows, LEAST_TUNE_ROWS.get(entry.kind, 0))))
        return seat

    def _start_systems(self, stack: ExitStack) -> list[System]:
        return [
            system
            for workers, forms in ((1, self._stage.one_worker), (2, self._stage.two_workers))
            if forms
            for system in self._start_stack(workers, forms, stack)
        ]

    def _start_stack(self, workers: int, forms: Sequence[Form], stack: ExitStack) -> list[System]:
        """Start a stack and warm its workers up, once for each precision: another one is another model to them."""
        self._say(f"starting a stack with workers: {workers}")
        directory = self._directory / f"stack-{workers}"
        made = Stack(
            directory,
            self.model,
            workers=workers,
            most_tokens=self._stage.most_tokens,
            device=self._device,
            # A host tunes an engine once; that it did so is no part of a warm figure.
            tuned=sorted(self._directory.glob("*.files/tuning/*.json")),
        )
        stack.callback(made.stop)
        systems = [System(made, form, self.dialogues) for form in forms]
        for precision in {form.precision for form in forms}:
            first = next(system for system in systems if system.form.precision == precision)
            self._say(f"warming up {first.result.name}")
            first.warm_up(self._spread(WARM_ROWS * workers))
        return systems

    def _limit(self, seats: Sequence[Seat]) -> None:
        """Choose the rows of a round, and how many of them the slow contestants take, by a short trial of each."""
        if not self._stage.round_s:
            self.rows = self._spread(self._stage.least_rows)
            for seat in seats:
                seat.most_rows = FEWEST_SLOW_ROWS.get(seat.entry.name, seat.most_rows)
            return
        trial = self._spread(TRIAL_ROWS)
        speeds = {seat.entry.name: seat.answer(trial).rows_per_s for seat in seats if seat.entry.kind != "loop"}
        fastest = [speed for name, speed in speeds.items() if name not in SLOW]
        wanted = round(self._stage.round_s * min(fastest))
        self.rows = self._spread(min(max(wanted, self._stage.least_rows), self._stage.most_rows))
        for seat in seats:
            if seat.entry.name in SLOW:
                speed = speeds.get(seat.entry.name) or seat.answer(self._spread(2)).rows_per_s
                seat.most_rows = max(2, round(self._stage.slow_s * speed))

    def _check(self, results: Sequence[Result]) -> None:
        """Refuse a run in which not all did the same work.

        Raises:
            RuntimeError: a summary does not have as many tokens as it must have.
        """
        if self._stage.ends_by_itself:
            return
        for result in results:
            written, expected = result.mean_tokens[1], self._stage.most_tokens
            if written != expected:
                raise RuntimeError(f"{result.name} wrote {written:.2f} tokens a row instead of {expected}")

    def _spread(self, count: int) -> list[int]:
        return spread_evenly([len(dialogue) for dialogue in self.dialogues], count)

    def _write_prompts(self) -> Path:
        path = self._directory / "prompts.json"
        if not path.exists():
            template = prompts.get(PROMPT)
            path.write_text(json.dumps([template.render(dialogue) for dialogue in self.dialogues]), encoding="utf-8")
        return path

    def _say(self, what: str) -> None:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {self._stage.name}: {what}\n")
        sys.stderr.flush()


def _find_dialogues(stage: Stage, data: Path | None) -> list[str]:
    if data is not None:
        return read_dialogues(data, MOST_ROWS)
    return make_short_dialogues(MOST_ROWS) if stage.ends_by_itself else make_dialogues(MOST_ROWS)
