"""The estimate of a summarize job: everything that submit does before it writes, and what SQL knows of the cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from math import ceil
from typing import Any

from sqlalchemy import Connection, Row, and_, func, select, text

from gistmill import estimate, plan
from gistmill.db import datasets
from gistmill.db import prompts as prompt_rows
from gistmill.db.bulk import is_among
from gistmill.db.jobs import takes
from gistmill.db.tables import dataset_dialogues, dataset_rows, dialogues, generations, recipes
from gistmill.errors import ModelUnreadable
from gistmill.estimate import CountTokens, Prompt
from gistmill.specs import SummarizeSpec, digest_of
from gistmill.submit.drafts import Draft, ResolvedModel
from gistmill.submit.summarizing import Planning, draft, find_speeds, find_writers
from gistmill.views import TRAINED_TOKENS, EstimateView

# Taken evenly over the ranks, which go by length: a sample of this size has nearly the mean and the quantiles of all.
MOST_COUNTED = 4_096
PAGE = 256

TUNED_LATER = "The model is not made yet: tokens and speed are those of the model that it is tuned from."
UNKNOWN_MODEL = "The model is not made yet, and what it is tuned from was removed: its tokens and its speed are unknown."

# Gives what counts a model's tokens, and the most that it reads at all, or None.
FindCounter = Callable[[ResolvedModel], tuple[CountTokens, int | None]]


def estimate_job(planning: Planning, spec: SummarizeSpec, find_counter: FindCounter) -> EstimateView:
    """Return what the job of this spec would do and take; nothing is written.

    Raises:
        UnknownDataset, UnknownModel, UnknownPrompt, UnknownJob, InvalidSelection, DatasetLoading, InvalidSpec: as at submit.
    """
    drafted = draft(planning, spec)
    limit_tokens, warnings = spec.max_input_tokens, []
    prompts: list[Prompt] = []
    model = drafted.model or drafted.base
    if drafted.model is None:
        warnings.append(TUNED_LATER if model is not None else UNKNOWN_MODEL)
    if model is not None:
        try:
            count_tokens, positions = find_counter(model)
        except ModelUnreadable as error:
            warnings.append(f"Tokens could not be counted: {error.message}")
        else:
            limit_tokens = min(limit_tokens, positions or limit_tokens)
            prompts = _count(planning, spec, drafted, count_tokens)
    return _view(planning, spec, drafted, prompts, limit_tokens=limit_tokens, warnings=warnings)


def _view(
    planning: Planning,
    spec: SummarizeSpec,
    drafted: Draft,
    prompts: Sequence[Prompt],
    *,
    limit_tokens: int,
    warnings: list[str],
) -> EstimateView:
    distinct, generation = drafted.distinct_dialogues, spec.generation
    with planning.database.read() as connection:
        dataset = datasets.get(connection, planning.tenant_key, spec.dataset)
        live = find_writers(connection, within_s=planning.live_within_s)
        stored = _count_stored(connection, planning.tenant_key, spec, drafted, dataset)
        speeds = find_speeds(connection, drafted.works, live)
    to_generate = (drafted.rows.count if generation.do_sample else distinct) - stored
    tokens_in = estimate.sum_up(prompts, distinct=distinct, limit_tokens=limit_tokens) if prompts else None
    cuts = spec.on_overflow == "truncate"
    if tokens_in is not None and tokens_in.over_limit_rows:
        what = "will be cut" if cuts else "will fail; raise --max-input-tokens or use --on-overflow truncate"
        warnings.append(f"{tokens_in.over_limit_rows:,} rows have prompts over {limit_tokens:,} tokens: they {what}.")
    if tokens_in is not None and tokens_in.over_trained_rows:
        warnings.append(
            f"{tokens_in.over_trained_rows:,} rows have prompts over {TRAINED_TOKENS} tokens,"
            " the length that T5 models were trained at."
        )
    return EstimateView(
        dataset=dataset.id,
        model=spec.model,
        prompt=spec.prompt,
        rows=drafted.rows.count,
        distinct=distinct,
        stored=stored,
        to_generate=to_generate,
        limit_tokens=limit_tokens,
        on_overflow=spec.on_overflow,
        tokens_in=tokens_in,
        chunks=len(drafted.ranges),
        live_workers=len(live),
        expected_s=estimate.expect(
            prompts,
            speeds,
            to_generate=to_generate,
            limit_tokens=limit_tokens,
            cuts=cuts,
            workers=min(len(live), len(drafted.ranges)),
        ),
        basis=estimate.explain(speeds, "" if drafted.model is None else drafted.model.digest),
        speeds=[estimate.view_of(speed) for speed in dict.fromkeys(speeds)],
        warnings=warnings,
    )


def _count(planning: Planning, spec: SummarizeSpec, drafted: Draft, count_tokens: CountTokens) -> list[Prompt]:
    """Count the prompts of the job's dialogues, or of a sample of them."""
    step = max(1, ceil(drafted.distinct_dialogues / MOST_COUNTED))
    with planning.database.read() as connection:
        dataset = datasets.get(connection, planning.tenant_key, spec.dataset)
        template = prompt_rows.get(connection, planning.tenant_key, spec.prompt)
        ranks = _sample(connection, dataset, drafted, step)
    counted: list[Prompt] = []
    # In a transaction of its own: the one above was told how to go through all rows.
    with planning.database.read() as connection:
        for start in range(0, len(ranks), PAGE):
            page = _load(connection, dataset, drafted, ranks[start : start + PAGE])
            tokens = count_tokens([template.render(row.text) for row in page])
            counted += [Prompt(number, row.rows) for number, row in zip(tokens, page, strict=True)]
    return counted


