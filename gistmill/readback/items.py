"""The items of a job: summaries and errors, in keyset pages.

While a job runs, results are read by arrival: arrival numbers become visible in their order, so that a reader who goes on
behind a cursor misses none. A job that has ended is read in input order. A cursor is "a:<arrival>:<row>" or "r:<row>".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sqlalchemy import ColumnElement, Connection, FromClause, Row, Select, Subquery, select, text, tuple_

from gistmill.db.session import Database
from gistmill.db.tables import dataset_rows, generations, jobs, results
from gistmill.errors import InvalidInput, UnknownJob
from gistmill.states import FINAL_JOB_STATES
from gistmill.views import ItemErrorView, ResultView

PAGE = 1000
ORDERS = ("auto", "input", "arrival")
Order = Literal["input", "arrival"]
Item = TypeVar("Item", ResultView, ItemErrorView)


@dataclass(frozen=True)
class _Cursor:
    order: Order
    arrival: int = 0
    row: int = -1

    def __str__(self) -> str:
        return f"a:{self.arrival}:{self.row}" if self.order == "arrival" else f"r:{self.row}"


@dataclass(frozen=True)
class _Job:
    key: int
    dataset_key: int
    is_final: bool


def result_order(database: Database, tenant_key: int, job_id: str, *, after: str | None, order: str = "auto") -> Order:
    """Return the order in which results will come: that of `after`, else `order`, else by whether the job has ended.

    Raises:
        InvalidInput: the cursor or the order cannot be read.
        UnknownJob: this tenant has no job of this id.
    """
    job = _find_job(database, tenant_key, job_id)
    if after is not None:
        return _parse(after).order
    if order == "auto":
        return "input" if job.is_final else "arrival"
    if order == "input":
        return "input"
    if order == "arrival":
        return "arrival"
    raise InvalidInput(f"There is no order '{order}'. There are: {', '.join(ORDERS)}.")


def read_results(
    database: Database, tenant_key: int, job_id: str, *, after: str | None = None, limit: int = PAGE, order: Order
) -> list[ResultView]:
    """Return at most `limit` results behind the cursor, in its order if there is one.

    Raises:
        InvalidInput: the cursor cannot be read.
        UnknownJob: this tenant has no job of this id.
    """
    job = _find_job(database, tenant_key, job_id)
    cursor = _parse(after) if after is not None else _Cursor(order)
    page = _page(job, cursor, limit, results.c.generation_key.is_not(None))
    query = _with_ids(job, page, generations).join(generations, generations.c.key == page.c.generation_key)
    with database.read() as connection:
        _keep_to_indexes(connection)
        return [_result(row, cursor.order) for row in connection.execute(query.order_by(*_sorting(cursor, page)))]


def read_errors(
    database: Database, tenant_key: int, job_id: str, *, after: str | None = None, limit: int = PAGE
) -> list[ItemErrorView]:
    """Return at most `limit` errors behind the cursor, in input order.

    Raises:
        InvalidInput: the cursor cannot be read.
        UnknownJob: this tenant has no job of this id.
    """
    job = _find_job(database, tenant_key, job_id)
    cursor = _parse(after) if after is not None else _Cursor("input")
    if cursor.order != "input":
        raise InvalidInput(f"The cursor '{after}' belongs to results, not to errors.")
    page = _page(job, cursor, limit, results.c.generation_key.is_(None))
    with database.read() as connection:
        _keep_to_indexes(connection)
        rows = connection.execute(_with_ids(job, page).order_by(*_sorting(cursor, page)))
        return [_error(row) for row in rows]


def iterate_results(
    database: Database,
    tenant_key: int,
    job_id: str,
    *,
    after: str | None = None,
    limit: int | None = None,
    order: str = "auto",
) -> Iterator[ResultView]:
    """Yield the results that are there, page by page. See `result_order` for their order.

    Raises:
        InvalidInput: the cursor or the order cannot be read.
        UnknownJob: this tenant has no job of this id.
    """
    settled = result_order(database, tenant_key, job_id, after=after, order=order)

    def read(cursor: str | None, most: int) -> list[ResultView]:
        return read_results(database, tenant_key, job_id, after=cursor, limit=most, order=settled)

    return _iterate(read, after, limit)


def iterate_errors(
    database: Database, tenant_key: int, job_id: str, *, after: str | None = None, limit: int | None = None
) -> Iterator[ItemErrorView]:
    """Yield the errors that are there, page by page, in input order.

    Raises:
        InvalidInput: the cursor cannot be read.
        UnknownJob: this tenant has no job of this id.
    """
    _find_job(database, tenant_key, job_id)

    def read(cursor: str | None, most: int) -> list[ItemErrorView]:
        return read_errors(database, tenant_key, job_id, after=cursor, limit=most)

    return _iterate(read, after, limit)


def _iterate(read: Callable[[str | None, int], list[Item]], after: str | None, limit: int | None) -> Iterator[Item]:
    left = limit
    while left is None or left > 0:
        most = PAGE if left is None else min(PAGE, left)
        page = read(after, most)
        yield from page
        if len(page) < most:
            return
        after = page[-1].cursor
        left = None if left is None else left - len(page)


def _find_job(database: Database, tenant_key: int, job_id: str) -> _Job:
    with database.read() as connection:
        row = connection.execute(
            select(jobs.c.key, jobs.c.dataset_key, jobs.c.state).where(jobs.c.tenant_key == tenant_key, jobs.c.id == job_id)
        ).one_or_none()
    if row is None:
        raise UnknownJob(f"There is no job '{job_id}'. List them with: gistmill jobs list")
    return _Job(row.key, row.dataset_key or 0, row.state in FINAL_JOB_STATES)


def _page(job: _Job, cursor: _Cursor, limit: int, condition: ColumnElement[bool]) -> Subquery:
    """Return the page's rows of `results`, limited before anything is joined to them."""
    query = select(results).where(results.c.job_key == job.key, condition, _behind(cursor))
    return query.order_by(*_sorting(cursor, results)).limit(limit).subquery("page")


