"""Many values in one statement, and many rows with one statement, where SQLAlchemy's own ways are too narrow or too slow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Select, String, cast, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY

PAGE = 5_000


def listed(connection: Connection, values: Sequence[int] | Sequence[str]) -> Select[Any]:
    """Return a SELECT of these values, all numbers or all texts, for use behind IN.

    They travel as one variable: a statement may have 32,766 of them on SQLite and 65,535 on PostgreSQL.
    """
    if connection.dialect.name == "sqlite":
        return select(func.json_each(json.dumps(list(values))).table_valued("value").c.value)
    kind = ARRAY(String() if values and isinstance(values[0], str) else BigInteger())
    return select(func.unnest(cast(literal(list(values), kind), kind)))


def insert_many(
    connection: Connection, columns: Sequence[Column[Any]], rows: Iterable[tuple[Any, ...]], *, or_skip: bool = False
) -> None:
    """Insert rows of driver values (JSON as text) in the order of `columns`; `or_skip` leaves out those that exist.

    SQLite's executemany takes the tuples as they are, in half the time of SQLAlchemy's, which checks each value of each row.
    PostgreSQL takes a page as one array per column, because psycopg's executemany waits for an answer to each row.
    """
    is_sqlite = connection.dialect.name == "sqlite"
    quote = connection.dialect.identifier_preparer.quote
    names = ", ".join(quote(column.name) for column in columns)
    types = [column.type.compile(connection.dialect) for column in columns]
    arrays = ", ".join(f"CAST(CAST(%s AS {'bigint' if 'INT' in type_ else 'text'}[]) AS {type_}[])" for type_ in types)
    source = f"VALUES ({', '.join('?' * len(columns))})" if is_sqlite else f"SELECT * FROM unnest({arrays})"
    skip = " ON CONFLICT DO NOTHING" if or_skip else ""
    statement = f"INSERT INTO {quote(columns[0].table.name)} ({names}) {source}{skip}"
    iterator = iter(rows)
    while page := list(islice(iterator, PAGE)):
        connection.exec_driver_sql(statement, page if is_sqlite else tuple(map(list, zip(*page, strict=True))))
