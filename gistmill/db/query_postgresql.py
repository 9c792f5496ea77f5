"""A user's SELECT on PostgreSQL: a read-only transaction in which the text runs as a role that is granted only the views."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from psycopg import errors, pq

from gistmill.db.answer import LARGEST_BYTES, Limits, collect, too_large
from gistmill.db.reader import ROLE, RUN, SETTING, TOKENS
from gistmill.db.session import Database
from gistmill.errors import QueryRefused, QueryTimeout, StoreUnavailable
from gistmill.views import QueryView

# The server itself leaves out what would make the answer too large: the driver takes all rows into memory.
ROWS = f"""
SELECT CASE WHEN sum(octet_length(line)) OVER (ROWS UNBOUNDED PRECEDING) <= %s THEN line END
FROM (SELECT row::text AS line FROM {RUN}(%s, %s) AS row) AS lines
""".encode()

Connection = psycopg.Connection[tuple[Any, ...]]


def run(database: Database, tenant_key: int, sql: str, limits: Limits) -> QueryView:
    """Run the query; see query.py. The connection is closed afterwards: whatever the query does to its session ends with it."""
    query = sql.strip().rstrip(";")
    with _refusals(limits), closing(_connect(database)) as connection:
        connection.read_only = True
        _enter(connection, tenant_key, limits)
        columns = _describe(connection, query)
        rows = connection.execute(ROWS, (LARGEST_BYTES, query, limits.rows + 1))
        return collect(columns, (_decode(text) for (text,) in rows), limits)


def _connect(database: Database) -> Connection:
    arguments, options = database.engine.dialect.create_connect_args(database.engine.url)
    settings = {"connect_timeout": 5, "application_name": "gistmill-query", "options": "-c timezone=UTC"}
    try:
        return psycopg.connect(*arguments, **{**settings, **options})
    except psycopg.OperationalError as error:
        raise StoreUnavailable(f"The database does not answer: {_message(error)}") from error


def _enter(connection: Connection, tenant_key: int, limits: Limits) -> None:
    """Fix the time and the tenant of this transaction, as the owner of the tables."""
    connection.execute(f"SET LOCAL statement_timeout = {max(1, int(limits.timeout_s * 1000))}".encode())
    connection.execute(
        f"SELECT set_config('{SETTING}', token, true) FROM {TOKENS} WHERE tenant_key = %s".encode(), (tenant_key,)
    )
    found = connection.execute("SELECT to_regprocedure(%s), current_user", (f"{RUN}(text, bigint)",)).fetchone()
    if found is None or found[0] is None:
        user = found[1] if found else "the owner of the tables"
        raise QueryRefused(
            f"SQL queries need the PostgreSQL role {ROLE}. Let an administrator run: CREATE ROLE {ROLE} NOLOGIN;"
            f' GRANT {ROLE} TO "{user}"; and then run: gistmill db upgrade'
        )


def _describe(connection: Connection, query: str) -> list[str]:
    """Return the columns of the answer. The text is parsed and nothing of it runs; more than one statement is refused."""
    prepared = connection.pgconn.prepare(b"", f"SELECT * FROM ({query}\n) q".encode())
    if prepared.status != pq.ExecStatus.COMMAND_OK:
        raise errors.error_from_result(prepared)
    described = connection.pgconn.describe_prepared(b"")
    return [(described.fname(number) or b"").decode() for number in range(described.nfields)]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written: two columns of an answer may have one name."""


def _decode(text: str | None) -> tuple[list[Any], int]:
    if text is None:
        raise too_large()
    return [_plain(value) for _, value in json.loads(text, object_pairs_hook=_Pairs)], len(text)


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {name: _plain(inner) for name, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


@contextmanager
def _refusals(limits: Limits) -> Iterator[None]:
    try:
        yield
    except errors.QueryCanceled as error:
        raise QueryTimeout(f"The query took longer than {limits.timeout_s:g} s.") from error
    except (errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow) as error:
        raise StoreUnavailable(f"The database does not answer: {_message(error)}") from error
    except psycopg.Error as error:
        if error.sqlstate is None:
            raise StoreUnavailable(f"The database does not answer: {_message(error)}") from error
        raise QueryRefused(f"The database refused the query: {_message(error)}.") from error


def _message(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).strip().split("\n")[0]
