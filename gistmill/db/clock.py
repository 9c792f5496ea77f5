"""The database's clock: every lease and time stamp is read from it, so that hosts need not agree."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class db_now(FunctionElement[float]):  # noqa: N801 - reads like the SQL function it stands for
    """The moment at which the statement runs, in seconds since 1970.

    PostgreSQL's now() is the start of the transaction and SQLite 3.40 knows no fractional unixepoch, hence these two forms.
    """

    type = Float()
    inherit_cache = True


@compiles(db_now, "postgresql")
def _postgresql(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "CAST(extract(epoch from clock_timestamp()) AS double precision)"


@compiles(db_now, "sqlite")
def _sqlite(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


def as_datetime(seconds: float | None) -> datetime | None:
    """Return the moment as a datetime in UTC, or None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
