"""Prompts of users in SQL. A version never changes: recipes carry its digest, and specs its name@version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select
from sqlalchemy.exc import IntegrityError

from gistmill import prompts
from gistmill.db.bulk import is_among
from gistmill.db.clock import as_datetime, db_now
from gistmill.db.session import Database
from gistmill.db.tables import datasets, dialogues
from gistmill.db.tables import prompts as rows
from gistmill.errors import NameTaken, UnknownPrompt
from gistmill.prompts import PromptTemplate
from gistmill.views import PromptView

ATTEMPTS = 10
MOST_NAMES = 1_000
# No version has more digits.
MOST_DIGITS = 9
# What users are shown of an example; the rest is for the machine.
SHOWN = ("row", "id", "dialogue", "summary")


@dataclass(frozen=True)
class NewPrompt:
    """A text that was checked, to become a version of its name. `examples` are JSON objects, as the table describes them."""

    name: str
    head: str
    tail: str
    examples: tuple[dict[str, Any], ...] = ()
    dataset_key: int | None = None

    @property
    def digest(self) -> str:
        """The sha256 of the text."""
        return prompts.digest_of(self.head, self.tail)


def get(connection: Connection, tenant_key: int, reference: str) -> PromptTemplate:
    """Return the prompt that `name` or `name@version` means, built in or the user's; a name alone means its newest version.

    Raises:
        UnknownPrompt: there is none; the message names the nearest, or how to make one.
    """
    return prompts.find_built_in(reference) or as_template(get_row(connection, tenant_key, reference))


def get_view(connection: Connection, tenant_key: int, reference: str) -> PromptView:
    """Return what users see of the prompt that `get` returns.

    Raises:
        UnknownPrompt: there is none.
    """
    built_in = prompts.find_built_in(reference)
    return view_of_built_in(built_in) if built_in else as_view(get_row(connection, tenant_key, reference))


def example_dialogues(connection: Connection, tenant_key: int, reference: str) -> frozenset[int]:
    """Return the keys of the dialogues that a prompt shows with their summaries, in whatever dataset they stand.

    Raises:
        UnknownPrompt: there is no such prompt.
    """
    if prompts.find_built_in(reference):
        return frozenset()
    digests = [example["dialogue_digest"] for example in get_row(connection, tenant_key, reference).examples]
    if not digests:
        return frozenset()
    is_shown = is_among(connection, dialogues.c.digest, digests)
    return frozenset(connection.scalars(select(dialogues.c.key).where(dialogues.c.tenant_key == tenant_key, is_shown)))


def get_row(connection: Connection, tenant_key: int, reference: str) -> Row[Any]:
    """Return the row of a user's prompt, with the id of the dataset that its examples come from as `dataset_id`.

    Raises:
        UnknownPrompt: there is none; the message names the nearest, or how to make one.
    """
    name, at, version = reference.partition("@")
    query = select_prompts(tenant_key).where(rows.c.name == name).order_by(rows.c.version.desc()).limit(1)
    newest = connection.execute(query).one_or_none()
    if newest is None:
        raise prompts.unknown(reference, _list_names(connection, tenant_key))
    if not at:
        return newest
    is_number = version.isascii() and version.isdigit() and len(version) <= MOST_DIGITS
    found = connection.execute(query.where(rows.c.version == int(version))).one_or_none() if is_number else None
    if found is None:
        raise UnknownPrompt(
            f"There is no prompt '{reference[: prompts.SHOWN]}'; the newest version is {name}@{newest.version}."
        )
    return found


def select_prompts(tenant_key: int) -> Select[Any]:
    """Return the SELECT of a tenant's prompts; each row also has `dataset_id`."""
    joined = rows.outerjoin(datasets, datasets.c.key == rows.c.dataset_key)
    return select(rows, datasets.c.id.label("dataset_id")).select_from(joined).where(rows.c.tenant_key == tenant_key)


def add(database: Database, tenant_key: int, new: NewPrompt) -> tuple[PromptView, bool]:
    """Give the text the next version of its name, and say whether it is new: an equal one keeps its version.

    Raises:
        NameTaken: a built-in prompt has this name.
    """
    if new.name in prompts.BUILT_IN:
        raise NameTaken(f"'{new.name}' is a built-in prompt, which never changes: choose another name.")
    for _ in range(ATTEMPTS):
        try:
            return database.transact(lambda connection: _add(connection, tenant_key, new))
        except IntegrityError:
            # Another request took the next version; the one after is free.
            continue
    raise AssertionError(f"the next version of {new.name} was taken {ATTEMPTS} times")


def as_template(row: Row[Any]) -> PromptTemplate:
    """Return the prompt of a row."""
    return PromptTemplate(row.name, row.version, row.head, row.tail)


def as_view(row: Row[Any]) -> PromptView:
    """Return what users read of a row of `select_prompts`."""
    return PromptView(
        name=row.name,
        version=row.version,
        digest=row.digest,
        template=as_template(row).template,
        examples=[{field: example[field] for field in SHOWN} for example in row.examples],
        dataset=row.dataset_id,
        created_at=as_datetime(row.created_at),
    )


def view_of_built_in(prompt: PromptTemplate) -> PromptView:
    """Return what users read of a built-in prompt."""
    return PromptView(
        name=prompt.name, version=prompt.version, digest=prompt.digest, template=prompt.template, is_built_in=True
    )


def _add(connection: Connection, tenant_key: int, new: NewPrompt) -> tuple[PromptView, bool]:
    # The last version is read before an equal text is looked for. Whoever commits one in between takes the version that this
    # request would take, and lets it try again; the other way round, both would be written.
    last = connection.scalar(select(func.max(rows.c.version)).where(rows.c.tenant_key == tenant_key, rows.c.name == new.name))
    named = select_prompts(tenant_key).where(rows.c.name == new.name)
    for row in connection.execute(named.where(rows.c.digest == new.digest).order_by(rows.c.version)):
        # The same text written by hand shows no rows that scoring must leave out.
        if _shown_in(row.examples) == _shown_in(new.examples):
            return as_view(row), False
    version = (last or 0) + 1
    values = {"name": new.name, "version": version, "digest": new.digest, "head": new.head, "tail": new.tail}
    connection.execute(
        insert(rows).values(
            **values,
            tenant_key=tenant_key,
            examples=list(new.examples),
            dataset_key=new.dataset_key,
            created_at=db_now(),
        )
    )
    return as_view(connection.execute(named.where(rows.c.version == version)).one()), True


def _shown_in(examples: Any) -> list[str]:
    return [example["dialogue_digest"] for example in examples]


def _list_names(connection: Connection, tenant_key: int) -> list[str]:
    query = select(rows.c.name).where(rows.c.tenant_key == tenant_key).distinct().limit(MOST_NAMES)
    return list(connection.scalars(query))
