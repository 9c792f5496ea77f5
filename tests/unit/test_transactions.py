"""What a transaction promises, on SQLite and with a database that finds deadlocks."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from gistmill.db.session import Changed, Database
from gistmill.errors import StoreUnavailable

SYNCHRONOUS_FULL = 2


class Refused(Exception):
    """What a driver raises; `sqlstate` says why."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


def refusals(*sqlstates: str) -> Iterator[OperationalError]:
    return (OperationalError("UPDATE", None, Refused(state)) for state in sqlstates)


def test_commit_on_sqlite_waits_for_the_disk(sqlite_only: Database) -> None:
    with sqlite_only.read() as first, sqlite_only.read() as second:
        found = [connection.exec_driver_sql("PRAGMA synchronous").scalar_one() for connection in (first, second)]
    assert found == [SYNCHRONOUS_FULL, SYNCHRONOUS_FULL]


def test_transaction_that_writes_holds_the_write_lock_from_its_begin(sqlite_only: Database) -> None:
    file = str(sqlite_only.engine.url.database)
    with closing(sqlite3.connect(file, timeout=0)) as other:
        with sqlite_only.write():
            assert is_locked(other)
        assert not is_locked(other)


def is_locked(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return True
    return False


@pytest.mark.parametrize("sqlstate", ["40P01", "40001"])
def test_deadlock_repeats_the_transaction_from_its_start(sqlite_only: Database, sqlstate: str) -> None:
    failing = refusals(sqlstate, sqlstate)

    def work(connection: Connection) -> int:
        changed = connection.exec_driver_sql("UPDATE tenants SET weight = weight + 1").rowcount
        for error in failing:
            raise error
        return changed

    assert sqlite_only.transact(work) == 1
    with sqlite_only.read() as connection:
        assert connection.exec_driver_sql("SELECT weight FROM tenants").scalar_one() == 2


def test_other_errors_are_not_repeated(sqlite_only: Database) -> None:
    failing = refusals("57014", "57014")

    def work(_connection: Connection) -> None:
        raise next(failing)

    with pytest.raises(StoreUnavailable):
        sqlite_only.transact(work)
    assert len(list(failing)) == 1


def test_transaction_whose_ground_has_changed_is_undone_and_repeated(sqlite_only: Database) -> None:
    changes = [Changed(), Changed()]

    def work(connection: Connection) -> str:
        connection.exec_driver_sql("UPDATE tenants SET weight = weight + 1")
        if changes:
            raise changes.pop()
        return "done"

    assert sqlite_only.transact(work) == "done"
    with sqlite_only.read() as connection:
        assert connection.exec_driver_sql("SELECT weight FROM tenants").scalar_one() == 2


def test_transaction_whose_ground_changes_for_ever_gives_up(sqlite_only: Database) -> None:
    def work(_connection: Connection) -> None:
        raise Changed

    with pytest.raises(StoreUnavailable, match="changed 6 times"):
        sqlite_only.transact(work)
