"""What `name`, `name@2`, a hub id, a digest, an alias and `base+adapter@1` mean: a model version, and its base."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, Select, or_, select

from gistmill.db.tables import model_aliases, models
from gistmill.errors import InvalidInput, UnknownModel, UnsupportedModel

HUB = "hub:"
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)")
ADAPTER = "adapter"
# Versions of one name among which the base of an adapter, or the adapter of a base, is looked for.
MOST_VERSIONS = 200


class Found(NamedTuple):
    """The rows of a reference: what it names, and the whole model that runs: the same row unless it names an adapter."""

    named: Row[Any]
    base: Row[Any]


def get(connection: Connection, tenant_key: int, reference: str) -> Found:
    """Return what a reference means; a name without a version means its newest, a removed version nothing.

    A hub id means the model that was imported from there, else the one called like its last part. An adapter alone stands on
    its own base. In `base+adapter` a part without a version means the newest that fits the other part.

    Raises:
        UnknownModel: there is none; the message names the nearest and how to add one.
        InvalidInput: the adapter was made for another base.
        UnsupportedModel: one part is a model where an adapter belongs, or the other way round.
    """
    first, plus, second = reference.partition("+")
    if plus:
        return _get_pair(connection, tenant_key, first, second)
    rows = _list_meant(connection, tenant_key, first, most=1)
    if not rows:
        raise unknown(connection, tenant_key, first)
    return Found(rows[0], base_of(connection, rows[0]))


def base_of(connection: Connection, row: Row[Any]) -> Row[Any]:
    """Return the whole model that this version runs on: an adapter's base, else the row itself.

    Raises:
        UnknownModel: the base is not there any more.
    """
    if row.kind != ADAPTER:
        return row
    query = select(models).where(
        models.c.tenant_key == row.tenant_key, models.c.digest == row.base_digest, models.c.kind != ADAPTER
    )
    # Several names may mean the same files; one that was not removed goes first.
    base = connection.execute(query.order_by(models.c.removed_at.is_not(None), models.c.key).limit(1)).one_or_none()
    if base is None:
        raise UnknownModel(f"The base of {label(row)}, the model of digest {row.base_digest}, is not here. Add it first.")
    return base


def label(row: Row[*tuple[Any, ...]]) -> str:
    """Return name@version."""
    return f"{row.name}@{row.version}"


def unknown(connection: Connection, tenant_key: int, reference: str) -> UnknownModel:
    """Return the error that names the nearest models and how to add one."""
    query = select(models.c.name).where(models.c.tenant_key == tenant_key, models.c.removed_at.is_(None)).distinct()
    names = connection.scalars(query).all()
    near = difflib.get_close_matches(reference.rpartition("/")[2], names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    known = f" There are: {', '.join(sorted(names)[:20])}." if names else ""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", reference.partition("@")[0].rpartition("/")[2]).strip(".-_") or "NAME"
    return UnknownModel(
        f"There is no model '{reference}'.{hint}{known} Add one with: gistmill models add DIR --name {name}"
        " (or try the built-in one: --model gist-tiny)"
    )


def _get_pair(connection: Connection, tenant_key: int, first: str, second: str) -> Found:
    bases = _list_meant(connection, tenant_key, first, most=MOST_VERSIONS)
    adapters = _list_meant(connection, tenant_key, second, most=MOST_VERSIONS)
    for part, rows in ((first, bases), (second, adapters)):
        if not rows:
            raise unknown(connection, tenant_key, part)
    if bases[0].kind == ADAPTER:
        raise UnsupportedModel(
            f"'{first}' is itself an adapter, and a base must be a whole model. Write '{second}' behind its base."
        )
    if adapters[0].kind != ADAPTER:
        raise UnsupportedModel(f"'{second}' is a whole model and no adapter. Write --model {second}.")
    by_digest = {row.digest: row for row in reversed(bases)}
    for adapter in adapters:
        if adapter.base_digest in by_digest:
            return Found(adapter, by_digest[adapter.base_digest])
    own = label(base_of(connection, adapters[0]))
    raise InvalidInput(
        f"The adapter {label(adapters[0])} was made for {own}, not for {label(bases[0])}. Write {own}+{label(adapters[0])}."
    )


def _list_meant(connection: Connection, tenant_key: int, part: str, *, most: int) -> Sequence[Row[Any]]:
    """Return the versions that a part of a reference may mean, newest first."""
    name, at, version = part.partition("@")
    is_version: list[ColumnElement[bool]] = []
    if at:
        if not version.isascii() or not version.isdigit() or len(version) > 9:
            return []
        is_version = [models.c.version == int(version)]
    is_exact = or_(models.c.name == name, models.c.source == HUB + name, models.c.digest == name)
    rows = connection.execute(_newest(tenant_key, most, is_exact, *is_version)).all()
    hub_id = HUB_ID.fullmatch(name)
    if not rows and hub_id is not None:
        rows = connection.execute(_newest(tenant_key, most, models.c.name == hub_id["name"], *is_version)).all()
    if not rows and not at:
        meant = select(model_aliases.c.model_key).where(model_aliases.c.tenant_key == tenant_key, model_aliases.c.alias == name)
        rows = connection.execute(_newest(tenant_key, 1, models.c.key == meant.scalar_subquery())).all()
    return rows


def _newest(tenant_key: int, most: int, *conditions: ColumnElement[bool]) -> Select[Any]:
    query = select(models).where(models.c.tenant_key == tenant_key, models.c.removed_at.is_(None), *conditions)
    return query.order_by(models.c.version.desc(), models.c.key.desc()).limit(most)
