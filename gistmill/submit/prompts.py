"""Prompts of a user's own, from a template or from rows of a dataset, checked before they are written."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, select

from gistmill import prompts
from gistmill.db.jobs import takes
from gistmill.db.prompts import NewPrompt
from gistmill.db.session import Database
from gistmill.db.tables import dataset_rows, dialogues
from gistmill.errors import InvalidDataset, InvalidInput, InvalidSelection
from gistmill.prompts import Example, Kind
from gistmill.submit.drafts import get_ready, select_rows

# More do not fit the input of any model, and nobody reads them.
MOST_EXAMPLES = 100
NAMED = 5


def draft_template(name: str, template: str) -> NewPrompt:
    """Return the prompt that this text with one {dialogue} makes; `db.prompts.add` gives it its version.

    Raises:
        InvalidName: the name cannot be one.
        InvalidInput: the text is empty, too long, or has no place for the dialogue, or several.
    """
    head, tail = prompts.split(template)
    return NewPrompt(prompts.check_name(name), head, tail)


def draft_examples(
    database: Database, tenant_key: int, name: str, *, kind: Kind, dataset: str, selection: str | None
) -> NewPrompt:
    """Return the prompt that shows the selected rows, each with its first reference; `db.prompts.add` gives it its version.

    Raises:
        InvalidName: the name cannot be one.
        UnknownDataset, DatasetLoading: the data is not here, or not whole yet.
        InvalidSelection: it does not parse, is missing, or chooses more rows than the kind shows.
        InvalidDataset: a row has no reference.
        InvalidInput: the text becomes too long.
    """
    prompts.check_name(name)
    if selection is None:
        raise InvalidSelection(f'Name the rows to show, for example --select "{prompts.SELECTIONS[kind]}".')
    with database.read() as connection:
        found = get_ready(connection, tenant_key, dataset)
        rows = _read_rows(connection, found, kind, selection)
    _check_references(rows, found.name)
    examples = [_example(row) for row in rows]
    head, tail = prompts.show([Example(example["dialogue"], example["summary"]) for example in examples])
    return NewPrompt(name, head, tail, tuple(examples), found.key)


def check_budget(new: NewPrompt, *, tokens: int, limit: int, model: str) -> None:
    """Make sure that a prompt without its dialogue leaves room for one: `tokens` are those of `model`.

    Raises:
        InvalidInput: it does not; the message says the figures.
    """
    if tokens < limit:
        return
    what = f"The {len(new.examples)} examples alone take" if new.examples else "The prompt without a dialogue takes"
    raise InvalidInput(
        f"{what} {tokens} tokens of {model}, and a prompt may have {limit}: no dialogue fits behind them. Show fewer or"
        " shorter rows, or raise --max-input-tokens here and for the jobs."
    )


def _read_rows(connection: Connection, dataset: Row[Any], kind: Kind, selection: str) -> list[Row[Any]]:
    """Return the rows that are shown, in the order of the dataset."""
    chosen = select_rows(selection, dataset.rows)
    if kind == "one-shot" and chosen.count != 1:
        raise InvalidSelection(
            f"one-shot shows one row, and '{selection[:80]}' chooses {chosen.count}. Or use --kind few-shot."
        )
    if chosen.count > MOST_EXAMPLES:
        raise InvalidSelection(f"A prompt shows at most {MOST_EXAMPLES} rows, and '{selection[:80]}' chooses {chosen.count}.")
    query = (
        select(dataset_rows, dialogues.c.digest, dialogues.c.text)
        .join(dialogues, dialogues.c.key == dataset_rows.c.dialogue_key)
        .where(dataset_rows.c.dataset_key == dataset.key, takes(connection, chosen, dataset_rows.c.row_number))
    )
    # A hundred dialogues may be hundreds of megabytes: they are read only when they can become a prompt.
    prompts.check_length(connection.scalar(query.with_only_columns(func.sum(dialogues.c.characters))) or 0)
    return list(connection.execute(query.order_by(dataset_rows.c.row_number)))


def _check_references(rows: list[Row[Any]], dataset: str) -> None:
    without = [row for row in rows if not any(text.strip() for text in row.references)]
    if not without:
        return
    named = ", ".join(f"{row.row_number} (id '{row.id[:40]}')" for row in without[:NAMED])
    more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
    raise InvalidDataset(
        f"An example needs a reference summary, and '{dataset}' has none in row {named}{more}. Select other rows, or map the"
        " column that holds them, for example --column references=summary."
    )


def _example(row: Row[Any]) -> dict[str, Any]:
    """Return what the table keeps of an example; of several references the first is shown."""
    return {
        "row": row.row_number,
        "id": row.id,
        "dialogue_key": row.dialogue_key,
        "dialogue_digest": row.digest,
        "dialogue": row.text,
        "summary": next(text for text in row.references if text.strip()),
    }
