"""Prompts as they stand, and what they make of a row."""

from __future__ import annotations

from sqlalchemy import and_, or_, select

from gistmill import prompts
from gistmill.db import datasets as dataset_table
from gistmill.db import prompts as prompt_table
from gistmill.db.session import Database
from gistmill.db.tables import dataset_rows, dialogues
from gistmill.db.tables import prompts as rows
from gistmill.errors import InvalidInput, InvalidSelection
from gistmill.views import Page, PromptView, RenderedPrompt


def get_prompt(database: Database, tenant_key: int, reference: str) -> PromptView:
    """Return the prompt that `name` or `name@version` means, built in or the user's.

    Raises:
        UnknownPrompt: there is none; the message names the nearest, or how to make one.
    """
    with database.read() as connection:
        return prompt_table.get_view(connection, tenant_key, reference)


def list_prompts(database: Database, tenant_key: int, *, limit: int = 50, after: str | None = None) -> Page[PromptView]:
    """Return a page of prompts that begins behind name@version `after`: the built-in ones, then the user's by name.

    Raises:
        InvalidInput: `after` is no name@version.
    """
    labels = [prompt.label for prompt in prompts.BUILT_IN.values()]
    query = prompt_table.select_prompts(tenant_key).order_by(rows.c.name, rows.c.version.desc())
    begin = 0
    if after in labels:
        begin = labels.index(after) + 1
    elif after is not None:
        name, version = _split(after)
        begin = len(labels)
        query = query.where(or_(rows.c.name > name, and_(rows.c.name == name, rows.c.version < version)))
    built_in = [prompt_table.view_of_built_in(prompt) for prompt in list(prompts.BUILT_IN.values())[begin:]]
    with database.read() as connection:
        added = [prompt_table.as_view(row) for row in connection.execute(query.limit(limit + 1))]
    found = built_in + added
    shown = found[:limit]
    has_more = len(found) > limit
    return Page(data=shown, has_more=has_more, next=f"{shown[-1].name}@{shown[-1].version}" if has_more else None)


def render_prompt(database: Database, tenant_key: int, reference: str, *, dataset: str, row: int) -> RenderedPrompt:
    """Return what a model reads for a row of a dataset.

    Raises:
        UnknownPrompt, UnknownDataset: there is no such prompt or dataset.
        InvalidSelection: the dataset has no such row.
    """
    with database.read() as connection:
        template = prompt_table.get(connection, tenant_key, reference)
        found = dataset_table.get(connection, tenant_key, dataset)
        query = select(dataset_rows.c.id, dialogues.c.text).join(dialogues, dialogues.c.key == dataset_rows.c.dialogue_key)
        of_row = (dataset_rows.c.dataset_key == found.key, dataset_rows.c.row_number == row)
        shown = connection.execute(query.where(*of_row)).one_or_none()
    if shown is None:
        held = f"has rows 0 to {found.rows - 1}" if found.rows else "is empty"
        raise InvalidSelection(f"There is no row {row}: the dataset '{found.name}' {held}.")
    return RenderedPrompt(prompt=template.label, row=row, id=shown.id, text=template.render(shown.text))


def _split(after: str) -> tuple[str, int]:
    name, _, version = after.rpartition("@")
    if not (version.isascii() and version.isdigit() and len(version) <= prompt_table.MOST_DIGITS):
        raise InvalidInput("The list goes on behind name@version: 'after' takes the `next` of the page before.")
    return name, int(version)
