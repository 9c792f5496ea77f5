"""What the figures of an evaluation rest on: the signature, and what a reader must know beside the counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from gistmill import __version__
from gistmill.db import evaluations
from gistmill.db.claim import Claim
from gistmill.db.evaluations import Evaluation
from gistmill.db.scores import Flaws
from gistmill.db.tables import datasets
from gistmill.specs import EvaluateSpec, digest_of

LONGEST_SELECTION = 100


def sign(
    connection: Connection,
    claim: Claim,
    spec: EvaluateSpec,
    evaluation: Evaluation,
    metrics: Sequence[str],
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """Return what someone needs to get the same figures again."""
    dataset = connection.execute(select(datasets).where(datasets.c.key == claim.dataset_key)).one()
    signature = {
        # What a module says of itself may hold the mark that separates the parts.
        "metrics": "+".join(metrics).replace("|", ";"),
        "value": "f-measure",
        "stemming": "yes" if spec.stemming else "no",
        "references": spec.references,
        "lsum": "newlines",
        "cases": _case_rule(dataset.mapping),
        "scored": counts.get("scored", 0),
        "interval": f"percentile-bootstrap-over-cases-{spec.resamples}",
        "test": f"approximate-randomization-{spec.resamples}",
        "seed": spec.seed,
        "data": dataset.digest[:16],
    }
    if spec.select:
        # A long list is told apart by its digest: its beginning may be that of another.
        is_short = len(spec.select) <= LONGEST_SELECTION
        signature["select"] = spec.select if is_short else f"sha256-{digest_of(spec.select)[:16]}"
    if len(evaluation.systems) > 2:
        signature["correction"] = "holm"
    if evaluation.predictions_key not in (None, claim.dataset_key):
        query = select(datasets.c.digest).where(datasets.c.key == evaluation.predictions_key)
        signature["predictions"] = connection.execute(query).scalar_one()[:16]
    return signature | {"gistmill": __version__}


def _case_rule(mapping: Mapping[str, Any]) -> str:
    """Return what makes rows one case: the dialogue, a column that stands for it, or nothing."""
    if not mapping.get("predictions"):
        return "dialogue"
    return f"column-{mapping['dialogue']}" if mapping.get("dialogue") else "each-row"


def list_notes(connection: Connection, evaluation: Evaluation, flaws: Flaws) -> list[str]:
    """Return what a reader of the figures must know beside the counts."""
    names = [system.name for system in evaluation.systems]
    lacking = zip(names, flaws.missing, strict=True)
    notes = [f"{name} has no summary of {_cases(count)}." for name, count in lacking if count]
    if flaws.differing:
        notes.append(
            f"The rows of {_cases(flaws.differing)} hold different summaries: the first counts. To score every row:"
            " --references each."
        )
    return notes + _differences(connection, evaluation)


def _cases(count: int) -> str:
    return "1 case" if count == 1 else f"{count:,} cases"


def _differences(connection: Connection, evaluation: Evaluation) -> list[str]:
    """Name what the compared do not share, so that a difference of scores may have another cause than the model."""
    sources = evaluations.list_sources(connection, evaluation.systems)
    notes = []
    for what in ("prompt", "generation", "max_input_tokens", "on_overflow", "precision"):
        of = {system.name: sources[system.number].spec.get(what) for system in evaluation.systems if system.number in sources}
        if len({repr(value) for value in of.values()}) > 1:
            shown = _unlike(of) if what == "generation" else of
            each = "; ".join(f"{name}: {value}" for name, value in shown.items())
            notes.append(f"The compared differ in {what.replace('_', ' ')}: {each}.")
    return notes


def _unlike(of: Mapping[str, Any]) -> dict[str, str]:
    """Return of each system's parameters those that are not the same for all."""
    known = {name: value or {} for name, value in of.items()}
    keys = dict.fromkeys(key for value in known.values() for key in value)
    unlike = [key for key in keys if len({repr(value.get(key)) for value in known.values()}) > 1]
    return {name: ", ".join(f"{key} {value.get(key)}" for key in unlike) for name, value in known.items()}