def _sample(connection: Connection, dataset: Row[Any], drafted: Draft, step: int) -> list[int]:
    """Return every `step`-th rank of the job's dialogues, from the middle of the first step on."""
    if drafted.rows.count == dataset.rows:
        return list(range(step // 2, dataset.dialogues, step))
    return list(islice(plan.selected_ranks(connection, dataset.key, drafted.rows), step // 2, None, step))


def _load(connection: Connection, dataset: Row[Any], drafted: Draft, ranks: Sequence[int]) -> Sequence[Row[Any]]:
    """Return the text of the dialogue of each of these ranks, and how many rows of the job have it."""
    query = (
        select(dataset_dialogues.c.rank, dialogues.c.text, func.count().label("rows"))
        .join(dialogues, dialogues.c.key == dataset_dialogues.c.dialogue_key)
        .join(
            dataset_rows,
            and_(
                dataset_rows.c.dataset_key == dataset_dialogues.c.dataset_key,
                dataset_rows.c.dialogue_key == dataset_dialogues.c.dialogue_key,
            ),
        )
        .where(
            dataset_dialogues.c.dataset_key == dataset.key,
            is_among(connection, dataset_dialogues.c.rank, ranks),
            takes(connection, drafted.rows, dataset_rows.c.row_number),
        )
        .group_by(dataset_dialogues.c.rank, dialogues.c.key)
    )
    return connection.execute(query).all()


def _count_stored(connection: Connection, tenant_key: int, spec: SummarizeSpec, drafted: Draft, dataset: Row[Any]) -> int:
    """Return how many of the summaries that the job needs exist: one for each dialogue, or for each row when it samples."""
    if drafted.recipe is None:
        return 0
    digest = digest_of(drafted.recipe)
    known = select(recipes.c.key).where(recipes.c.tenant_key == tenant_key, recipes.c.digest == digest)
    recipe_key = connection.execute(known).scalar_one_or_none()
    if recipe_key is None:
        return 0
    if connection.dialect.name == "postgresql":
        # As for the plan: one pass over millions of rows may take longer than a statement of a request may.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
    draw = dataset_rows.c.occurrence if spec.generation.do_sample else 0
    found = and_(
        generations.c.recipe_key == recipe_key,
        generations.c.dialogue_key == dataset_rows.c.dialogue_key,
        generations.c.draw == draw,
    )
    query = (
        select(func.count(func.distinct(generations.c.key)))
        .select_from(dataset_rows.join(generations, found))
        .where(dataset_rows.c.dataset_key == dataset.key, takes(connection, drafted.rows, dataset_rows.c.row_number))
    )
    if spec.on_overflow != "truncate":
        query = query.where(generations.c.truncated.is_(False))
    return connection.execute(query).scalar_one()
