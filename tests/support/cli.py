"""The command line as a user runs it: real processes with a home of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.nursery import Nursery
from tests.support.servers import die_with_parent, wait_until


def _begin() -> None:
    # A runner that was started in the background ignores SIGINT, and so would every process below it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent()


@dataclass
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)


@dataclass
class Home:
    """A data directory and the environment around it, with the fake engine and short periods.

    With a nursery the commands that it runs to their end, and gives no input, are forks: a second of imports less for each.
    """

    path: Path
    environment: dict[str, str] = field(default_factory=dict)
    nursery: Nursery | None = None

    def env(self) -> dict[str, str]:
        """Return the environment of commands."""
        fast = {
            "GISTMILL_HOME": str(self.path),
            "GISTMILL_API__PORT": "0",
            "GISTMILL_WORKER__ENGINE": "fake",
            "GISTMILL_WORKER__LEASE_S": "2",
            "GISTMILL_WORKER__RENEW_S": "0.5",
            "GISTMILL_WORKER__WISH_S": "0.3",
            "GISTMILL_WORKER__SWEEP_S": "0.4",
            "GISTMILL_WORKER__MARGIN_S": "0.3",
            "GISTMILL_WORKER__DRAIN_S": "8",
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }
        return dict(os.environ) | fast | self.environment

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and return its process."""
        return subprocess.Popen(
            [sys.executable, "-c", "from gistmill.cli import main; main()", *arguments],
            env=self.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_begin,
        )

    def run(self, *arguments: str, stdin: bytes = b"", timeout_s: float = 90.0) -> Done:
        """Run a command to its end."""
        if self.nursery is not None and not stdin:
            return self._fork(self.nursery, arguments, timeout_s)
        done = subprocess.run(
            [sys.executable, "-c", "from gistmill.cli import main; main()", *arguments],
            env=self.env(),
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def _fork(self, nursery: Nursery, arguments: tuple[str, ...], timeout_s: float) -> Done:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            descriptors = {1: out.fileno(), 2: err.fileno()}
            process = nursery.fork(arguments, environment=self.env(), descriptors=descriptors)
            try:
                status = process.wait(timeout_s)
            finally:
                process.send_signal(signal.SIGKILL)
            out.seek(0)
            err.seek(0)
            return Done(status, out.read().decode(), err.read().decode())

    def processes(self) -> list[int]:
        """Return the ids of living processes that belong to this home."""
        mark = f"GISTMILL_HOME={self.path}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                cwd = os.readlink(entry / "cwd")
                environment = (entry / "environ").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            # redis-server writes its title over its environment, but works in the home.
            if state != "Z" and (mark in environment or cwd == str(self.path)):
                found.append(int(entry.name))
        return found

    def commands(self) -> dict[int, str]:
        """Return the living processes of this home with their command lines."""
        found = {}
        for pid in self.processes():
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def wait_until_empty(self, timeout_s: float = 20.0) -> None:
        """Wait until no process of this home lives."""
        wait_until(lambda: not self.processes(), timeout_s=timeout_s, what="the end of every process of the stack")

    def clean_up(self) -> None:
        """Kill whatever is left."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@contextmanager
def running_stack(directory: Path, nursery: Nursery) -> Iterator[Home]:
    """Give a home in which a stack with the fake engine runs; at the end it stops, and nothing of it is left.

    Its commands are forks of the nursery.
    """
    home = Home(directory, nursery=nursery)
    up = home.start("up")
    state = home.path / "stack.json"
    wait_until(lambda: state.exists() and "ready" in state.read_text(), timeout_s=60, what="the stack")
    yield home
    up.send_signal(signal.SIGTERM)
    up.communicate(timeout=60)
    home.wait_until_empty()
