"""A finetune job before it is written: one chunk, over data that has references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Text, cast, func, select

from gistmill.db import prompts
from gistmill.db.jobs import JobRows, takes
from gistmill.db.session import Database
from gistmill.db.tables import dataset_rows, models
from gistmill.errors import InvalidDataset, InvalidSpec, NameTaken, UnsupportedModel
from gistmill.plan import Range
from gistmill.specs import FinetuneSpec
from gistmill.submit.drafts import Draft, ResolvedModel, get_ready, select_rows

WHOLE = (Range(0, -1, 0),)


@dataclass(frozen=True)
class _Part:
    """Rows of a dataset to train or validate on, and how many of them have a reference."""

    name: str
    dataset_id: str
    dataset_key: int
    rows: JobRows
    usable: int


def draft(database: Database, tenant_key: int, spec: FinetuneSpec, resolve_model: Callable[[str], ResolvedModel]) -> Draft:
    """Return the job of this spec with the name that its model will have. The job has no items: its result is a model.

    Raises:
        UnknownDataset, UnknownModel, UnknownPrompt, InvalidSelection, DatasetLoading: as for every job.
        InvalidDataset: no row has a reference, or the part that is kept back leaves nothing.
        NameTaken: a model that was not trained here has this name.
        UnsupportedModel: the base is itself an adapter.
    """
    with database.read() as connection:
        prompt = prompts.get(connection, tenant_key, spec.prompt)
    model = resolve_model(spec.model)
    if getattr(model, "adapter_digest", None) is not None:
        raise UnsupportedModel(
            f"'{spec.model}' is an adapter on another model, and a base must be a whole one. Tune its base, or export it with"
            " --merge and add that as a model."
        )
    with database.read() as connection:
        training = _part(connection, tenant_key, spec.dataset, spec.select)
        validation = None
        if isinstance(spec.validation, str):
            validation = _part(connection, tenant_key, spec.validation, None)
        name = spec.name or f"{_base_name(connection, model.key)}-{spec.method}"[:100]
        _check_name(connection, tenant_key, name)
        warnings = (*_warn_of_few(spec, training), *_warn_of_overlap(connection, training, validation))
    # A name may mean a newer prompt or dataset by the time that a worker looks.
    frozen = {"name": name, "prompt": prompt.reference}
    if validation is not None:
        frozen["validation"] = validation.dataset_id
    return Draft(
        spec=spec.model_copy(update=frozen),
        dataset_key=training.dataset_key,
        model=model,
        rows=JobRows(0, 0),
        ranges=WHOLE,
        warnings=warnings,
    )


def _part(connection: Connection, tenant_key: int, reference: str, selection: str | None) -> _Part:
    dataset = get_ready(connection, tenant_key, reference)
    rows = select_rows(selection, dataset.rows)
    usable = connection.scalar(
        select(func.count()).where(
            dataset_rows.c.dataset_key == dataset.key,
            takes(connection, rows, dataset_rows.c.row_number),
            cast(dataset_rows.c.references, Text) != "[]",
        )
    )
    if not usable:
        raise InvalidDataset(
            f"None of the {rows.count} rows of '{reference}' has a reference summary, and training needs them. Map the column"
            " that holds them, for example --column references=summary."
        )
    return _Part(dataset.name, dataset.id, dataset.key, rows, usable)


def _check_name(connection: Connection, tenant_key: int, name: str) -> None:
    if ".." in name:
        raise InvalidSpec(f"The job cannot run as written: /name: '{name}' holds '..', which names may not.")
    named = select(models.c.source).where(models.c.tenant_key == tenant_key, models.c.name == name)
    taken = connection.execute(named.where(models.c.job_key.is_(None)).limit(1)).scalar_one_or_none()
    if taken is not None:
        raise NameTaken(f"There is a model '{name}' that no job has made. Choose another name with --name.")


def _base_name(connection: Connection, model_key: int) -> str:
    return str(connection.execute(select(models.c.name).where(models.c.key == model_key)).scalar_one())


def _warn_of_few(spec: FinetuneSpec, training: _Part) -> list[str]:
    warnings = []
    if training.usable < training.rows.count:
        left = training.rows.count - training.usable
        warnings.append(f"{left} of {training.rows.count} rows have no reference and are left out.")
    if isinstance(spec.batch_size, int) and training.usable < spec.batch_size:
        warnings.append(
            f"The {training.usable} rows are fewer than one batch of {spec.batch_size}: every step sees all of them."
        )
    return warnings


def _warn_of_overlap(connection: Connection, training: _Part, validation: _Part | None) -> list[str]:
    """Equal dialogues of a tenant are stored once, so that equal keys mean equal digests."""
    if validation is None:
        return []
    trained = select(dataset_rows.c.dialogue_key).where(
        dataset_rows.c.dataset_key == training.dataset_key, takes(connection, training.rows, dataset_rows.c.row_number)
    )
    shared = connection.scalar(
        select(func.count(dataset_rows.c.dialogue_key.distinct())).where(
            dataset_rows.c.dataset_key == validation.dataset_key, dataset_rows.c.dialogue_key.in_(trained)
        )
    )
    if not shared:
        return []
    return [f"{shared} dialogues of the validation data '{validation.name}' are also trained on: its scores will flatter."]
