"""Signs of life between two steps: an evaluation may take longer than any parent waits for a word."""

from __future__ import annotations

import time
from collections.abc import Callable

from workers.training.events import Event, Working

BEAT_S = 5.0


class Pulse:
    """Sends `Working` while work goes on. It has no thread of its own: a child that hangs has no pulse."""

    def __init__(
        self, send: Callable[[Event], None], should_stop: Callable[[], bool], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._should_stop = should_stop
        self._clock = clock
        self._beaten_at = clock()

    def beat(self) -> None:
        """Note progress; the parent is told once in five seconds."""
        now = self._clock()
        if now - self._beaten_at >= BEAT_S:
            self._beaten_at = now
            self._send(Working())

    def should_stop(self) -> bool:
        """Note progress and say whether to stop."""
        self.beat()
        return self._should_stop()
