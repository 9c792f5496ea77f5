"""A file becomes a dataset: checked whole first, then written in small transactions under a lease."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import structlog
from sqlalchemy import Connection

from gistmill.db import datasets
from gistmill.db.datasets import Lease, LoadableRow, NewDataset, Ranking
from gistmill.db.session import Database
from gistmill.errors import InvalidDataset, InvalidInput, InvalidName, LeaseLost, StoreUnavailable
from gistmill.ingest.mapping import Mapping
from gistmill.ingest.reading import MAX_LINE_BYTES, Format, read_rows, scan
from gistmill.states import DatasetState
from gistmill.views import DatasetView

log = structlog.get_logger(__name__)

BATCH_ROWS = datasets.PAGE
BATCH_CHARACTERS = 8_000_000
# SQLite lets one write at a time: whoever renews a lease waits for at least the transaction that runs.
TRANSACTION_S = 0.2
LEAST_ROWS, FIRST_ROWS = 250, 1_000
LONGEST_NAME = 300
FIRST_POLL_S, LONGEST_POLL_S = 0.02, 0.5


def load_dataset_file(
    database: Database,
    tenant_key: int,
    path: Path,
    *,
    name: str,
    filename: str = "",
    format: str | None = None,
    mapping: Mapping | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> tuple[DatasetView, bool]:
    """Return the ready dataset of a file's rows, and whether this call began it. Equal rows keep the name they first had.

    The whole file is checked before anything is written; it is read twice and never held in memory.

    Raises:
        InvalidDataset: something in the file is wrong; `details` name the lines.
        InvalidName: the name could be taken for a path or for something else.
        StoreUnavailable: the database did not answer; loading again goes on where this call stopped.
    """
    check_name(name)
    scanned = scan(path, format=_format(format), filename=filename, mapping=mapping, max_line_bytes=max_line_bytes)
    new = NewDataset(
        tenant_key=tenant_key,
        digest=scanned.digest,
        name=name,
        format=scanned.format.value,
        mapping=(mapping or Mapping()).model_dump(mode="json", exclude_none=True),
        warnings=scanned.warnings,
    )
    read = partial(read_rows, path, format=scanned.format, mapping=mapping, max_line_bytes=max_line_bytes)
    return load_rows(database, new, read, count=scanned.rows)


def check_name(name: str) -> None:
    """Make sure that a dataset may be called this.

    Raises:
        InvalidName: it is empty, too long, unprintable, or has parts that mean something in a path.
    """
    parts = name.split("/")
    if len(name) > LONGEST_NAME or not name.isprintable() or name != name.strip() or {"", ".", ".."} & set(parts):
        raise InvalidName(
            f"A dataset cannot be called {name[:80]!r}: a name has 1 to {LONGEST_NAME} printable characters, no spaces around"
            " it, and no '.' or '..' between slashes."
        )


def load_rows(
    database: Database, new: NewDataset, read: Callable[[], Iterable[LoadableRow]], *, count: int
) -> tuple[DatasetView, bool]:
    """Return the ready dataset of these rows, and whether this call began it.

    `read` begins a pass over the rows and must give the same `count` rows each time. Of several who load the same digest one
    writes and the others wait; when the writer's lease expires, the next goes on behind its last row. Whoever waits holds no
    transaction.

    Raises:
        InvalidDataset: there were other rows than `count` says; the dataset does not become ready.
        StoreUnavailable: the database did not answer; loading again goes on where this call stopped.
    """
    owner, has_begun, poll_s = uuid.uuid4().hex, False, FIRST_POLL_S
    while True:
        with database.read() as connection:
            row = datasets.find_by_digest(connection, new.tenant_key, new.digest)
        if row is not None and row.state == DatasetState.READY:
            return datasets.as_view(row), has_begun
        lease: Lease | None = None
        if row is None:
            lease = database.transact(partial(datasets.begin, new=new, owner=owner))
            has_begun = has_begun or lease is not None
        elif row.is_free:
            lease = database.transact(partial(datasets.take_over, dataset_key=row.key, owner=owner))
        if lease is None:
            time.sleep(poll_s)
            poll_s = min(LONGEST_POLL_S, poll_s * 2)
            continue
        with suppress(LeaseLost):
            _Loading(database, lease).run(read, count)


def sweep_datasets(database: Database, limit: int = 20) -> int:
    """Undo at most `limit` pages of uploads that were given up over an hour ago; return how many were undone."""
    undone = 0
    while undone < limit and _is_any_abandoned(database) and database.transact(datasets.undo_abandoned):
        undone += 1
    if undone:
        log.info("abandoned_uploads_undone", pages=undone)
    return undone


class _Loading:
    """One holder's way through a dataset. Each step is a transaction, after which `lease` says how far it came."""

    def __init__(self, database: Database, lease: Lease) -> None:
        self.database = database
        self.lease = lease
        self.pace = Pace()

    def run(self, read: Callable[[], Iterable[LoadableRow]], count: int) -> None:
        """Write the rows that are missing, rank the dialogues, make the dataset ready.

        Whatever stops this gives the lease back, so that nobody has to wait for its end; a killed process cannot.
        """
        log.info("dataset_loading", dataset_key=self.lease.dataset_key, rows=self.lease.rows, of=count)
        try:
            self._write_rows(read, count)
            self._rank()
            self.database.transact(datasets.gather_statistics)
            self.database.transact(lambda connection: datasets.finish(connection, self.lease))
        except BaseException:
            with suppress(LeaseLost, StoreUnavailable):
                self.database.transact(lambda connection: datasets.release(connection, self.lease))
            raise
        log.info("dataset_ready", dataset_key=self.lease.dataset_key, rows=self.lease.rows, dialogues=self.lease.ranked)

    def _write_rows(self, read: Callable[[], Iterable[LoadableRow]], count: int) -> None:
        if self.lease.rows < count:
            for batch in _batches(islice(read(), self.lease.rows, None), self.pace):
                self._write(partial(datasets.write_rows, lease=self.lease, rows=batch), len(batch))
        if self.lease.rows != count:
            raise InvalidDataset(
                f"The file changed while it was read: {self.lease.rows} rows instead of {count}. Send it again."
            )

    def _rank(self) -> None:
        self.database.transact(lambda connection: datasets.renew(connection, self.lease))
        with self.database.read() as connection:
            ranking: Ranking = datasets.read_ranking(connection, self.lease.dataset_key)
        if self.lease.ranked:
            self.lease = self.database.transact(partial(datasets.forget_other_ranks, lease=self.lease, ranking=ranking))
        while self.lease.ranked < len(ranking.keys):
            stop = min(self.lease.ranked + self.pace.rows, len(ranking.keys))
            self._write(partial(datasets.write_ranks, lease=self.lease, ranking=ranking, stop=stop), stop - self.lease.ranked)

    def _write(self, write: Callable[[Connection], Lease], rows: int) -> None:
        """Write so many rows in a transaction, and let the next one be larger or smaller by the time that it took."""
        began_at = 0.0

        def timed(connection: Connection) -> Lease:
            nonlocal began_at
            began_at = time.perf_counter()
            return write(connection)

        self.lease = self.database.transact(timed)
        self.pace.note(rows, seconds=time.perf_counter() - began_at)


