"""A user's SELECT on SQLite: a read-only connection whose authorizer lets tables be read through one tenant's views only."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import quote

from gistmill.db.answer import LARGEST_VALUE_BYTES, Limits, collect
from gistmill.db.session import Database
from gistmill.db.tables import metadata
from gistmill.db.views import VIEWS, sqlite_views
from gistmill.errors import QueryRefused, QueryTimeout, StoreUnavailable
from gistmill.views import QueryView

STEPS_BETWEEN_LOOKS = 10_000
VIEW_NAMES = frozenset(view.name for view in VIEWS)
FUNCTION_TABLES = ("json_each", "json_tree")
SCHEMA_TABLES = frozenset({"sqlite_master", "sqlite_schema", "sqlite_temp_master", "sqlite_temp_schema"})
REFUSED_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "sqlite_log"})


def run(database: Database, tenant_key: int, sql: str, limits: Limits) -> QueryView:
    """Run the query; see query.py."""
    deadline = time.monotonic() + limits.timeout_s
    path = quote(str(database.engine.url.database))
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=limits.timeout_s, isolation_level=None)
    except sqlite3.Error as error:
        raise StoreUnavailable(f"The database does not answer: {error}.") from error
    with closing(connection):
        _confine(connection, tenant_key)
        connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_BETWEEN_LOOKS)
        try:
            cursor = connection.execute(sql)
            columns = [column[0] for column in cursor.description or ()]
            return collect(columns, ((_as_json(row), _size(row)) for row in cursor), limits)
        except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
            if time.monotonic() > deadline:
                raise QueryTimeout(f"The query took longer than {limits.timeout_s:g} s.") from error
            raise QueryRefused(f"The database refused the query: {error}.") from error


def _confine(connection: sqlite3.Connection, tenant_key: int) -> None:
    # The views that may read tables get names that no query can contain. SQLite tells the authorizer the innermost view by its
    # name alone, so that a query could give a CTE of its own, or the file's view of all tenants, the name of a permitted one.
    prefix = f"own_{secrets.token_hex(16)}_"
    try:
        for statement in sqlite_views(tenant_key, prefix=prefix):
            connection.execute(statement)
        for view in VIEW_NAMES:
            connection.execute(f"CREATE TEMP VIEW {view} AS SELECT * FROM {prefix}{view}")
        for table in FUNCTION_TABLES:
            # Their first use writes to the schema in memory, which the authorizer would refuse.
            connection.execute(f"SELECT 1 FROM {table}('[]')")
        present = connection.execute("SELECT name FROM sqlite_master UNION SELECT name FROM pragma_module_list").fetchall()
        connection.execute("PRAGMA query_only = ON")
    except sqlite3.Error as error:
        raise StoreUnavailable(f"The database does not answer: {error}.") from error
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    names = frozenset({name for (name,) in present} | SCHEMA_TABLES)
    connection.set_authorizer(_authorizer(frozenset(prefix + view for view in VIEW_NAMES), names))


def _authorizer(own_views: frozenset[str], present: frozenset[str]) -> Callable[..., int]:
    tables = frozenset(metadata.tables)

    def may_read(table: str | None, column: str | None, schema: str | None, view: str | None) -> bool:
        if table in tables:
            return view in own_views
        if table in VIEW_NAMES or table in own_views:
            return schema in ("temp", None)
        # Counting the rows of a CTE names no column and no schema, as counting those of a table without a schema does.
        is_own = column == "" and schema is None and table not in present
        return is_own or table in FUNCTION_TABLES

    def authorize(action: int, first: str | None, second: str | None, schema: str | None, view: str | None) -> int:
        if action == sqlite3.SQLITE_READ:
            allowed = may_read(first, second, schema, view)
        elif action == sqlite3.SQLITE_FUNCTION:
            allowed = (second or "").lower() not in REFUSED_FUNCTIONS
        else:
            allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE)
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    return authorize


def _as_json(row: tuple[Any, ...]) -> list[Any]:
    return [value.hex() if isinstance(value, bytes) else value for value in row]


def _size(row: tuple[Any, ...]) -> int:
    return sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
