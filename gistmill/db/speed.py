"""How fast workers have generated, by model, parameters, engine and device: for the size of chunks and for estimates.

The sums forget: each chunk multiplies what was measured before it by KEPT, so that about the last twenty chunks count. They
belong to no tenant, are written last in the transaction that finishes a chunk, and decide nothing but sizes and forecasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Insert, Row, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite

from gistmill.db.clock import db_now
from gistmill.db.tables import measured_speeds
from gistmill.specs import GenerationParameters, Precision

KEPT = 0.95
MEASURED = (
    *("version_digest", "engine", "device_name", "dtype", "dialogues", "tokens_in", "tokens_out", "seconds"),
    *("load_s", "warmup_s"),
)


class Work(NamedTuple):
    """What decides the speed on a given device: the model that runs, its number format, and how it writes."""

    model_digest: str
    precision: Precision
    max_new_tokens: int
    num_beams: int
    do_sample: bool

    @classmethod
    def of(cls, model_digest: str, precision: Precision, generation: GenerationParameters) -> Work:
        """Return the work of a job of this model and these parameters; how it samples makes no difference to the speed."""
        how = (generation.max_new_tokens, generation.num_beams, generation.do_sample)
        return cls(model_digest, precision, *how)


@dataclass(frozen=True)
class Measurement:
    """What one chunk took.

    `version_digest` names the files of the model version: an adapter's own, where `work.model_digest` names base and adapter.
    `seconds` are those in the engine, without load and warm-up, in which it ended `dialogues`. `load_s` and `warmup_s` are None
    when the chunk found the model in memory, and `warmup_s` also when the chunk was too short to tell.
    """

    work: Work
    version_digest: str
    engine: str
    device_name: str
    dtype: str
    dialogues: int
    tokens_in: int
    tokens_out: int
    seconds: float
    load_s: float | None = None
    warmup_s: float | None = None


@dataclass(frozen=True)
class Speed:
    """What a worker has done with this work lately, on one engine and device. `measured_at` is in seconds since 1970."""

    model_digest: str
    engine: str
    device_name: str
    dialogues_per_s: float
    tokens_per_s: float
    tokens_out_per_dialogue: float
    load_s: float | None
    warmup_s: float | None
    measured_at: float


def record(connection: Connection, measurement: Measurement) -> None:
    """Add what a chunk took to what is known, in one statement."""
    values = {column: getattr(measurement, column) for column in MEASURED}
    connection.execute(_adding(connection.dialect.name), measurement.work._asdict() | values)


@cache
def _adding(dialect: str) -> Insert:
    """Return the statement that adds a measurement; made once, because its making takes longer than its work."""
    columns = measured_speeds.c
    names = (*Work._fields, *MEASURED)
    make = sqlite.insert if dialect == "sqlite" else postgresql.insert
    statement = make(measured_speeds).values({name: bindparam(name) for name in names} | {"chunks": 1, "measured_at": db_now()})
    new = statement.excluded
    sums = {name: columns[name] * KEPT + new[name] for name in ("dialogues", "tokens_in", "tokens_out", "seconds")}
    last = {name: func.coalesce(new[name], columns[name]) for name in ("load_s", "warmup_s")}
    return statement.on_conflict_do_update(
        index_elements=list(measured_speeds.primary_key.columns),
        set_=sums | last | {"chunks": columns.chunks + 1, "measured_at": new.measured_at},
    )


def find(connection: Connection, work: Work, device_names: Sequence[str] = ()) -> list[Speed]:
    """Return what was measured of this work, the latest first, one engine for each device; with names, on those only."""
    columns = measured_speeds.c
    query = select(measured_speeds).where(
        *(columns[name] == value for name, value in work._asdict().items()), columns.dialogues > 0, columns.seconds > 0
    )
    if device_names:
        query = query.where(columns.device_name.in_(device_names))
    found: dict[str, Speed] = {}
    for row in connection.execute(query.order_by(columns.measured_at.desc())):
        found.setdefault(row.device_name, _speed(row))
    return list(found.values())


def _speed(row: Row[Any]) -> Speed:
    return Speed(
        model_digest=row.model_digest,
        engine=row.engine,
        device_name=row.device_name,
        dialogues_per_s=row.dialogues / row.seconds,
        tokens_per_s=(row.tokens_in + row.tokens_out) / row.seconds,
        tokens_out_per_dialogue=row.tokens_out / row.dialogues,
        load_s=row.load_s,
        warmup_s=row.warmup_s,
        measured_at=row.measured_at,
    )