class Pace:
    """How many rows a transaction may write so that others do not wait long for it."""

    def __init__(self) -> None:
        self.rows = min(FIRST_ROWS, BATCH_ROWS)

    def note(self, rows: int, *, seconds: float) -> None:
        """Note how long the write lock was held for so many rows."""
        fitting = int(rows * TRANSACTION_S / max(seconds, 1e-6))
        self.rows = min(max(min(fitting, 2 * self.rows), LEAST_ROWS), BATCH_ROWS)


def _format(name: str | None) -> Format | None:
    if name is None:
        return None
    if name not in list(Format):
        raise InvalidInput(f"There is no format '{name}'. There are: {', '.join(Format)}.")
    return Format(name)


def _batches(rows: Iterable[LoadableRow], pace: Pace) -> Iterator[list[LoadableRow]]:
    """Group rows so that a transaction holds at most as many of them as the pace says then, and about so much text."""
    batch: list[LoadableRow] = []
    characters = 0
    for row in rows:
        size = _characters(row)
        if batch and (len(batch) >= pace.rows or characters + size > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(row)
        characters += size
    if batch:
        yield batch


def _characters(row: LoadableRow) -> int:
    """Return the length of the texts that may be long: dialogue, references, and summaries made elsewhere."""
    if not row.references and not row.metadata:
        return len(row.dialogue)
    predictions = row.metadata.get("predictions")
    texts = predictions.values() if isinstance(predictions, dict) else ()
    return len(row.dialogue) + sum(map(len, row.references)) + sum(len(text) for text in texts if isinstance(text, str))


def _is_any_abandoned(database: Database) -> bool:
    # The sweep runs every few seconds: a look costs other writers nothing.
    with database.read() as connection:
        return datasets.has_abandoned(connection)
