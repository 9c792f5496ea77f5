"""The guard of every write under a claim: key, epoch and state. No row changed means: stop, write nothing."""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, and_, bindparam, update

from gistmill.db.claim import Claim, is_held
from gistmill.db.tables import chunks
from gistmill.errors import LeaseLost
from gistmill.states import ChunkState


class Holder(Protocol):
    """A claim, or what a worker sends of it with the files that it made."""

    @property
    def chunk_key(self) -> int:
        """The chunk."""

    @property
    def epoch(self) -> int:
        """The epoch under which it was claimed."""


def owned_by(claim: Holder) -> ColumnElement[bool]:
    """The condition on a chunk: it runs, and under this claim's epoch."""
    return and_(is_of(claim), chunks.c.state == ChunkState.RUNNING)


def held_by(claim: Holder) -> ColumnElement[bool]:
    """The condition on a chunk: it runs, or will run next, under this claim's epoch."""
    return and_(is_of(claim), is_held())


def is_of(claim: Holder) -> ColumnElement[bool]:
    """The condition on a chunk: it is the claim's, and nobody has claimed it since."""
    return and_(chunks.c.key == claim.chunk_key, chunks.c.epoch == claim.epoch)


def is_named(state: ChunkState) -> ColumnElement[bool]:
    """The condition on a chunk in a statement that is made once: in this state, and that which `names_of` names."""
    return and_(chunks.c.key == bindparam("of_chunk"), chunks.c.epoch == bindparam("under"), chunks.c.state == state)


def names_of(claim: Holder) -> dict[str, int]:
    """Return the values for `is_named`."""
    return {"of_chunk": claim.chunk_key, "under": claim.epoch}


def guard(connection: Connection, claim: Claim, **values: Any) -> None:
    """Lock the chunk and set these values.

    Raises:
        LeaseLost: the chunk is no longer this claim's; nothing was written.
    """
    if connection.execute(update(chunks).where(owned_by(claim)).values(**values)).rowcount != 1:
        raise LeaseLost
