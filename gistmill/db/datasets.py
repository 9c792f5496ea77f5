"""Datasets on their way into SQL: from `loading`, under a lease, in small transactions, to `ready`.

Two counters on the row of the dataset say how far it has come, and change in the same transactions as what they count:
`rows` (the rows 0 to rows-1 are there) and `ranked` (the ranks 0 to ranked-1 are there). So whoever takes over an expired lease
goes on where the last one stopped, and the sweep can undo from the end at any moment.
"""

from __future__ import annotations

import difflib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from json.encoder import encode_basestring_ascii
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, Row, and_, case, delete, func, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from gistmill.db.bulk import insert_many, insert_returning, is_among
from gistmill.db.clock import as_datetime, db_now
from gistmill.db.ids import make_id
from gistmill.db.tables import dataset_dialogues, dataset_rows, datasets, dialogues
from gistmill.errors import LeaseLost, UnknownDataset
from gistmill.states import DatasetState
from gistmill.views import DatasetView

LEASE_S = 30.0
# What was not touched for this long is given up, and swept.
ABANDONED_S = 3600.0
# A transaction of a million rows would hold other writers of an SQLite file up for half a minute.
PAGE = 5_000
NAMES_TO_COMPARE = 1_000
# Up to which length (characters) lengths count in which step.
LENGTH_STEPS = ((256, 8), (1024, 32), (4096, 128), (16_384, 512))
LONGEST_STEP = 2048
# SQLite reads at most so many rows of each index when it gathers statistics.
SAMPLED_ROWS = 1_000

DIALOGUE_COLUMNS = [dialogues.c[name] for name in ("tenant_key", "digest", "characters", "text")]
ROW_COLUMNS = list(dataset_rows.columns)


class LoadableRow(Protocol):
    """A parsed and checked row."""

    @property
    def id(self) -> str:
        """The id, unique in its dataset."""

    @property
    def dialogue(self) -> str:
        """The text."""

    @property
    def digest(self) -> str:
        """The sha256 of the text, as 64 hex digits."""

    @property
    def references(self) -> Sequence[str]:
        """Summaries that people wrote."""

    @property
    def metadata(self) -> Any:
        """Whatever else the row holds, as a JSON object."""


@dataclass(frozen=True)
class NewDataset:
    """A dataset to be loaded; equal digests of a tenant are one dataset."""

    tenant_key: int
    digest: str
    name: str
    format: str
    mapping: dict[str, Any]
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Lease:
    """The right to load a dataset, and how far it has come; `found_none`: no dialogue of the last page was stored before."""

    dataset_key: int
    tenant_key: int
    owner: str
    rows: int
    ranked: int
    found_none: bool = False


@dataclass(frozen=True)
class Ranking:
    """The distinct dialogues of a dataset in the order of their ranks, and how many rows each has."""

    keys: array[int]
    rows: array[int]


def find_by_digest(connection: Connection, tenant_key: int, digest: str) -> Row[Any] | None:
    """Return the dataset of this digest, or None; `is_free` says that it is loading and nobody holds its lease."""
    is_free = and_(datasets.c.state == DatasetState.LOADING, datasets.c.lease_until <= db_now()).label("is_free")
    query = select(datasets, is_free).where(datasets.c.tenant_key == tenant_key, datasets.c.digest == digest)
    return connection.execute(query).one_or_none()


def begin(connection: Connection, new: NewDataset, owner: str) -> Lease | None:
    """Add the dataset and return the lease on it, or None when somebody else added it first."""
    statement = (
        _dialect(connection)
        .insert(datasets)
        .values(
            id=make_id("ds"),
            tenant_key=new.tenant_key,
            digest=new.digest,
            name=new.name,
            state=DatasetState.LOADING,
            format=new.format,
            mapping=new.mapping,
            warnings=list(new.warnings),
            lease_owner=owner,
            lease_until=db_now() + LEASE_S,
            created_at=db_now(),
        )
        .on_conflict_do_nothing(index_elements=[datasets.c.tenant_key, datasets.c.digest])
        .returning(datasets.c.key)
    )
    key = connection.execute(statement).scalar_one_or_none()
    return None if key is None else Lease(key, new.tenant_key, owner, 0, 0)


