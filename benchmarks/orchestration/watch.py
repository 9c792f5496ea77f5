"""Watchers: threads that look at the running system every so often and remember what they saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from benchmarks.orchestration.processes import MIB, peak_rss_bytes, rss_bytes
from benchmarks.orchestration.stack import Stack
from gistmill.transport import Transport

BELLS_EVERY_S = 0.01
LOOK_EVERY_S = 0.5
READ_EVERY_S = 0.5


class Watcher:
    """Calls `look` every `every_s` seconds while the block runs; an error ends the watch and is raised at the end."""

    def __init__(self, look: Callable[[], None], every_s: float) -> None:
        self._look, self._every_s = look, every_s
        self._stopped = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watcher:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Look no more."""
        self._stopped.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stopped.wait(self._every_s):
                self._look()
        except Exception as error:  # noqa: BLE001 - it is raised where the block ends.
            self._error = error


class Bells:
    """The largest number of bells that hung in the list."""

    def __init__(self, stack: Stack) -> None:
        self._redis, self._list = stack.bells(), stack.bell_list
        self.most = self.looks = 0

    def look(self) -> None:
        """Count the bells."""
        self.most = max(self.most, int(self._redis.llen(self._list)))
        self.looks += 1


class Memory:
    """The most memory each process of a stack held, by its part."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._redis_pid = stack.redis_pid
        self.peaks: dict[str, int] = {}

    def look(self) -> None:
        """Read the kernel's own high-water marks."""
        for name, pid in self._parts():
            self.peaks[name] = max(self.peaks.get(name, 0), peak_rss_bytes(pid))

    @property
    def peaks_mib(self) -> dict[str, float]:
        """The peaks, in MiB."""
        return {name: round(peak / MIB, 1) for name, peak in sorted(self.peaks.items())}

    def _parts(self) -> list[tuple[str, int]]:
        stack = self._stack
        parts = [("redis-server", self._redis_pid), *(("postgres", pid) for pid in stack.database.pids())]
        parts += [(f"worker {number}", worker.child.pid) for number, worker in enumerate(list(stack.workers), start=1)]
        return parts if stack.api is None else [*parts, ("api", stack.api.pid)]


class Latency:
    """How long GET /v1/jobs/ID takes, over the course of the job."""

    def __init__(self, stack: Stack, job_id: str) -> None:
        self._client = stack.client()
        self._transport: Transport = self._client.transport
        self._path = f"/v1/jobs/{job_id}"
        self.seconds: list[float] = []

    def look(self) -> None:
        """Read the job once."""
        started = time.perf_counter()
        self._transport.get(self._path)
        self.seconds.append(time.perf_counter() - started)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Growth:
    """The resident memory of one process, for a look at whether it rises."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.bytes: list[int] = [rss_bytes(pid)]

    def look(self) -> None:
        """Read it once."""
        self.bytes.append(rss_bytes(self._pid))

    def rise_mib(self) -> float:
        """Return by how much the last nine tenths went above the most of the first tenth."""
        head = max(1, len(self.bytes) // 10)
        return round(max(0, max(self.bytes[head:], default=0) - max(self.bytes[:head])) / MIB, 1)
