"""Child processes and what they take: started, measured through /proc, and ended whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers import die_with_parent

MIB = 1024**2
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Child:
    """A process that this benchmark started, with the file it logs to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def require_alive(self) -> None:
        """Return while it runs.

        Raises:
            RuntimeError: it has ended; the message holds the end of its log.
        """
        if self.process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}: {tail}")

    def stop(self, *, patience_s: float = 20.0) -> None:
        """End it in good order, else by force."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_module(
    name: str, module: str, *arguments: str, log: Path, environment: Mapping[str, str] | None = None, keep_log: bool = True
) -> Child:
    """Start `python -m module` in the repository; it ends with this process at the latest."""
    return start_command(name, [sys.executable, "-m", module, *arguments], log=log, environment=environment, keep_log=keep_log)


def start_command(
    name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None, keep_log: bool = True
) -> Child:
    """Start a command in the repository; it ends with this process at the latest."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=dict(os.environ) | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output if keep_log else subprocess.DEVNULL,
            stderr=output if keep_log else subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
    return Child(name, process, log)


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process now, shared pages included; 0 when it has ended."""
    return _status(pid, "VmRSS:")


def peak_rss_bytes(pid: int) -> int:
    """Return the most resident memory a process ever had; 0 when it has ended."""
    return _status(pid, "VmHWM:")


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes below this one."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from descendants(child)


def _status(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)
