"""Items and their ends: what exists already, and the one transaction that records a micro-batch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, bindparam, func, null, select, update

from gistmill.db.bulk import insert_returning, is_among, is_among_named
from gistmill.db.claim import Claim
from gistmill.db.fence import guard
from gistmill.db.pending import Unit, chunk_with_job, pending_rows
from gistmill.db.tables import chunks, generations, jobs, results
from gistmill.errors import ItemError, JobEnded
from gistmill.states import FINAL_JOB_STATES

LONGEST_MESSAGE = 2_000
GENERATION_COLUMNS = [
    generations.c[name]
    for name in (
        *("dialogue_key", "draw", "summary", "finish_reason", "tokens_in", "tokens_out", "truncated"),
        *("engine", "device", "dtype"),
    )
]
FOUND_COLUMNS = [generations.c[name] for name in ("key", "dialogue_key", "draw", "truncated", "finish_reason")]


class Made(NamedTuple):
    """What the engine wrote for a unit, and on what."""

    unit: Unit
    summary: str
    finish_reason: str
    tokens_in: int
    tokens_out: int
    truncated: bool
    engine: str
    device: str
    dtype: str


class Found(NamedTuple):
    """A generation that exists already."""

    unit: Unit
    generation_key: int
    truncated: bool
    finish_reason: str


class Lost(NamedTuple):
    """A unit whose items fail with this error."""

    unit: Unit
    error: ItemError


@dataclass(frozen=True)
class Recorded:
    """What one micro-batch really changed."""

    succeeded: int
    failed: int
    generated: int


class _Ended(NamedTuple):
    """What the rows of `results` that are written together have in common."""

    job_key: int
    attempt: int
    arrival: int
    chunk_key: int
    epoch: int


class _Result(NamedTuple):
    """A row of `results`, save for its time and what is `_Ended`: an item's generation, or its error."""

    row_number: int
    generation_key: int | None = None
    shared: bool = False
    error_code: str | None = None
    error_message: str | None = None


# An end is final, save that a later attempt may replace an error.
_REPLACE_OLDER_ERRORS = (
    "(job_key, row_number) DO UPDATE SET "
    + ", ".join(f"{column.name} = excluded.{column.name}" for column in results.columns if not column.primary_key)
    + " WHERE results.generation_key IS NULL AND results.attempt < excluded.attempt"
)


def find_generations(connection: Connection, claim: Claim, units: Sequence[Unit], *, with_truncated: bool) -> list[Found]:
    """Return the units whose generation is stored already. A cut prompt counts only for jobs that allow cutting."""
    by_work = {(unit.dialogue_key, unit.draw): unit for unit in units}
    draws = [unit.draw for unit in units]
    values = {
        "recipe": claim.recipe_key,
        "keys": [unit.dialogue_key for unit in units],
        "first_draw": min(draws),
        "last_draw": max(draws),
    }
    rows = connection.execute(_finding(connection.dialect.name, with_truncated=with_truncated), values)
    return [
        Found(by_work[row.dialogue_key, row.draw], row.key, row.truncated, row.finish_reason)
        for row in rows
        if (row.dialogue_key, row.draw) in by_work
    ]


@cache
def _finding(dialect: str, *, with_truncated: bool) -> Select[Any]:
    """Return the statement that finds generations; made once, because every page of a chunk waits for it."""
    query = select(*FOUND_COLUMNS).where(
        generations.c.recipe_key == bindparam("recipe"),
        is_among_named(dialect, generations.c.dialogue_key, "keys"),
        generations.c.draw.between(bindparam("first_draw"), bindparam("last_draw")),
    )
    return query if with_truncated else query.where(generations.c.truncated.is_(False))


def record(
    connection: Connection, claim: Claim, *, made: Sequence[Made] = (), found: Sequence[Found] = (), lost: Sequence[Lost] = ()
) -> Recorded:
    """Write the ends of these units' items and count them, all or nothing.

    The UPDATE that guards the chunk also counts the items that end, so that `chunks.finish` need not look them up.

    The order of statements is the lock order: the chunk, generations sorted by key, the job, the results. The job's row is
    locked before the results are written because they carry its next arrival number: two chunks of one job that took the
    number at the same moment would otherwise hide rows from a reader who goes on behind it.

    Raises:
        LeaseLost: the chunk is no longer this claim's.
        JobEnded: the job was cancelled to its end or has failed.
    """
    units = [*(item.unit for item in made), *(item.unit for item in found), *(item.unit for item in lost)]
    sent = sum(len(unit.rows) for unit in units)
    guard(connection, claim, progressed=True, ended=chunks.c.ended + sent)
    new_keys, all_found = _store(connection, claim, made)
    # All that can be made without the job's row is made before: while it is locked, no other chunk of the job is recorded or
    # finished.
    ends = {item.generation_key: item for item in (*all_found, *found)}
    rows = [
        *_with_generations([*all_found, *found], new_keys),
        *(_with_error(row_number, item.error) for item in lost for row_number in item.unit.rows),
    ]
    arrival = _next_arrival(connection, claim.job_key)
    if arrival is None:
        raise JobEnded
    replaced = _count_older_errors(connection, claim.job_key, claim.attempt, rows)
    ended = _Ended(claim.job_key, claim.attempt, arrival, claim.chunk_key, claim.epoch)
    inserted = _insert(connection, ended, rows)
    written = [row for row in rows if row.row_number in inserted]
    if len(written) < sent:
        guard(connection, claim, ended=chunks.c.ended - (sent - len(written)))
    return _count(connection, claim, written, ends, replaced)


