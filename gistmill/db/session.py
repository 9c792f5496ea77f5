"""One way into the database: read and write transactions, with foreign errors translated once."""

from __future__ import annotations

import random
import select
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InvalidatePoolError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gistmill.errors import InvalidInput, StoreUnavailable

T = TypeVar("T")

WRITE = "gistmill_write"
BUSY_S = 30
# How long a writer of SQLite waits between two tries.
SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.001, 0.004
# What else a code says is why: that another connection recovers the log of a database that was just opened, for example.
PRIMARY_CODE = 0xFF
# SQLite copies its log into the file at so many pages (64 MB). A transaction of an upload writes thousands, many of them
# again and again: with 1,000 pages, the default, each commit copied all of them, and 200 commits took 19 s instead of 14.
WAL_PAGES = 16_000
ATTEMPTS = 6
# PostgreSQL: serialization failure and deadlock; the whole transaction is undone, so repeating it is safe.
REPEATABLE_STATES = frozenset({"40001", "40P01"})
# How long a connection to PostgreSQL that nothing was heard from counts as alive without being asked.
SILENT_S = 5.0
HEARD_AT = "heard_at"
# PostgreSQL turned read-only, as a standby or for maintenance; psycopg files that under internal errors.
READ_ONLY_STATE = "25006"


class Changed(Exception):
    """What a transaction had read holds no more: it is to be undone and repeated from its start."""


