"""The way into the database: who waits for SQLite's write lock, and how long."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from gistmill.db import session
from gistmill.db.session import Database, open_database
from gistmill.errors import StoreUnavailable


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Database]:
    """An SQLite file with one table."""
    database = open_database(f"sqlite:///{tmp_path}/file.db")
    with database.write() as connection:
        connection.execute(text("CREATE TABLE written (n INTEGER)"))
    yield database
    database.close()


def test_writer_asks_for_the_lock_in_short_steps(file: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    holder = ExitStack()
    holder.enter_context(file.write())

    def let_go_at_last(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 50:
            holder.close()

    monkeypatch.setattr(session.time, "sleep", let_go_at_last)

    file.transact(lambda connection: connection.execute(text("INSERT INTO written VALUES (1)")))

    assert len(waits) == 50
    assert max(waits) <= session.LONGEST_WAIT_S


def test_new_connection_does_not_wait_for_whoever_writes(file: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BUSY_S", 0)
    other = open_database(str(file.engine.url))

    with file.write(), other.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM written")).scalar_one() == 0
        assert connection.execute(text("PRAGMA auto_vacuum")).scalar_one() == 2

    other.close()


def test_writer_gives_up_when_the_lock_is_held_for_too_long(file: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BUSY_S", 0)

    with file.write(), pytest.raises(StoreUnavailable, match="locked"):
        file.transact(lambda connection: connection.execute(text("INSERT INTO written VALUES (1)")))

    monkeypatch.undo()
    with file.write() as connection:
        connection.execute(text("INSERT INTO written VALUES (2)"))
        assert connection.execute(text("SELECT n FROM written")).scalars().all() == [2]
        # Whatever else has to wait, such as a checkpoint, waits as long as before.
        assert connection.execute(text("PRAGMA busy_timeout")).scalar_one() == session.BUSY_S * 1000


def test_writer_waits_for_whoever_recovers_the_log_of_the_file(file: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[int] = []

    class Recovered(sqlite3.Connection):
        """Answers as SQLite does while another connection goes through the log that a dead process has left."""

        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            if statement == "BEGIN IMMEDIATE" and len(refused) < 3:
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY_RECOVERY
                refused.append(error.sqlite_errorcode)
                raise error
            return super().execute(statement, *parameters)

    monkeypatch.setattr(sqlite3.dbapi2, "connect", partial(sqlite3.connect, factory=Recovered))
    other = open_database(str(file.engine.url))
    other.transact(lambda connection: connection.execute(text("INSERT INTO written VALUES (3)")))
    other.close()
    assert len(refused) == 3


def test_connection_in_use_when_the_database_is_closed_is_closed_when_it_is_given_back(database_url: str) -> None:
    opened = open_database(database_url)
    with opened.read() as connection:
        record = connection.connection._connection_record  # type: ignore[attr-defined]
        assert record is not None
        opened.close()
        assert connection.execute(select(1)).scalar_one() == 1
    assert record.dbapi_connection is None
    with opened.read() as connection:
        assert connection.execute(select(1)).scalar_one() == 1
    opened.close()
