"""Connections to PostgreSQL: which are asked whether the server is still there, and statements without a transaction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, text

from gistmill.db import session
from gistmill.db.session import Database, open_database
from tests.support.databases import PostgreSQLServer


@pytest.fixture
def database(postgresql_server: PostgreSQLServer) -> Iterator[Database]:
    """An empty PostgreSQL database with one table, over a single connection."""
    url = postgresql_server.make_empty()
    opened = open_database(url, connections=1)
    with opened.write() as connection:
        connection.execute(text("CREATE TABLE written (n INTEGER)"))
    yield opened
    opened.close()
    postgresql_server.drop(url)


@pytest.fixture
def pings(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The connections that are asked from now on."""
    asked: list[object] = []
    ask = database.engine.dialect.do_ping

    def note(driver: Any) -> bool:
        asked.append(driver)
        return ask(driver)

    monkeypatch.setattr(database.engine.dialect, "do_ping", note)
    return asked


def process_of(connection: Connection) -> int:
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def status_of(connection: Connection) -> TransactionStatus:
    driver: Any = connection.connection.driver_connection
    return TransactionStatus(driver.info.transaction_status)


def test_connection_that_was_used_just_now_is_not_asked(database: Database, pings: list[object]) -> None:
    for _ in range(3):
        with database.read() as connection:
            process_of(connection)
    assert pings == []


def test_connection_that_was_silent_for_long_is_asked(
    database: Database, pings: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SILENT_S", 0)
    with database.read() as connection:
        first = process_of(connection)
    with database.read() as connection:
        assert process_of(connection) == first
    assert len(pings) == 2


def test_session_that_the_server_ended_is_replaced_unnoticed(
    database: Database, postgresql_server: PostgreSQLServer, pings: list[object]
) -> None:
    with database.read() as connection:
        first = process_of(connection)

    # It returns when the process is gone.
    postgresql_server.execute(f"SELECT pg_terminate_backend({first}, 10000)")

    with database.write() as connection:
        assert process_of(connection) != first
        connection.execute(text("INSERT INTO written VALUES (1)"))
    assert len(pings) == 1


def test_glance_waits_for_no_begin_and_no_commit(database: Database) -> None:
    with database.glance() as connection:
        connection.execute(text("SELECT 1"))
        assert status_of(connection) == TransactionStatus.IDLE


def test_transaction_behind_a_glance_on_the_same_connection_is_one(database: Database) -> None:
    with database.glance() as connection:
        glanced = process_of(connection)

    def write_and_fail(connection: Connection) -> None:
        assert process_of(connection) == glanced
        connection.execute(text("INSERT INTO written VALUES (1)"))
        assert status_of(connection) == TransactionStatus.INTRANS
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.transact(write_and_fail)

    with database.glance() as connection:
        assert connection.execute(text("SELECT count(*) FROM written")).scalar_one() == 0
