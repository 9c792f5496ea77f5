"""The parent's hold on a training child: start it, hear it, stop it. Imports no torch.

Two pipes: events come out of one, orders go into the other. Nothing may be read into the child's standard output, where
libraries print what they like; its end is kept for the case that the child dies without a word.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import IO

from workers.training.events import Ending, Event, from_json
from workers.training.plan import TrainingPlan

PLAN_FILE = "plan.json"
STOP = b"stop\n"
TAIL_BYTES = 8_192
READ_BYTES = 65_536
# A child that dies while its DataLoader workers live closes no pipe, so its death is looked for this often.
DEATH_POLL_S = 0.2
DRAIN_S = 2.0


class ChildDied(Exception):
    """The child ended without a final event. A negative return code is the signal that killed it."""

    def __init__(self, returncode: int, stderr_tail: str) -> None:
        last = (stderr_tail.strip().splitlines() or ["it said nothing"])[-1]
        super().__init__(f"The training process ended with code {returncode}: {last[:300]}")
        self.returncode = returncode
        self.stderr_tail = stderr_tail


class TrainingChild:
    """A process that trains by a plan, in a session of its own. As a context manager it leaves no process behind.

    `environment` is added to this process's own.
    """

    def __init__(self, plan: TrainingPlan, environment: Mapping[str, str] | None = None) -> None:
        self.plan = plan
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._events = self._orders = -1
        self._tail: _Tail | None = None
        self._unread = b""
        self._heard: deque[Event] = deque()
        self._has_ended = False

    @property
    def pid(self) -> int:
        """The process id; the child leads the process group of this number."""
        return self._running().pid

    def start(self) -> None:
        """Write the plan into its work directory and start the child on it."""
        self.plan.work_dir.mkdir(parents=True, exist_ok=True)
        path = self.plan.work_dir / PLAN_FILE
        path.write_text(self.plan.model_dump_json(indent=1) + "\n", encoding="utf-8")
        self._events, events_in = os.pipe()
        orders_out, self._orders = os.pipe()
        command = [sys.executable, "-m", "workers.training", str(path)]
        try:
            self._process = subprocess.Popen(
                [*command, "--events", str(events_in), "--orders", str(orders_out)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(events_in, orders_out),
                start_new_session=True,
                env=self._environment,
            )
        finally:
            os.close(events_in)
            os.close(orders_out)
        assert self._process.stdout is not None
        self._tail = _Tail(self._process.stdout)

    def next_event(self, timeout_s: float) -> Event | None:
        """Return the next event, or None when none came in time, or after the final one.

        Raises:
            ChildDied: the child ended without a final event.
        """
        deadline = time.monotonic() + timeout_s
        while not self._heard and not self._has_ended:
            left_s = deadline - time.monotonic()
            if not self._hear(min(max(left_s, 0.0), DEATH_POLL_S)) and left_s <= 0:
                return None
        if not self._heard:
            return None
        event = self._heard.popleft()
        self._has_ended = self._has_ended or isinstance(event, Ending)
        return event

    def ask_to_stop(self) -> None:
        """Have the child write a checkpoint after its current step and end; a dead child needs no asking."""
        if self._orders >= 0:
            with suppress(BrokenPipeError):
                os.write(self._orders, STOP)

    def kill(self) -> None:
        """End the child and its helpers at once and wait for it. Killing twice, or before the start, is no error."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close()

    def __enter__(self) -> TrainingChild:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the child was not started")
        return self._process

    def _hear(self, wait_s: float) -> bool:
        """Read what the child says within `wait_s`; False when it said nothing."""
        process = self._running()
        if self._events < 0:
            raise ChildDied(process.wait(), self._stderr_tail())
        is_dead = process.poll() is not None
        readable, _, _ = select.select([self._events], [], [], 0 if is_dead else wait_s)
        if not readable and not is_dead:
            return False
        data = os.read(self._events, READ_BYTES) if readable else b""
        if not data:
            self._bury()
        *lines, self._unread = (self._unread + data).split(b"\n")
        self._heard.extend(from_json(line) for line in lines)
        return True

    def _bury(self) -> None:
        """Say that the child is dead, once everything that it said was heard."""
        self.kill()
        raise ChildDied(self._running().returncode, self._stderr_tail())

    def _stderr_tail(self) -> str:
        return "" if self._tail is None else self._tail.text()

    def _close(self) -> None:
        for descriptor in (self._events, self._orders):
            if descriptor >= 0:
                os.close(descriptor)
        self._events = self._orders = -1
        if self._tail is not None:
            self._tail.join()


class _Tail:
    """Reads a stream to its end in a thread, passes it on to our own standard error, and remembers its last bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._last = b""
        self._thread = threading.Thread(target=self._read, name="training-stderr", daemon=True)
        self._thread.start()

    def text(self) -> str:
        """Return the end of what was said; complete once `join` has returned."""
        return self._last.decode("utf-8", "replace")

    def join(self) -> None:
        """Wait until the stream is read; its writers are dead by now."""
        self._thread.join(DRAIN_S)

    def _read(self) -> None:
        with self._stream as stream:
            for line in stream:
                self._last = (self._last + line)[-TAIL_BYTES:]
                sys.stderr.write(line.decode("utf-8", "replace"))
