"""How steps are run: a lane runs one after another on an arena and says, as late as it likes, which rows are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import Tensor

from workers.engine.graph.arena import Arena, View
from workers.engine.graph.encoder import align
from workers.engine.graph.step import Choice, decode_step
from workers.engine.graph.weights import T5Weights

Result = TypeVar("Result")


class Side(Protocol):
    """Computes beside the steps what rows need that join later."""

    def begin(self) -> None:
        """Let what was launched by now, such as a change of the weights, come before all that is run from here on."""
        ...

    def run(self, compute: Callable[[], Result]) -> tuple[Result, Any]:
        """Return a result, which may still be on its way, and the mark of its arrival."""
        ...

    def join(self, mark: Any, tensors: tuple[Tensor, ...]) -> None:
        """Let what is launched next come after the mark; it reads these tensors."""
        ...

    def end(self) -> None:
        """Let what is launched next come after all that was run."""
        ...


class Lane(Protocol):
    """Runs the steps of one arena with one choice of tokens. `lag` is by how many steps it reads later what is done."""

    lag: int

    def fit(self, needed: View, size: View) -> View:
        """Return the view to run a step in: at least what is needed, at most the arena's size."""
        ...

    def step(self, view: View) -> None:
        """Run one step."""
        ...

    def read_done(self) -> list[bool] | None:
        """Return which slots were done after an earlier step, or None when that is not known yet."""
        ...

    def forget(self) -> None:
        """Drop what was to be read: a row has come or gone, so what is known of its slot is no longer about it."""
        ...


class EagerLane:
    """Runs steps at once, on any device."""

    def __init__(self, weights: T5Weights, arena: Arena, choice: Choice, *, lag: int = 0) -> None:
        self._weights = weights
        self._arena = arena
        self._choice = choice
        self.lag = lag
        self._unread: deque[Tensor] = deque()

    def fit(self, needed: View, size: View) -> View:
        """Return what is needed, aligned."""
        return View(needed.slots, min(align(needed.source), size.source), min(align(needed.steps), size.steps))

    def step(self, view: View) -> None:
        """Run one step."""
        decode_step(self._weights, self._arena, view, self._choice)
        self._unread.append(self._arena.is_done.clone())

    def read_done(self) -> list[bool] | None:
        """Return which slots were done `lag` steps ago, or None when so many were not run yet."""
        if len(self._unread) <= self.lag:
            return None
        done: list[bool] = self._unread.popleft().tolist()
        return done

    def forget(self) -> None:
        """Drop what was to be read."""
        self._unread.clear()
