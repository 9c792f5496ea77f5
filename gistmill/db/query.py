"""Run a user's SELECT over the views of one tenant. The database itself refuses everything else."""

from __future__ import annotations

from gistmill.db import query_sqlite
from gistmill.db.answer import Limits
from gistmill.db.session import Database
from gistmill.errors import QueryRefused
from gistmill.views import QueryView

LONGEST_QUERY = 100_000


def run_query(database: Database, tenant_key: int, sql: str, *, limit: int, timeout_s: float) -> QueryView:
    """Return at most `limit` rows of a SELECT over the views, as JSON values.

    Raises:
        QueryRefused: the database refused the query; the message is its own.
        QueryTimeout: it ran longer than `timeout_s`.
        StoreUnavailable: the database does not answer.
    """
    if len(sql) > LONGEST_QUERY or "\0" in sql:
        raise QueryRefused(f"A query may have at most {LONGEST_QUERY} characters, none of them NUL.")
    limits = Limits(rows=limit, timeout_s=timeout_s)
    if database.is_sqlite:
        return query_sqlite.run(database, tenant_key, sql, limits)
    # psycopg is an extra: an SQLite user need not have it.
    from gistmill.db import query_postgresql

    return query_postgresql.run(database, tenant_key, sql, limits)
