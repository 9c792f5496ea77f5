"""A database that several threads of a handler use one after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from gistmill.db.session import Database


class Turns(Database):
    """The same database, of which all users together hold at most one connection.

    A worker has two, and one is the heartbeat's. Who waits for a turn is not counted against the pool's time-out, so a
    reader behind a slow transaction does not take the database for gone.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database.engine)
        self._turn = threading.Lock()

    @classmethod
    def of(cls, database: Database) -> Turns:
        """Return this database if its users take turns already, else one of whose users they do."""
        return database if isinstance(database, cls) else cls(database)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Wait for the turn; see `Database.read`."""
        with self._turn, super().read() as connection:
            yield connection

    @contextmanager
    def glance(self) -> Iterator[Connection]:
        """Wait for the turn; see `Database.glance`."""
        with self._turn, super().glance() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Wait for the turn; see `Database.write`."""
        with self._turn, super().write() as connection:
            yield connection
