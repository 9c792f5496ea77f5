"""The supervisor: owns the stack's processes, restarts what crashes, and ends them in order: workers, api, redis."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2

from gistmill.errors import AlreadyRunning, GistmillError
from gistmill.local.places import Places, try_lock
from gistmill.local.redis import find_server, free_port, make_config
from gistmill.settings import Settings

READY_S = 90.0
POLL_S = 0.1
LONGEST_RESTART_S = 10.0
LOG_TAIL_LINES = 15
PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One process of the stack."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    stdin: str = ""
    cwd: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    crashes: int = 0
    start_at: float = 0.0

    def start(self) -> None:
        """Start the process; on Linux it ends when the supervisor is killed."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.cwd,
                stdin=subprocess.PIPE if self.stdin else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        if self.stdin and self.process.stdin is not None:
            self.process.stdin.write(self.stdin.encode())
            self.process.stdin.close()

    def look_after(self) -> None:
        """Start the process again when it has died, ever more slowly."""
        if self.process is not None and self.process.poll() is None:
            return
        if self.process is not None:
            self.process = None
            self.crashes += 1
            self.start_at = time.monotonic() + min(LONGEST_RESTART_S, 0.5 * 2**self.crashes)
        if time.monotonic() >= self.start_at:
            self.start()

    def stop(self, timeout_s: float) -> None:
        """End the process: ask, wait, kill."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def tail(self) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def supervise(
    settings: Settings, *, private: bool, workers: bool = True, on_ready: Callable[[str], None] = lambda url: None
) -> int:
    """Run the stack of the data directory until it is told to end; a private one also ends with its last user.

    Raises:
        AlreadyRunning: a stack runs on this directory.
        GistmillError: a process did not come up; the message holds the end of its log.
    """
    places = Places(settings.data_dir)
    places.make()
    lock = _take(places.stack_lock)
    if lock is None:
        url = (places.read_state() or {}).get("url", "an address that is not known yet")
        raise AlreadyRunning(f"A Gistmill stack already runs on {places.home}, at {url}. Stop it with: gistmill down")
    for path in (places.state, places.want_workers, places.stay):
        path.unlink(missing_ok=True)
    supervisor = Supervisor(settings, places, private=private)
    try:
        supervisor.start(workers=workers)
        on_ready(supervisor.url)
        supervisor.watch()
    finally:
        supervisor.stop()
        places.state.unlink(missing_ok=True)
        os.close(lock)
    return 0


class Supervisor:
    """The processes of one stack."""

    def __init__(self, settings: Settings, places: Places, *, private: bool) -> None:
        self.settings = settings
        self.places = places
        self.private = private
        self.children: list[Child] = []
        self.url = ""
        self.environment = dict(os.environ)
        self._is_ending = False
        self._users_lock: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note_signal)

    def start(self, *, workers: bool) -> None:
        """Start redis, migrate the database, start api and workers, and wait until the api is ready."""
        port = free_port(0 if self.private else self.settings.api.port)
        self.url = f"http://127.0.0.1:{port}"
        self._write_state("starting")
        self.places.get_token()
        self._set_environment(port)
        if not self.settings.redis_url:
            config = make_config()
            self.environment["GISTMILL_REDIS__URL"] = config.url
            self._add("redis", [find_server(), "-"], stdin=config.text(), cwd=self.places.home)
        self._migrate()
        self._add("api", [sys.executable, "-m", "api"])
        if workers:
            self._add_workers()
        self._wait_until_ready()
        self._write_state("ready")

    def watch(self) -> None:
        """Keep the processes running until a signal comes or, in a private stack, the last user has left."""
        while not self._is_ending:
            for child in self.children:
                child.look_after()
            if self.private and self.places.want_workers.exists() and not self._has_workers():
                self._add_workers()
            if self.private and not self.places.stay.exists():
                # Held until this process ends: who comes now waits, and then starts a stack anew.
                self._users_lock = try_lock(self.places.users_lock)
                self._is_ending = self._users_lock is not None
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End the processes: workers drain first, so that they can still write; redis goes last."""
        self._write_state("stopping")
        for child in reversed(self.children):
            child.stop(self.settings.worker.drain_s + 5 if child.name == "workers" else 10.0)

    def _add(self, name: str, command: list[str], *, stdin: str = "", cwd: Path | None = None) -> None:
        child = Child(name, command, self.environment, self.places.logs / f"{name}.log", stdin, cwd)
        child.start()
        self.children.append(child)

    def _has_workers(self) -> bool:
        return any(child.name == "workers" for child in self.children)

    def _add_workers(self) -> None:
        self._add("workers", [sys.executable, "-m", "workers"])

    def _set_environment(self, port: int) -> None:
        self.environment.pop("GISTMILL_API__TOKEN", None)
        self.environment |= {
            "GISTMILL_HOME": str(self.places.home),
            "GISTMILL_API__HOST": "127.0.0.1",
            "GISTMILL_API__PORT": str(port),
            "GISTMILL_API__URL": self.url,
            "GISTMILL_API__TOKEN_FILE": str(self.places.token),
        }

    def _migrate(self) -> None:
        command = [sys.executable, "-m", "gistmill.admin", "upgrade"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise GistmillError(f"The database could not be made ready:\n{done.stderr.strip()[-2000:]}")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while not self._is_ready():
            for child in self.children:
                has_died = child.process is None or child.process.poll() is not None
                if has_died or time.monotonic() > deadline:
                    raise GistmillError(f"The {child.name} process did not come up. The end of {child.log}:\n{child.tail()}")
            if self._is_ending:
                raise GistmillError("The stack was told to end while it started.")
            time.sleep(POLL_S)

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=2.0).status_code == 200
        except httpx2.TransportError:
            return False

    def _write_state(self, state: str) -> None:
        mode = "private" if self.private else "up"
        self.places.write_state(url=self.url, pid=os.getpid(), mode=mode, state=state)

    def _note_signal(self, _number: int, _frame: object) -> None:
        self._is_ending = True


def _take(path: Path) -> int | None:
    """Take the lock; somebody who only looks whether it is held has it for an instant, so one refusal proves nothing."""
    for _ in range(10):
        lock = try_lock(path)
        if lock is not None:
            return lock
        time.sleep(0.03)
    return None


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
