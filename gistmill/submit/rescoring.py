"""An evaluation scored anew from what is stored: no summary is made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row

from gistmill.db import evaluations
from gistmill.db.session import Database
from gistmill.errors import DataMismatch, InvalidSpec
from gistmill.specs import parse_evaluate_spec
from gistmill.specs.evaluate import OF_A_JOB
from gistmill.submit.jobs import submit_job

# What is scored stays; how it is scored may change.
CHANGEABLE = frozenset({"metrics", "stemming", "references", "resamples", "seed", "baseline", "priority", "labels"})


def submit_rescore(
    database: Database,
    tenant_key: int,
    job_ids: Sequence[str],
    changes: Mapping[str, Any],
    *,
    idempotency_key: str | None = None,
    ring: Callable[[str], object] | None = None,
    live_within_s: float = 30.0,
) -> tuple[str, bool]:
    """Return the id of a new evaluation of the same summaries, scored with these changes, and whether it is new.

    Several evaluations of the same rows become one, so that what was evaluated at different times can be compared in pairs.

    Raises:
        UnknownComparison: there is no such evaluation.
        DataMismatch: they are about other data, other rows, or files of summaries.
        InvalidSpec: a change names nothing that can be changed, or two systems have one name.
    """
    wrong = sorted(set(changes) - CHANGEABLE)
    if wrong:
        raise InvalidSpec(f"'{wrong[0]}' cannot be changed when scoring anew. There are: {', '.join(sorted(CHANGEABLE))}.")
    with database.read() as connection:
        found = [evaluations.get_row(connection, tenant_key, job_id) for job_id in job_ids]
        _require_same_data(found)
        body = _body(connection, found)
    return submit_job(
        database,
        tenant_key,
        parse_evaluate_spec(body | dict(changes)),
        idempotency_key=idempotency_key,
        ring=ring,
        live_within_s=live_within_s,
    )


def _require_same_data(found: Sequence[Row[Any]]) -> None:
    first = found[0]
    for other in found[1:]:
        if other.dataset_digest != first.dataset_digest:
            raise DataMismatch(
                f"{first.id} is about '{first.dataset_name}' (digest {first.dataset_digest[:12]}…) and {other.id} about"
                f" '{other.dataset_name}' (digest {other.dataset_digest[:12]}…): dialogues or references differ, so their"
                " scores cannot be paired. Evaluate both on the same data."
            )
        if other.spec.get("select") != first.spec.get("select"):
            raise DataMismatch(
                f"{first.id} takes the rows {first.spec.get('select') or 'all'} and {other.id} the rows"
                f" {other.spec.get('select') or 'all'}: scores of different rows cannot be paired."
            )
        if first.predictions_key is not None or other.predictions_key is not None:
            raise DataMismatch("Evaluations of files cannot be put together: put their columns into one file instead.")


def _body(connection: Connection, found: Sequence[Row[Any]]) -> dict[str, Any]:
    """Return the spec of the first with the systems of all, each as the job that holds its summaries."""
    first = found[0]
    body = {name: value for name, value in first.spec.items() if name not in ("models", "dataset")}
    if first.predictions_key is not None:
        return body | {"dataset": first.dataset_id}
    models: dict[str, dict[str, str]] = {}
    for row in found:
        systems = evaluations.list_systems(connection, row.key)
        sources = evaluations.list_sources(connection, systems)
        for system in systems:
            entry = {"name": system.name, "model": OF_A_JOB + sources[system.number].id}
            if models.setdefault(system.name, entry) != entry:
                raise InvalidSpec(
                    f"Two of the evaluations call different summaries '{system.name}'. Evaluate anew with names: NAME=MODEL."
                )
    return body | {"dataset": first.dataset_id, "models": list(models.values())}