def _with_ids(job: _Job, page: Subquery, *more: Any) -> Select[Any]:
    same_row = (dataset_rows.c.dataset_key == job.dataset_key) & (dataset_rows.c.row_number == page.c.row_number)
    names = ("row_number", "arrival", "shared", "error_code", "error_message")
    columns = (*(page.c[name] for name in names), dataset_rows.c.id.label("item_id"), *more)
    return select(*columns).join_from(page, dataset_rows, same_row)


def _keep_to_indexes(connection: Connection) -> None:
    """Keep PostgreSQL from reading all that is left of a job for each page, as it does while it has no statistics."""
    if connection.dialect.name == "postgresql":
        for way in ("bitmapscan", "hashjoin", "mergejoin", "material"):
            connection.execute(text(f"SET LOCAL enable_{way} = off"))


def _behind(cursor: _Cursor) -> ColumnElement[bool]:
    if cursor.order == "input":
        return results.c.row_number > cursor.row
    return tuple_(results.c.arrival, results.c.row_number) > tuple_(cursor.arrival, cursor.row)


def _sorting(cursor: _Cursor, rows: FromClause) -> tuple[ColumnElement[Any], ...]:
    return (rows.c.row_number,) if cursor.order == "input" else (rows.c.arrival, rows.c.row_number)


def _result(row: Row[Any], order: Order) -> ResultView:
    return ResultView(
        cursor=str(_Cursor(order, row.arrival, row.row_number)),
        row=row.row_number,
        id=row.item_id,
        summary=row.summary,
        finish_reason=row.finish_reason,
        tokens_in=row.tokens_in,
        tokens_out=row.tokens_out,
        truncated=row.truncated,
        shared=row.shared,
    )


def _error(row: Row[Any]) -> ItemErrorView:
    return ItemErrorView(
        cursor=str(_Cursor("input", row=row.row_number)),
        row=row.row_number,
        id=row.item_id,
        code=row.error_code,
        message=row.error_message,
    )


def _parse(text: str) -> _Cursor:
    kind, *parts = text.split(":")
    digits = all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts)
    if digits and kind == "a" and len(parts) == 2:
        return _Cursor("arrival", int(parts[0]), int(parts[1]))
    if digits and kind == "r" and len(parts) == 1:
        return _Cursor("input", row=int(parts[0]))
    raise InvalidInput(f"'{text[:40]}' is not a cursor. Give back the `cursor` of a line that you have read.")
