"""A pipe whose end of file tells a process that its parent is dead."""

from __future__ import annotations

import os
import signal
import threading
import time


def hold(descriptor: int, *, grace_s: float) -> None:
    """End this process gracefully when the other end of the pipe closes, and for good after `grace_s`."""
    threading.Thread(target=_wait, args=(descriptor, grace_s), name="lifeline", daemon=True).start()


def _wait(descriptor: int, grace_s: float) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os._exit(1)
