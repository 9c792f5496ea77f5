"""What another request commits between two statements of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from gistmill.db.session import Database


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
