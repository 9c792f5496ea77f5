"""Many values in one statement, and many rows with one statement, where SQLAlchemy's own ways are too narrow or too slow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any

from pydantic_core import to_json
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Row,
    Select,
    String,
    Text,
    any_,
    bindparam,
    cast,
    func,
    literal,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.types import UserDefinedType

from gistmill.db.clock import db_now

PAGE, PAGE_RETURNED = 5_000, 2_000
# On SQLite, where each row makes a statement longer. Larger ones are no faster, and a connection keeps its last 128 statements
# with copies of their values: so there are few different ones of more rows than are few.
MOST_IN_STATEMENT, FEW_IN_STATEMENT = 256, 16
# With fewer rows the two round trips of a savepoint cost more than it saves.
FEWEST_TRIED = 250
_NOTHING: Mapping[Column[Any], Any] = MappingProxyType({})


def listed(connection: Connection, values: Sequence[int] | Sequence[str]) -> Select[Any]:
    """Return a SELECT of these values, all numbers or all texts, for use behind IN.

    They travel as one variable: a statement may have 32,766 of them on SQLite and 65,535 on PostgreSQL.
    """
    document = literal(json.dumps(list(values)), Text())
    if connection.dialect.name == "sqlite":
        return select(func.json_each(document).table_valued("value").c.value)
    kind = Text() if values and isinstance(values[0], str) else BigInteger()
    return select(cast(func.json_array_elements_text(cast(document, JSON())), kind))


class _Keys(UserDefinedType[Sequence[int]]):
    """Numbers as one variable: an array as PostgreSQL reads it from text, on SQLite a JSON text.

    For 1,024 of them that takes PostgreSQL half the time of a list, which psycopg goes through.
    """

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **_: Any) -> str:
        """Return its name in SQL."""
        return "BIGINT[]"

    def bind_processor(self, dialect: Dialect) -> Callable[[Sequence[int] | None], str]:
        """Return what writes the numbers as text."""
        opening, closing = "[]" if dialect.name == "sqlite" else "{}"
        return lambda values: f"{opening}{','.join(map(str, values or ()))}{closing}"


class _Texts(UserDefinedType[Sequence[str]]):
    """Texts as one variable, in the same two ways."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **_: Any) -> str:
        """Return its name in SQL."""
        return "TEXT[]"

    def bind_processor(self, dialect: Dialect) -> Callable[[Sequence[str] | None], str]:
        """Return what writes the texts as one."""
        if dialect.name == "sqlite":
            return lambda values: json.dumps(list(values or ()))
        return lambda values: f"{{{','.join(map(_quoted, values or ()))}}}"


def _quoted(value: str) -> str:
    """Return an element of an array as PostgreSQL reads it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def is_among(connection: Connection, column: ColumnElement[Any], values: Sequence[int] | Sequence[str]) -> ColumnElement[bool]:
    """The condition that a number or a text is one of these, for which PostgreSQL keeps to the column's index as a table grows.

    Behind IN, it walked all dialogues of a tenant for each page of an upload, all generations of a recipe for each page
    of a chunk: 15 ms with 60,000 of them, and rising.
    """
    kind: UserDefinedType[Any] = _Texts() if isinstance(column.type, String) else _Keys()
    return _is_among(connection.dialect.name, column, literal(values, kind))


def is_among_named(dialect: str, column: ColumnElement[int], name: str) -> ColumnElement[bool]:
    """The same in a statement that is made once and gets its numbers by this name when it runs."""
    return _is_among(dialect, column, bindparam(name, type_=_Keys()))


def _is_among(dialect: str, column: ColumnElement[int], keys: ColumnElement[Any]) -> ColumnElement[bool]:
    if dialect == "sqlite":
        return column.in_(select(func.json_each(keys).table_valued("value").c.value))
    return column == any_(keys)


def insert_many(connection: Connection, columns: Sequence[Column[Any]], rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert rows of driver values (JSON as text) in the order of `columns`.

    SQLite takes the values of many rows in one statement: 1.3 microseconds for a row of a dataset, 2.8 with its executemany.
    PostgreSQL takes a page as one JSON text. For 100,000 dialogues, 2.0 s on a busy machine: arrays of psycopg took 2.9 s, its
    executemany longer still; COPY took about as long, but raises errors past SQLAlchemy.
    """
    head = _insert_into(connection, columns)
    for page in _pages(connection, rows, PAGE):
        source, values = _as_source(connection, columns, page, _NOTHING)
        connection.exec_driver_sql(f"{head} {source}", values)


