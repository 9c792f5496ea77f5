"""What another request does between two statements of one, or while a transaction has not committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, event, text

from gistmill.db.session import Database, open_database
from tests.support.servers import wait_until

T = TypeVar("T")


@contextmanager
def meanwhile(database: Database, act: Callable[[], object]) -> Iterator[None]:
    """Let `act` happen once, behind the first SELECT that runs now. SQLite has one writer, so there it cannot."""
    if database.is_sqlite:
        pytest.skip("SQLite lets nobody else write in a write transaction")
    has_happened: list[bool] = []

    def interrupt(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT") and not has_happened:
            has_happened.append(True)
            act()

    event.listen(database.engine, "after_cursor_execute", interrupt)
    try:
        yield
    finally:
        event.remove(database.engine, "after_cursor_execute", interrupt)
    assert has_happened


def while_uncommitted(database: Database, first: Callable[[Connection], object], then: Callable[[], T]) -> T:
    """Do `first` in a transaction that commits only when `then`, begun meanwhile, waits for it or has ended."""
    # Both connections of the database are taken.
    observer = open_database(database.engine.url.render_as_string(hide_password=False))
    with closing(observer), ThreadPoolExecutor() as pool:
        with database.write() as connection:
            first(connection)
            begun = pool.submit(then)
            wait_until(lambda: begun.done() or database.is_sqlite or _is_somebody_blocked(observer), timeout_s=10)
        return begun.result(timeout=30)


def _is_somebody_blocked(observer: Database) -> bool:
    with observer.read() as connection:
        return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))
