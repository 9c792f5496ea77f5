"""A process that forks others with their imports behind them: a start is then a tenth of a second, not one, two or ten."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from tests.support.servers import die_with_parent

POLL_S = 0.01
MOST_BYTES = 2**17


class ForkedProcess:
    """A child of the nursery, with what tests use of `subprocess.Popen`; threads may share it."""

    def __init__(self, line: Line, pid: int, stdout: IO[bytes] | None = None) -> None:
        self._line = line
        self._asking = threading.Lock()
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        # How it ended is told once: of two threads that asked at the same moment, the later one would ask for nobody.
        with self._asking:
            if self.returncode is None:
                self.returncode = self._line.ask({"ended": self.pid})["status"]
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after this time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if timeout is not None and deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(POLL_S)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Line:
    """A connection to a nursery; threads may share it."""

    def __init__(self, address: Path) -> None:
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(str(address))

    def fork(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        descriptors: Mapping[int, int],
        is_leader: bool = False,
    ) -> ForkedProcess:
        """Start one with these arguments, this environment, and nothing else of the test's but the descriptors.

        Each is given as its number there and the one here. A leader has a session of its own.
        """
        question = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "targets": list(descriptors),
            "is_leader": is_leader,
        }
        return ForkedProcess(self, self.ask(question, list(descriptors.values()))["pid"])

    def ask(self, question: Mapping[str, object], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Ask the nursery and return its answer."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(question).encode()], descriptors)
            answer: dict[str, Any] = json.loads(self._socket.recv(MOST_BYTES))
        return answer

    def hang_up(self) -> None:
        """Close the connection."""
        self._socket.close()


class Nursery(Line):
    """Starts processes of one kind by forking: `worker`, a drilled worker; `command`, the command line; `training`, a child."""

    def __init__(self, kind: str = "worker") -> None:
        self._directory = TemporaryDirectory(prefix="gm-nursery-")
        self.address = Path(self._directory.name, "door")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.bind(str(self.address))
            door.listen()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.children.nursery", kind, str(door.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[door.fileno()],
                preexec_fn=die_with_parent,
            )
        super().__init__(self.address)

    def close(self) -> None:
        """End the process, and with it what it forked."""
        self.hang_up()
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()