def fail_remaining(connection: Connection, claim: Claim, error: ItemError) -> None:
    """Write this error to every item of the chunk that has no end yet. The caller has locked the chunk."""
    fail_remaining_of(connection, claim.chunk_key, error)


def fail_remaining_of(connection: Connection, chunk_key: int, error: ItemError) -> None:
    """Write this error to every item of the chunk that has no end yet. The caller has locked the chunk."""
    chunk = chunk_with_job(connection, chunk_key)
    arrival = _next_arrival(connection, chunk.job_key)
    if arrival is None:
        return
    rows = [_with_error(row_number, error) for row_number in pending_rows(connection, chunk)]
    replaced = _count_older_errors(connection, chunk.job_key, chunk.attempt, rows)
    ended = _Ended(chunk.job_key, chunk.attempt, arrival, chunk_key, chunk.epoch)
    written = len(_insert(connection, ended, rows))
    connection.execute(update(jobs).where(jobs.c.key == chunk.job_key).values(failed=jobs.c.failed + written - replaced))
    connection.execute(update(chunks).where(chunks.c.key == chunk_key).values(ended=chunks.c.ended + written))


def _store(connection: Connection, claim: Claim, made: Sequence[Made]) -> tuple[set[int], list[Found]]:
    """Insert the generations; the first writer of a key wins. Return the keys that are new and where each unit's text is."""
    if not made:
        return set(), []
    by_work = {(item.unit.dialogue_key, item.unit.draw): item for item in made}
    rows = [_generation_row(by_work[work]) for work in sorted(by_work)]
    names = (generations.c.key, generations.c.dialogue_key, generations.c.draw)
    new = insert_returning(
        connection,
        GENERATION_COLUMNS,
        rows,
        fixed={
            generations.c.recipe_key: claim.recipe_key,
            generations.c.chunk_key: claim.chunk_key,
            generations.c.epoch: claim.epoch,
        },
        stamp=generations.c.created_at,
        on_conflict="DO NOTHING",
        returning=names,
        seem_new=True,
    )
    found = [
        Found(item.unit, key, item.truncated, item.finish_reason) for key, *work in new for item in [by_work.pop((*work,))]
    ]
    if by_work:
        found += find_generations(connection, claim, [item.unit for item in by_work.values()], with_truncated=True)
    return {row[0] for row in new}, found


def _generation_row(item: Made) -> tuple[Any, ...]:
    """Return the values of GENERATION_COLUMNS."""
    return (
        item.unit.dialogue_key, item.unit.draw, item.summary, item.finish_reason, item.tokens_in, item.tokens_out,
        item.truncated, item.engine, item.device, item.dtype,
    )  # fmt: skip


def _next_arrival(connection: Connection, job_key: int) -> int | None:
    """Lock the job and return its next arrival number, or None when it has ended."""
    statement = (
        update(jobs)
        .where(jobs.c.key == job_key, jobs.c.state.not_in(FINAL_JOB_STATES))
        .values(arrival=jobs.c.arrival + 1)
        .returning(jobs.c.arrival)
    )
    return connection.execute(statement).scalar_one_or_none()


def _with_generations(found: Iterable[Found], new_keys: Collection[int]) -> Iterable[_Result]:
    for item in found:
        for position, row_number in enumerate(item.unit.rows):
            is_generated = item.generation_key in new_keys and position == 0
            yield _Result(row_number, item.generation_key, not is_generated)


def _with_error(row_number: int, error: ItemError) -> _Result:
    return _Result(row_number, error_code=error.code, error_message=error.message[:LONGEST_MESSAGE])


def _insert(connection: Connection, ended: _Ended, rows: Sequence[_Result]) -> set[int]:
    """Insert the results; return the row numbers that were really written."""
    written = insert_returning(
        connection,
        [results.c[name] for name in _Result._fields],
        rows,
        fixed={results.c[name]: value for name, value in ended._asdict().items()},
        stamp=results.c.created_at,
        on_conflict=_REPLACE_OLDER_ERRORS,
        returning=[results.c.row_number],
        # A later attempt replaces errors.
        seem_new=ended.attempt == 1,
    )
    return {row_number for (row_number,) in written}


def _count_older_errors(connection: Connection, job_key: int, attempt: int, rows: Sequence[_Result]) -> int:
    """Return how many of these items have an error that they will replace."""
    if attempt == 1:
        return 0
    query = select(func.count()).where(
        results.c.job_key == job_key,
        is_among(connection, results.c.row_number, [row.row_number for row in rows]),
        results.c.generation_key.is_(null()),
        results.c.attempt < attempt,
    )
    return connection.execute(query).scalar_one()


def _count(connection: Connection, claim: Claim, written: Sequence[_Result], ends: dict[int, Found], replaced: int) -> Recorded:
    good = [row for row in written if row.generation_key is not None]
    generated = sum(not row.shared for row in good)
    failed = len(written) - len(good)
    texts = [ends[row.generation_key] for row in good if row.generation_key is not None]
    connection.execute(
        update(jobs)
        .where(jobs.c.key == claim.job_key)
        .values(
            succeeded=jobs.c.succeeded + len(good),
            failed=jobs.c.failed + failed - replaced,
            generated=jobs.c.generated + generated,
            shared=jobs.c.shared + len(good) - generated,
            truncated=jobs.c.truncated + sum(text.truncated for text in texts),
            cut_off=jobs.c.cut_off + sum(text.finish_reason == "length" for text in texts),
        )
    )
    return Recorded(len(good), failed, generated)