def insert_returning(
    connection: Connection,
    columns: Sequence[Column[Any]],
    rows: Sequence[tuple[Any, ...]],
    *,
    fixed: Mapping[Column[Any], Any] = _NOTHING,
    stamp: Column[float] | None = None,
    on_conflict: str,
    returning: Sequence[Column[Any]],
    seem_new: bool = False,
) -> list[tuple[Any, ...]]:
    """Insert rows of driver values, with the database's time in `stamp`; return these columns of the rows really written.

    What is `fixed` is the same in all of them, and travels once to PostgreSQL: with half the columns of 1,024 results fixed it
    took 5.9 instead of 7.2 ms.

    Rows that `seem_new` have been looked for, or nobody else should insert them. PostgreSQL tries many of them without ON
    CONFLICT first, which takes 6 microseconds for a dialogue instead of 11, and with it when one is there after all. A try
    writes all or nothing, so it is asked only for what the rows do not tell: of 1,024 results that saves another 0.9 ms.

    For 256 generations on SQLite, one statement with all the values takes 0.7 ms, executemany and a SELECT 1.2 ms, JSON 2.0 ms,
    and SQLAlchemy's own insert over 30 ms, most of it compiling.
    """
    quote = connection.dialect.identifier_preparer.quote
    now = "" if stamp is None else f", {db_now().compile(dialect=connection.dialect)}"
    head = _insert_into(connection, [*fixed, *columns, *([] if stamp is None else [stamp])])
    ending = f"RETURNING {', '.join(quote(column.name) for column in returning)}"
    is_tried = seem_new and connection.dialect.name != "sqlite"
    told = _positions(returning, columns)
    written: list[tuple[Any, ...]] = []
    for page in _pages(connection, rows, PAGE_RETURNED):
        source, values = _as_source(connection, columns, page, fixed, now)
        new: Sequence[Row[Any] | tuple[Any, ...]] | None = None
        if is_tried and len(page) >= FEWEST_TRIED:
            new = _try_to_insert(connection, f"{head} {source}" if told else f"{head} {source} {ending}", values)
            if new is not None and told:
                new = [tuple(row[position] for position in told) for row in page]
        if new is None:
            new = connection.exec_driver_sql(f"{head} {source} ON CONFLICT {on_conflict} {ending}", values).all()
        written += map(tuple, new)
    return written


def _positions(wanted: Sequence[Column[Any]], columns: Sequence[Column[Any]]) -> list[int]:
    """Return where these stand among the columns, nothing when one of them does not."""
    names = [column.name for column in columns]
    found = [names.index(column.name) for column in wanted if column.name in names]
    return found if len(found) == len(wanted) else []


def _insert_into(connection: Connection, columns: Sequence[Column[Any]]) -> str:
    quote = connection.dialect.identifier_preparer.quote
    return f"INSERT INTO {quote(columns[0].table.name)} ({', '.join(quote(column.name) for column in columns)})"


def _pages(connection: Connection, rows: Iterable[tuple[Any, ...]], most: int) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows, at most so many for a statement; on SQLite a few or a power of two."""
    iterator = iter(rows)
    if connection.dialect.name != "sqlite":
        while page := list(islice(iterator, most)):
            yield page
        return
    while page := list(islice(iterator, MOST_IN_STATEMENT)):
        while len(page) > FEW_IN_STATEMENT:
            size = 1 << len(page).bit_length() - 1
            yield page[:size]
            page = page[size:]
        if page:
            yield page


def _as_source(
    connection: Connection,
    columns: Sequence[Column[Any]],
    rows: Sequence[tuple[Any, ...]],
    fixed: Mapping[Column[Any], Any],
    now: str = "",
) -> tuple[str, tuple[Any, ...]]:
    """Return what an INSERT takes its rows from, each behind what is fixed and followed by `now`, and the values for it."""
    if connection.dialect.name == "sqlite":
        # Places with numbers would hold what is fixed once, but Python 3.12.0 to 3.12.3 warn of them.
        places = f"({', '.join('?' * (len(fixed) + len(columns)))}{now})"
        alike = tuple(fixed.values())
        return f"VALUES {', '.join([places] * len(rows))}", tuple(value for row in rows for value in (*alike, *row))
    first = "".join(f"CAST(%s AS {_type_of(connection, column)}), " for column in fixed)
    source = f"SELECT {first}{_from_json(connection, columns)}{now} FROM jsonb_array_elements(%s) v"
    return source, (*fixed.values(), to_json(rows).decode())


def _try_to_insert(
    connection: Connection, statement: str, values: tuple[Any, ...]
) -> Sequence[Row[Any] | tuple[Any, ...]] | None:
    """Return what the statement returns, or None when a row was there already: then nothing was inserted."""
    try:
        with connection.begin_nested():
            done = connection.exec_driver_sql(statement, values)
            return done.all() if done.returns_rows else []
    except IntegrityError:
        return None


def _from_json(connection: Connection, columns: Sequence[Column[Any]]) -> str:
    """Return the columns as PostgreSQL reads them from `v`, an array of JSON."""
    types = [_type_of(connection, column) for column in columns]
    return ", ".join(f"CAST(v ->> {position} AS {type_})" for position, type_ in enumerate(types))


def _type_of(connection: Connection, column: Column[Any]) -> str:
    return column.type.compile(connection.dialect)