class Database:
    """A database with its connections.

    `write` begins with BEGIN IMMEDIATE on SQLite: a read that turns into a write there fails at once instead of waiting.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._plain = engine if self.is_sqlite else engine.execution_options(isolation_level="AUTOCOMMIT")

    @property
    def is_sqlite(self) -> bool:
        """True on SQLite, false on PostgreSQL."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection inside a transaction that sees one state (SQLite) or committed states (PostgreSQL)."""
        with translated(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def glance(self) -> Iterator[Connection]:
        """Give a connection for a few statements that need no transaction and no cursor: each sees what is committed by then.

        On PostgreSQL there is none, for its begin and its end would each wait for the server; on SQLite it is as in `read`.
        """
        with translated(), self._plain.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection inside a transaction that may write; it commits at the end unless an exception leaves the block."""
        with translated(), self.engine.connect() as plain:
            connection = plain.execution_options(**{WRITE: True})
            with connection.begin():
                yield connection

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Return what `work` returns, having committed it. It is repeated from the start when it raises `Changed`, and after a
        deadlock or serialization failure.

        Raises:
            StoreUnavailable: the database did not answer, and whether it committed is then unknown; or it had to be repeated
                too often.
        """
        for attempt in range(ATTEMPTS):
            try:
                with self.write() as connection:
                    return work(connection)
            except Changed:
                pass
            except StoreUnavailable as error:
                if not _is_repeatable(error.__cause__) or attempt == ATTEMPTS - 1:
                    raise
                time.sleep(random.uniform(0, 0.01 * 2**attempt))
        raise StoreUnavailable(f"What a transaction had read changed {ATTEMPTS} times before it could write.")

    def close(self) -> None:
        """Close all connections: at once those that wait, the others when they are given back."""
        pool = self.engine.pool
        self.engine.dispose()
        # A thread that still uses one gives it back to this pool, where it would stay open until somebody collects it.
        event.listen(pool, "checkin", lambda _driver, record: record.invalidate())


def open_database(url: str, *, connections: int = 2, statement_timeout_s: float = 30.0) -> Database:
    """Return the database of this URL; nothing is contacted yet.

    Raises:
        InvalidInput: the URL is neither SQLite nor PostgreSQL with psycopg.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidInput("GISTMILL_DATABASE__URL is not a database URL.") from error
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        return Database(_sqlite_engine(parsed, connections))
    if parsed.drivername == "postgresql+psycopg":
        return Database(_postgresql_engine(parsed, connections, statement_timeout_s))
    raise InvalidInput(f"GISTMILL_DATABASE__URL begins with '{parsed.drivername}'; use sqlite:///… or postgresql+psycopg://…")


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's ways of saying that the database does not answer into StoreUnavailable."""
    try:
        yield
    except IntegrityError:
        raise
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise StoreUnavailable(f"The database does not answer: {_reason(error)}") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise StoreUnavailable(f"The database connection was lost: {_reason(error)}") from error
        if _state(error) == READ_ONLY_STATE:
            raise StoreUnavailable(f"The database takes no writes: {_reason(error)}") from error
        raise


def _reason(error: Exception) -> str:
    text = str(getattr(error, "orig", None) or error)
    return text.strip().split("\n")[0]


def _is_repeatable(error: BaseException | None) -> bool:
    return _state(error) in REPEATABLE_STATES


def _state(error: BaseException | None) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def _sqlite_engine(url: Any, connections: int) -> Engine:
    if url.database:
        Path(url.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=BUSY_S,
        # The connection that was used last: its page cache is warm.
        pool_use_lifo=True,
        connect_args={"timeout": BUSY_S, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        # Setting it is a write, even when it is set: a new connection would wait for the transaction that runs.
        if not connection.execute("PRAGMA page_count").fetchone()[0]:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL").fetchall()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "cache_size=-65536",
            f"wal_autocheckpoint={WAL_PAGES}",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if connection.get_execution_options().get(WRITE, False):
            _begin_to_write(connection)
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


def _begin_to_write(connection: Connection) -> None:
    """BEGIN IMMEDIATE, waiting for the write lock in small steps.

    SQLite's own wait soon asks only every 100 ms, and whoever comes anew asks at once: beside a bulk ingest and two workers a
    heartbeat so waited for over two seconds. With short steps it gets its turn behind the transaction that runs, or the next.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    deadline = time.monotonic() + BUSY_S
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & PRIMARY_CODE != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    break
            time.sleep(random.uniform(SHORTEST_WAIT_S, LONGEST_WAIT_S))
        # Once more in SQLAlchemy's way, which knows how to raise the driver's errors.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    finally:
        driver.execute(f"PRAGMA busy_timeout={BUSY_S * 1000}")


def _session_settings(statement_timeout_s: float) -> dict[str, str | int]:
    """Return what the server holds this session to.

    The server of a host that was cut off in a transaction would keep its locks for two hours, the kernel's default, and with
    them the whole job: the reaper skips locked chunks. So a transaction may stand still no longer than a statement may take.
    """
    limit_ms = int(statement_timeout_s * 1000)
    return {
        "statement_timeout": limit_ms,
        "idle_in_transaction_session_timeout": limit_ms,
        "tcp_keepalives_idle": 10,
        "tcp_keepalives_interval": 5,
        "tcp_keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        "timezone": "UTC",
    }


def _postgresql_engine(url: Any, connections: int, statement_timeout_s: float) -> Engine:
    try:
        engine = create_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=BUSY_S,
            # The connection that was used last: its server process is warm, and knows the statements.
            pool_use_lifo=True,
            connect_args={
                "connect_timeout": 5,
                "application_name": "gistmill",
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                # Keepalives are not sent while something is unacknowledged: then a dead link would be waited for 15 minutes.
                "tcp_user_timeout": 15_000,
                "options": " ".join(f"-c {name}={value}" for name, value in _session_settings(statement_timeout_s).items()),
            },
        )
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise InvalidInput("PostgreSQL needs the driver psycopg: pip install 'gistmill[postgres]'") from error

    @event.listens_for(engine, "checkin")
    def _note(driver: Any, record: Any) -> None:
        if driver is not None:
            record.info[HEARD_AT] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _see_to(driver: Any, record: Any, _fairy: object) -> None:
        # Nothing is noted of a connection that was just made: what is wrong with it, its first statement tells.
        heard_at = record.info.get(HEARD_AT)
        if heard_at is not None and (time.monotonic() - heard_at > SILENT_S or _has_spoken(driver)):
            _ask(engine, driver)

    return engine


def _has_spoken(driver: Any) -> bool:
    """Return whether the server has said something unasked, as it does when it ends a session; that takes no journey to it."""
    if driver.closed:
        return True
    socket = select.poll()
    socket.register(driver.fileno(), select.POLLIN)
    return bool(socket.poll(0))


def _ask(engine: Engine, driver: Any) -> None:
    """Make sure that the server answers.

    Raises:
        InvalidatePoolError: it does not. The pool then connects anew.
    """
    try:
        engine.dialect.do_ping(driver)
    except engine.dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error
