"""The child's ends of its two pipes. Imports no torch, so that it is on guard before torch is loaded."""

from __future__ import annotations

import os
import signal
import threading

from workers.training.events import Event, to_json


class Outbox:
    """Tells the parent what happens."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, event: Event) -> None:
        """Write one event; blocks while the pipe is full, so an event is never lost while the parent lives."""
        data = memoryview(to_json(event).encode() + b"\n")
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]


class Orders:
    """What the parent wants. When its end of the pipe closes it is dead, and this process group dies with it.

    The whole group, at once: a DataLoader's worker would live on for seconds, and the main thread may be anywhere, also in a
    call that no exception reaches.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._stop = threading.Event()

    def listen(self) -> None:
        """Begin to listen, in a thread."""
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def should_stop(self) -> bool:
        """Say whether the parent has asked for a checkpoint and the end."""
        return self._stop.is_set()

    def _listen(self) -> None:
        while os.read(self._descriptor, 64):
            self._stop.set()
        os.killpg(0, signal.SIGKILL)