def take_over(connection: Connection, dataset_key: int, owner: str) -> Lease | None:
    """Take the lease when it has expired; of two who try, one gets it."""
    statement = (
        update(datasets)
        .where(datasets.c.key == dataset_key, datasets.c.state == DatasetState.LOADING, datasets.c.lease_until <= db_now())
        .values(lease_owner=owner, lease_until=db_now() + LEASE_S)
        .returning(datasets.c.tenant_key, datasets.c.rows, datasets.c.ranked)
    )
    row = connection.execute(statement).one_or_none()
    return None if row is None else Lease(dataset_key, row.tenant_key, owner, row.rows, row.ranked)


def renew(connection: Connection, lease: Lease, **values: Any) -> None:
    """Lock the dataset, renew the lease and set these values.

    Raises:
        LeaseLost: somebody took over; nothing was written.
    """
    _change(connection, lease, lease_until=db_now() + LEASE_S, **values)


def release(connection: Connection, lease: Lease) -> None:
    """Let anybody take over at once.

    Raises:
        LeaseLost: somebody has already.
    """
    _change(connection, lease, lease_until=db_now())


def write_rows(connection: Connection, lease: Lease, rows: Sequence[LoadableRow]) -> Lease:
    """Insert the next rows and the dialogues that are new; return the lease as it then is.

    A dialogue is stored once per tenant. Dialogues are inserted by digest, so that two uploads never wait for each other.

    Raises:
        LeaseLost: somebody took over; nothing was written.
    """
    renew(connection, lease, rows=lease.rows + len(rows))
    digests = [row.digest for row in rows]
    # Behind a page of which none was stored, the next has mostly none either: whether it has is then seen by inserting it.
    known = {} if lease.found_none else _find_keys(connection, lease.tenant_key, sorted(set(digests)))
    missing = {digest: row.dialogue for digest, row in zip(digests, rows, strict=True) if digest not in known}
    added = _insert_dialogues(connection, lease.tenant_key, missing)
    # Those that nobody had looked for, or that another upload has inserted since.
    known |= _find_keys(connection, lease.tenant_key, sorted(missing.keys() - added.keys()))
    # What is added here has no rows in this dataset.
    counts = _count_rows(connection, lease.dataset_key, list(known.values())) if lease.rows else Counter()
    keys = known | added
    insert_many(connection, ROW_COLUMNS, _number_rows(lease, rows, [keys[digest] for digest in digests], counts))
    return replace(lease, rows=lease.rows + len(rows), found_none=not known)


def read_ranking(connection: Connection, dataset_key: int) -> Ranking:
    """Return the distinct dialogues by length in steps, then by their first row. 16 bytes a dialogue.

    Neighbours cost alike and lie near each other: a chunk that took dialogues of one exact length from all over the dataset
    changed a page of three indexes for nearly every item (see docs/log.md).
    """
    if connection.dialect.name == "postgresql":
        # Sorting millions may take longer than a statement of a request may.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
    counted = (
        select(dataset_rows.c.dialogue_key, func.count().label("rows"), func.min(dataset_rows.c.row_number).label("first_row"))
        .where(dataset_rows.c.dataset_key == dataset_key)
        .group_by(dataset_rows.c.dialogue_key)
        .subquery()
    )
    query = (
        select(counted.c.dialogue_key, counted.c.rows)
        .join(dialogues, dialogues.c.key == counted.c.dialogue_key)
        .order_by(_length_step(dialogues.c.characters), counted.c.first_row)
    )
    ranking = Ranking(array("q"), array("q"))
    for key, rows in connection.execute(query, execution_options={"yield_per": PAGE}):
        ranking.keys.append(key)
        ranking.rows.append(rows)
    return ranking


