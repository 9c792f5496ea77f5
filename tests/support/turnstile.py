"""Tests that nothing may run beside, in a run of several processes (`--numprocesses`).

On disk, in a folder of the run: `door` and `room`, two files that hold nothing and are only locked.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turnstile:
    """Lets the tests of all processes in side by side, and one that must be alone by itself.

    A test holds the room, shared or alone, and passes the door to get there. Who waits for the whole room keeps the door:
    else those that share the room could take turns, and it would never be empty.
    """

    def __init__(self, directory: Path) -> None:
        self._door = (directory / "door").open("w")
        self._room = (directory / "room").open("w")

    def close(self) -> None:
        """Close the files."""
        self._door.close()
        self._room.close()

    @contextmanager
    def entered(self, *, is_alone: bool) -> Iterator[None]:
        """Wait for a place, and keep it."""
        fcntl.flock(self._door, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._room, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            # Unlocked by name: a process that a test forked may have the files open too.
            fcntl.flock(self._room, fcntl.LOCK_UN)
