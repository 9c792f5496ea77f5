"""The thread that starts processes and looks after them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.05
STARTED_S = 120.0


class Host(threading.Thread):
    """The one thread that starts processes: the kernel ends a child together with the thread that started it."""

    def __init__(self, look_after: Callable[[], None]) -> None:
        super().__init__(name="host", daemon=True)
        self._look_after = look_after
        self._orders: queue.Queue[Callable[[], None] | None] = queue.Queue()

    def call(self, do: Callable[[], T]) -> T:
        """Return what `do` returns, called in this thread."""
        answer: Future[T] = Future()

        def carry_out() -> None:
            try:
                answer.set_result(do())
            except BaseException as error:  # noqa: BLE001 - it is raised where the call came from.
                answer.set_exception(error)

        self._orders.put(carry_out)
        return answer.result(timeout=STARTED_S)

    def run(self) -> None:
        """Carry out orders, and look after the seats in between."""
        while True:
            try:
                order = self._orders.get(timeout=POLL_S)
            except queue.Empty:
                self._look_after()
                continue
            if order is None:
                return
            order()

    def end(self) -> None:
        """End the thread. Every process that is left ends with it."""
        self._orders.put(None)
        self.join(timeout=30)
