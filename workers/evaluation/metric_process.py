"""The parent's hold on the child that runs a metric module: start it, ask it, kill it. Imports neither evaluate nor torch.

Files:
    TMP/gistmill-metric-*/     caches of `evaluate` for one child, so that a home that cannot be written to is no obstacle and
                               two workers do not meet in one; removed with the child

Pipes: a line of JSON goes in for every pair and one comes out; a third pipe tells the child that its parent is dead. What the
module prints is read beside, so that it cannot block on a full pipe, and its end is kept for the case that it dies.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from gistmill.errors import Stopped

POLL_S = 0.1
# Its pipes close a little before it has ended.
DEATH_S = 2.0
READ_BYTES = 65_536
TAIL_BYTES = 4_096
# A module has no business with the settings of the worker, which hold passwords.
OURS = "GISTMILL_"


class Progress(Protocol):
    """What a metric sees of the lease that it works under."""

    def tick(self) -> None:
        """Note progress."""

    def reason(self) -> Stopped | None:
        """Return the reason to stop, if there is one, without noting progress."""


class Unwatched:
    """Nobody waits, and nobody stops the work."""

    def tick(self) -> None:
        """Note nothing."""

    def reason(self) -> Stopped | None:
        """Return no reason to stop."""
        return None


UNWATCHED = Unwatched()


class NoAnswer(Exception):
    """The child died, answered nonsense, or took too long; the text says which."""


class MetricProcess:
    """A child that has loaded one module, in a session of its own."""

    def __init__(self, path: Path, *, python: str = sys.executable) -> None:
        self._path = path
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._requests = self._answers = self._lifeline = self._output = -1
        self._unread = self._tail = b""

    @property
    def pid(self) -> int | None:
        """The process id, which is that of its process group too; None when it does not run."""
        return None if self._process is None else self._process.pid

    def start(self, *, limit_s: float, progress: Progress) -> dict[str, Any]:
        """Start the child and return what it says once the module is loaded.

        Raises:
            NoAnswer: it did not get so far.
            Stopped: `progress` gave that reason.
        """
        self._directory = tempfile.TemporaryDirectory(prefix="gistmill-metric-")
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        lifeline, self._lifeline = os.pipe()
        self._output, output = os.pipe()
        theirs = (requests, answers, lifeline)
        command = [self._python, "-m", "workers.evaluation.metric_child", str(self._path), *map(str, theirs)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=theirs,
                start_new_session=True,
                env=_environment(self._directory.name),
            )
        finally:
            for descriptor in (*theirs, output):
                os.close(descriptor)
        os.set_blocking(self._requests, False)
        return self._wait(b"", limit_s=limit_s, progress=progress)

    def ask(self, request: dict[str, Any], *, limit_s: float, progress: Progress) -> dict[str, Any]:
        """Send a request and return the answer to it.

        Raises:
            NoAnswer: none came within `limit_s`, or no answer to this.
            Stopped: `progress` gave that reason.
        """
        return self._wait(json.dumps(request).encode() + b"\n", limit_s=limit_s, progress=progress)

    def kill(self) -> None:
        """End the child and its helpers at once. Killing twice, or before the start, is no error."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for descriptor in (self._requests, self._answers, self._lifeline, self._output):
            if descriptor >= 0:
                os.close(descriptor)
        self._requests = self._answers = self._lifeline = self._output = -1
        if self._directory is not None:
            self._directory.cleanup()
        self._process = self._directory = None

    def _wait(self, unsent: bytes, *, limit_s: float, progress: Progress) -> dict[str, Any]:
        """Send what is unsent and return the next line that comes."""
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._unread:
            if (reason := progress.reason()) is not None:
                raise reason
            if time.monotonic() >= deadline:
                raise NoAnswer(f"it gave no answer for {limit_s:g} s")
            unsent = self._exchange(unsent)
        line, _, self._unread = self._unread.partition(b"\n")
        return _parse(line)

    def _exchange(self, unsent: bytes) -> bytes:
        """Wait a moment for the child to read or say something; return what is still unsent."""
        assert self._process is not None
        is_dead = self._process.poll() is not None
        heard, ready, _ = select.select(
            [self._answers, self._output], [self._requests] if unsent else [], [], 0 if is_dead else POLL_S
        )
        if self._output in heard:
            self._tail = (self._tail + os.read(self._output, READ_BYTES))[-TAIL_BYTES:]
        said = os.read(self._answers, READ_BYTES) if self._answers in heard else b""
        if not said and (is_dead or self._answers in heard):
            raise NoAnswer(self._last_words())
        self._unread += said
        if ready:
            with suppress(BrokenPipeError):
                unsent = unsent[os.write(self._requests, unsent) :]
        return unsent

    def _last_words(self) -> str:
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(DEATH_S)
        while select.select([self._output], [], [], 0)[0] and (said := os.read(self._output, READ_BYTES)):
            self._tail = (self._tail + said)[-TAIL_BYTES:]
        lines = self._tail.decode("utf-8", "replace").strip().splitlines()
        return f"its process ended with code {self._process.returncode}: {lines[-1][:300] if lines else 'it said nothing'}"


def _parse(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise NoAnswer(f"it answered {line[:100]!r}, which is not JSON") from error
    if not isinstance(answer, dict):
        raise NoAnswer(f"it answered {line[:100]!r}, which is no object")
    return answer


def _environment(directory: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    caches = {name: f"{directory}/{name.lower()}" for name in ("HF_MODULES_CACHE", "HF_METRICS_CACHE", "HF_EVALUATE_CACHE")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return kept | caches | offline
