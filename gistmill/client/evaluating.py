"""What the client sends to have an evaluation made: data, or summaries made elsewhere, and the spec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gistmill.errors import InvalidInput
from gistmill.sources import find_source
from gistmill.specs import EvaluateSpec, parse_evaluate_spec

if TYPE_CHECKING:
    from gistmill.client.client import Client

Data = str | Path | IO[bytes]
UNCHECKED = "checked-before-the-upload"


def make_spec(
    client: Client,
    data: Data | None,
    *,
    models: Sequence[Any],
    predictions: Data | None,
    prediction_columns: Sequence[str],
    reference_columns: Sequence[str],
    case_column: str | None,
    columns: Iterable[str],
    limit: int | None,
    fields: dict[str, Any],
) -> EvaluateSpec:
    """Check what is asked for, upload what is needed, and return the spec; see `Client.evaluate`."""
    if (data is None) == (predictions is None) and not (data is not None and prediction_columns):
        raise InvalidInput("Name data and the models to compare on it, or predictions with the columns that hold them.")
    if predictions is None and (reference_columns or case_column):
        raise InvalidInput(
            "Reference columns and a case column describe a file of predictions. For data: columns=references=NAME."
        )
    wanted = {name: value for name, value in fields.items() if value is not None} | {"models": list(models)}
    source = None if data is None else find_source(data)
    _select(wanted, None if source is None else source.select, limit)
    if predictions is not None:
        wanted |= {"predictions": UNCHECKED, "columns": list(prediction_columns)}
    parse_evaluate_spec({"dataset": UNCHECKED} | wanted)
    dataset = None if source is None else client.upload(source, columns)
    if predictions is not None:
        added = client.add_predictions(predictions, columns=prediction_columns, references=reference_columns, case=case_column)
        wanted["predictions"] = added.id
        dataset = dataset or added.id
    return parse_evaluate_spec({"dataset": dataset} | wanted)


def _select(wanted: dict[str, Any], behind_name: str | None, limit: int | None) -> None:
    """Put the one way in which rows are selected into the spec."""
    ways = [way for way in (wanted.get("select"), behind_name, None if limit is None else f"[0:{limit}]") if way]
    if len(ways) > 1:
        raise InvalidInput("Rows are selected twice: behind the data's name, by select or by limit. Keep one.")
    if ways:
        wanted["select"] = ways[0]