def forget_other_ranks(connection: Connection, lease: Lease, ranking: Ranking) -> Lease:
    """Take back ranks that are not those of this ranking: the load was begun by a version that ranked in another order.

    Raises:
        LeaseLost: somebody took over; nothing was written.
    """
    query = select(dataset_dialogues.c.dialogue_key).where(dataset_dialogues.c.dataset_key == lease.dataset_key)
    stored = array("q", connection.execute(query.order_by(dataset_dialogues.c.rank)).scalars())
    if stored == ranking.keys[: lease.ranked]:
        return lease
    renew(connection, lease, ranked=0)
    connection.execute(delete(dataset_dialogues).where(dataset_dialogues.c.dataset_key == lease.dataset_key))
    return replace(lease, ranked=0)


def _length_step(characters: ColumnElement[int]) -> ColumnElement[int]:
    """The length rounded down in steps, of at most an eighth of it from 64 characters on. A longer step is a longer length."""
    steps = [(characters < below, characters // step * step) for below, step in LENGTH_STEPS]
    return case(*steps, else_=characters // LONGEST_STEP * LONGEST_STEP)


def write_ranks(connection: Connection, lease: Lease, ranking: Ranking, *, stop: int) -> Lease:
    """Insert the next ranks, those below `stop`; return the lease as it then is.

    Raises:
        LeaseLost: somebody took over; nothing was written.
    """
    renew(connection, lease, ranked=stop)
    values = ((lease.dataset_key, rank, ranking.keys[rank], ranking.rows[rank]) for rank in range(lease.ranked, stop))
    insert_many(connection, list(dataset_dialogues.columns), values)
    return replace(lease, ranked=stop)


def gather_statistics(connection: Connection) -> None:
    """Let the database look at a sample of the tables that a load has filled.

    Without it SQLite walked all rows of the dataset for each dialogue of a chunk, because that order saves it a sort: 0.16 s
    instead of 0.006 s for a page of a chunk of 5,000 rows. PostgreSQL's own daemon comes by after a minute at the earliest.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA analysis_limit={SAMPLED_ROWS}")
    for table in (dialogues, dataset_rows, dataset_dialogues):
        connection.exec_driver_sql(f"ANALYZE {table.name}")


def finish(connection: Connection, lease: Lease) -> None:
    """Make the dataset ready; from now on nothing about it changes.

    Raises:
        LeaseLost: somebody took over; nothing was written.
    """
    _change(
        connection,
        lease,
        state=DatasetState.READY,
        dialogues=lease.ranked,
        ready_at=db_now(),
        lease_owner=None,
        lease_until=None,
    )


def has_abandoned(connection: Connection) -> bool:
    """True when there is an upload that was given up."""
    return connection.execute(select(datasets.c.key).where(_is_abandoned()).limit(1)).first() is not None


def undo_abandoned(connection: Connection) -> bool:
    """Undo one page of one dataset whose upload was given up, from its end; False when there is none.

    Dialogues stay: other datasets may hold them.
    """
    row = connection.execute(select(datasets).where(_is_abandoned()).limit(1).with_for_update()).one_or_none()
    if row is None:
        return False
    if row.ranked == row.rows == 0:
        connection.execute(delete(datasets).where(datasets.c.key == row.key))
        return True
    table, counter = (dataset_dialogues, "ranked") if row.ranked else (dataset_rows, "rows")
    number = table.c.rank if row.ranked else table.c.row_number
    left = max(0, getattr(row, counter) - PAGE)
    connection.execute(delete(table).where(table.c.dataset_key == row.key, number >= left))
    connection.execute(update(datasets).where(datasets.c.key == row.key).values({counter: left}))
    return True


def get(connection: Connection, tenant_key: int, reference: str) -> Row[Any]:
    """Return the dataset of this id, else the newest ready one of this name, else the newest of this name.

    Raises:
        UnknownDataset: there is none; the message names the nearest.
    """
    query = (
        select(datasets)
        .where(datasets.c.tenant_key == tenant_key, or_(datasets.c.id == reference, datasets.c.name == reference))
        .order_by((datasets.c.id == reference).desc(), (datasets.c.state == DatasetState.READY).desc(), datasets.c.key.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise UnknownDataset(f"There is no dataset '{reference}'.{_hint(connection, tenant_key, reference)}")
    return row


def as_view(row: Row[Any]) -> DatasetView:
    """Return what users read of a dataset."""
    return DatasetView(
        id=row.id,
        name=row.name,
        state=row.state,
        digest=row.digest,
        rows=row.rows,
        dialogues=row.dialogues,
        format=row.format,
        created_at=as_datetime(row.created_at),
        warnings=row.warnings,
    )


def _is_abandoned() -> ColumnElement[bool]:
    return and_(datasets.c.state == DatasetState.LOADING, datasets.c.lease_until <= db_now() - ABANDONED_S)


def _change(connection: Connection, lease: Lease, **values: Any) -> None:
    # The counters are part of the guard: the sweep undoes pages without a lease of its own.
    statement = update(datasets).where(
        datasets.c.key == lease.dataset_key,
        datasets.c.state == DatasetState.LOADING,
        datasets.c.lease_owner == lease.owner,
        datasets.c.rows == lease.rows,
        datasets.c.ranked == lease.ranked,
    )
    if connection.execute(statement.values(**values)).rowcount != 1:
        raise LeaseLost("Another upload of the same rows has taken over.")


def _find_keys(connection: Connection, tenant_key: int, digests: Sequence[str]) -> dict[str, int]:
    if not digests:
        return {}
    query = select(dialogues.c.digest, dialogues.c.key).where(
        dialogues.c.tenant_key == tenant_key, is_among(connection, dialogues.c.digest, digests)
    )
    return dict(connection.execute(query).all())


def _count_rows(connection: Connection, dataset_key: int, keys: Sequence[int]) -> Counter[int]:
    """Return how many rows each dialogue has in the dataset so far: one look at the end of an index per dialogue."""
    if not keys:
        return Counter()
    last = (
        select(func.max(dataset_rows.c.occurrence))
        .where(dataset_rows.c.dataset_key == dataset_key, dataset_rows.c.dialogue_key == dialogues.c.key)
        .correlate(dialogues)
        .scalar_subquery()
    )
    query = select(dialogues.c.key, last + 1).where(is_among(connection, dialogues.c.key, keys))
    return Counter({key: count or 0 for key, count in connection.execute(query)})


def _insert_dialogues(connection: Connection, tenant_key: int, texts: dict[str, str]) -> dict[str, int]:
    """Insert those that are not there yet; return the keys that they got, by digest."""
    values = [(tenant_key, digest, len(texts[digest]), texts[digest]) for digest in sorted(texts)]
    written = insert_returning(
        connection,
        DIALOGUE_COLUMNS,
        values,
        on_conflict="DO NOTHING",
        returning=(dialogues.c.digest, dialogues.c.key),
        seem_new=True,
    )
    return {row[0]: row[1] for row in written}


def _number_rows(
    lease: Lease, rows: Sequence[LoadableRow], keys: Sequence[int], counts: Counter[int]
) -> Iterator[tuple[Any, ...]]:
    """Make the rows of `ROW_COLUMNS`; `counts` holds how often each dialogue occurred before, and counts on."""
    for number, (row, key) in enumerate(zip(rows, keys, strict=True), start=lease.rows):
        # As `json.dumps` writes them, without an encoder for each row.
        references = f"[{', '.join(map(encode_basestring_ascii, row.references))}]"
        metadata = json.dumps(dict(row.metadata)) if row.metadata else "{}"
        yield lease.dataset_key, number, row.id, key, counts[key], references, metadata
        counts[key] += 1


def _hint(connection: Connection, tenant_key: int, name: str) -> str:
    query = select(datasets.c.name).where(datasets.c.tenant_key == tenant_key).order_by(datasets.c.key.desc())
    names = dict.fromkeys(connection.execute(query.limit(NAMES_TO_COMPARE)).scalars())
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        return f" Did you mean {' or '.join(repr(other) for other in near)}?"
    return " List them with: gistmill datasets list"


def _dialect(connection: Connection) -> Any:
    return sqlite if connection.dialect.name == "sqlite" else postgresql
