"""What the client sends to have an experiment made: the data, and the spec."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gistmill.errors import InvalidInput
from gistmill.sources import DatasetSource, find_source
from gistmill.specs import ExperimentSpec, parse_experiment_spec

if TYPE_CHECKING:
    from gistmill.client.client import Client

Data = str | Path | IO[bytes]
UNCHECKED = "checked-before-the-upload"


def make_spec(
    client: Client, name: str, data: Data, *, test: Data | None, columns: Iterable[str], fields: dict[str, Any]
) -> ExperimentSpec:
    """Check what is asked for, upload what is needed, and return the spec; see `Client.experiment`."""
    wanted = {field: value for field, value in fields.items() if value is not None} | {"name": name}
    source = find_source(data)
    tested = None if test is None else find_source(test)
    _select(wanted, "select", source)
    if tested is not None:
        _select(wanted, "test_select", tested)
        wanted["test"] = UNCHECKED
    parse_experiment_spec({"dataset": UNCHECKED} | wanted)
    mapped = tuple(columns)
    dataset = client.upload(source, mapped)
    if tested is not None:
        wanted["test"] = client.upload(tested, mapped)
    return parse_experiment_spec({"dataset": dataset} | wanted)


def _select(wanted: dict[str, Any], field: str, source: DatasetSource) -> None:
    """Put the rows that stand behind a name into the spec."""
    if source.select is None:
        return
    if wanted.get(field):
        raise InvalidInput(f"Rows are selected twice: behind the data's name and by {field}. Keep one.")
    wanted[field] = source.select
