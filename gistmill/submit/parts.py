"""The rows of an experiment: what is trained on, what is tested on, the sample of that, and the rows that prompts show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Text, cast, func, select

from gistmill.db.jobs import JobRows, takes
from gistmill.db.tables import dataset_rows
from gistmill.errors import InvalidDataset, InvalidSelection, InvalidSpec
from gistmill.ingest.selection import parse_selection
from gistmill.specs import ExperimentSpec
from gistmill.submit.drafts import get_ready, select_rows

# Without test data of its own, an experiment keeps the last tenth of the rows to test on.
PART, LEAST_TESTED, MOST_TESTED = 10, 10, 1_500
LEAST_TRAINED = 10
SAMPLE = 50
FEW = 3


@dataclass(frozen=True)
class Part:
    """Rows of a dataset, by number."""

    dataset: Row[Any]
    numbers: range | tuple[int, ...]

    @property
    def select(self) -> str | None:
        """The selection that chooses them; None for all rows, so that jobs over the whole dataset look alike."""
        return None if self.rows.count == self.dataset.rows else write_selection(self.numbers)

    @property
    def rows(self) -> JobRows:
        """The rows as a job takes them."""
        if isinstance(self.numbers, range):
            return JobRows(self.numbers.start, self.numbers.stop, self.numbers.step)
        return JobRows(0, 0, 0, self.numbers)

    @property
    def members(self) -> range | frozenset[int]:
        """The numbers, quick to ask whether one is among them."""
        return self.numbers if isinstance(self.numbers, range) else frozenset(self.numbers)


@dataclass(frozen=True)
class Parts:
    """The rows of an experiment. `sample`, `one_shot` and `few_shot` are selections."""

    training: Part
    test: Part
    sample: str | None
    one_shot: str
    few_shot: str
    warnings: tuple[str, ...] = ()

    def freeze(self, spec: ExperimentSpec) -> ExperimentSpec:
        """Return the spec with the very rows: the parts that were chosen, so that it can be read what was done."""
        return spec.model_copy(
            update={
                "dataset": self.training.dataset.id,
                "select": self.training.select,
                "test": self.test.dataset.id,
                "test_select": self.test.select,
                "sample": count(self.sample, self.test.dataset.rows),
                "one_shot": self.one_shot,
                "few_shot": self.few_shot,
            }
        )


def find_parts(connection: Connection, tenant_key: int, spec: ExperimentSpec) -> Parts:
    """Return the rows that this experiment trains on, tests on and shows.

    Raises:
        UnknownDataset, DatasetLoading, InvalidSelection: there are no such rows, or shots are not among those trained on.
        InvalidDataset: there are too few rows, no references, or every dialogue that is tested on is also trained on.
        InvalidSpec: the sample is larger than the test part, or a row is in both parts.
    """
    training = _part(connection, tenant_key, spec.dataset, spec.select)
    if spec.test is None:
        training, test = _split(training)
    else:
        test = _part(connection, tenant_key, spec.test, spec.test_select)
        _check_apart(training, test)
    usable = _list_usable(connection, training, FEW)
    return Parts(
        training,
        test,
        _sample(spec, test),
        _shots(spec.one_shot, training, usable[:1]),
        _shots(spec.few_shot, training, usable),
        tuple(_warn_of_overlap(connection, training, test)),
    )


def write_selection(numbers: range | Sequence[int]) -> str:
    """Return these rows in the grammar of selections."""
    if not isinstance(numbers, range):
        return f"[{','.join(map(str, numbers))}]"
    return f"[{numbers.start}:{numbers.stop}{'' if numbers.step == 1 else f':{numbers.step}'}]"


def count(selection: str | None, rows: int) -> int:
    """Return how many of so many rows a selection chooses."""
    return select_rows(selection, rows).count


def _part(connection: Connection, tenant_key: int, reference: str, selection: str | None) -> Part:
    dataset = get_ready(connection, tenant_key, reference)
    rows = select_rows(selection, dataset.rows)
    return Part(dataset, range(rows.start, rows.stop, rows.step) if rows.listed is None else rows.listed)


def _split(whole: Part) -> tuple[Part, Part]:
    rows = len(whole.numbers)
    if rows < LEAST_TESTED + LEAST_TRAINED:
        raise InvalidDataset(
            f"'{whole.dataset.name}' gives {rows} rows. Without test data of its own, an experiment needs"
            f" {LEAST_TESTED + LEAST_TRAINED} or more: the last tenth, and {LEAST_TESTED} at least, is kept back to test on."
            " Take more rows, or name test data with --test."
        )
    tested = min(max(rows // PART, LEAST_TESTED), MOST_TESTED)
    return Part(whole.dataset, whole.numbers[:-tested]), Part(whole.dataset, whole.numbers[-tested:])


def _check_apart(training: Part, test: Part) -> None:
    if training.dataset.key != test.dataset.key:
        return
    trained = training.members
    both = [number for number in test.numbers if number in trained]
    if both:
        raise InvalidSpec(
            f"The job cannot run as written: /test: {len(both)} rows of '{test.dataset.name}', the first of them row"
            f" {both[0]}, would be trained on and tested on. Select rows that are apart, or leave the test data out: then the"
            " last tenth is kept back."
        )


def _sample(spec: ExperimentSpec, test: Part) -> str | None:
    rows = len(test.numbers)
    if spec.sample is not None and spec.sample > rows:
        raise InvalidSpec(f"The job cannot run as written: /sample: it takes {spec.sample} rows, and the test part has {rows}.")
    return Part(test.dataset, test.numbers[: spec.sample or SAMPLE]).select


def _shots(selection: str | None, training: Part, usual: Sequence[int]) -> str:
    if selection is None:
        return write_selection(usual)
    chosen = parse_selection(selection, training.dataset.rows)
    numbers = chosen.rows or range(chosen.start, chosen.stop, chosen.step)
    trained = training.members
    outside = next((number for number in numbers if number not in trained), None)
    if outside is not None:
        raise InvalidSelection(
            f"Prompts show rows of the training part, {training.select or 'all rows'} of '{training.dataset.name}', and row"
            f" {outside} is not among them."
        )
    return write_selection(numbers)


def _list_usable(connection: Connection, training: Part, most: int) -> list[int]:
    """Return the first rows that have a reference.

    Raises:
        InvalidDataset: none has.
    """
    number = dataset_rows.c.row_number
    query = select(number).where(
        dataset_rows.c.dataset_key == training.dataset.key,
        takes(connection, training.rows, number),
        cast(dataset_rows.c.references, Text) != "[]",
    )
    found = list(connection.execute(query.order_by(number).limit(most)).scalars())
    if not found:
        raise InvalidDataset(
            f"None of the {len(training.numbers)} training rows of '{training.dataset.name}' has a reference summary. Map the"
            " column that holds them, for example --column references=summary."
        )
    return found


def _warn_of_overlap(connection: Connection, training: Part, test: Part) -> list[str]:
    """Count the dialogues that are tested on and trained on: scoring leaves them out.

    Raises:
        InvalidDataset: no other is left.
    """
    trained = select(dataset_rows.c.dialogue_key).where(*_taken(connection, training))
    dialogues = func.count(dataset_rows.c.dialogue_key.distinct())
    tested = connection.scalar(select(dialogues).where(*_taken(connection, test))) or 0
    shared = connection.scalar(select(dialogues).where(*_taken(connection, test), dataset_rows.c.dialogue_key.in_(trained)))
    if not shared:
        return []
    if shared == tested:
        raise InvalidDataset(
            f"All {tested} dialogues to test on in '{test.dataset.name}' are also trained on. Name other test data."
        )
    return [f"{shared} of {tested} dialogues of the test part are also trained on, and are left out where they are scored."]


def _taken(connection: Connection, part: Part) -> tuple[Any, ...]:
    rows = takes(connection, part.rows, dataset_rows.c.row_number)
    return dataset_rows.c.dataset_key == part.dataset.key, rows
