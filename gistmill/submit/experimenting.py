"""An experiment before it is written: prompts and generation parameters compared, two trainings, and the models compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, select

from gistmill.db import evaluations, experiments, references
from gistmill.db import prompts as prompt_rows
from gistmill.db.experiments import Step
from gistmill.db.ids import make_id
from gistmill.db.jobs import JobRows
from gistmill.db.prompts import NewPrompt
from gistmill.db.tables import models
from gistmill.specs import EvaluateSpec, ExperimentSpec, FinetuneSpec, SystemSpec
from gistmill.specs.evaluate import OF_A_JOB
from gistmill.specs.experiment import COMPARISONS, TUNINGS
from gistmill.specs.finetune import Method
from gistmill.submit import evaluating, finetuning
from gistmill.submit.drafts import Draft, ResolvedModel
from gistmill.submit.parts import Parts, find_parts
from gistmill.submit.prompts import draft_examples
from gistmill.submit.summarizing import Planning

# The prompts with examples are versions of these names, so that a user's own `one-shot` keeps its meaning.
SHOTS = {"one-shot": "notebook-one-shot", "few-shot": "notebook-few-shot"}
ORIGINAL = "original"


@dataclass(frozen=True)
class _Group:
    """An evaluation of the graph: what its jobs and itself are called among the steps."""

    prefix: str
    name: str
    draft: Draft


def draft(planning: Planning, spec: ExperimentSpec) -> Draft:
    """Return the experiment with every job that it is made of. It completes with them, and has no work of its own.

    The prompts that show examples are written as versions once everything else is found right; equal ones are kept once.

    Raises:
        UnknownDataset, UnknownModel, UnknownPrompt, InvalidSelection, DatasetLoading: nothing can be planned.
        InvalidDataset: rows have no references, there are too few, or all that is tested on is also trained on.
        InvalidInput: the examples of a prompt leave no room for a dialogue.
        InvalidSpec: the sample is larger than the test part, or training and test share rows.
        NameTaken, UnsupportedModel: as for a finetune job.
    """
    with planning.database.read() as connection:
        prompt = prompt_rows.get(connection, planning.tenant_key, spec.prompt)
        parts = find_parts(connection, planning.tenant_key, spec)
    base = planning.resolve_model(spec.model)
    spec = spec.model_copy(update={"prompt": prompt.reference, "model": _reference(planning, base, spec.model)})
    tunings = {method: _draft_tuning(planning, spec, parts, method) for method in TUNINGS}
    shots = {name: _draft_shots(planning, name, parts) for name in SHOTS}
    for new in shots.values():
        if planning.check_prompt is not None:
            planning.check_prompt(new, spec.model, spec.max_input_tokens)
    compared = evaluating.draft(planning, _compare_models(spec, parts, tunings))
    groups = []
    if spec.swept:
        swept = evaluating.draft(planning, _compare_generation(spec, parts))
        groups.append(_Group("generation", COMPARISONS["generation"], swept))
    # Only now is anything written. Should the rest fail, an unused version of a prompt is left, which the next try takes.
    shown = {name: _add_prompt(planning, new) for name, new in shots.items()}
    prompted = evaluating.draft(planning, _compare_prompts(spec, parts, shown))
    groups = [_Group("prompt", COMPARISONS["prompts"], prompted), *groups, _Group("model", COMPARISONS["models"], compared)]
    return _assemble(spec, parts, base, groups, tunings)


def _assemble(
    spec: ExperimentSpec, parts: Parts, base: ResolvedModel, groups: Sequence[_Group], tunings: dict[Method, Draft]
) -> Draft:
    def record(connection: Connection, job_key: int, keys: Sequence[int]) -> None:
        compared, tuned = keys[: len(groups)], keys[len(groups) :]
        steps: list[Step] = []
        for group, key in zip(groups, compared, strict=True):
            if group.name == COMPARISONS["models"]:
                steps += [Step(TUNINGS[method], tuning) for method, tuning in zip(tunings, tuned, strict=True)]
            steps += _list_steps(connection, group, key)
        experiments.add_steps(connection, job_key, steps)

    # Both trainings say the same of the same rows.
    said = dict.fromkeys(warning for tuning in tunings.values() for warning in tuning.warnings)
    return Draft(
        spec=parts.freeze(spec),
        dataset_key=parts.training.dataset.key,
        model=base,
        rows=JobRows(0, 0),
        ranges=(),
        warnings=(*parts.warnings, *said),
        # Jobs are worked on in the order in which they are written: what takes seconds comes before what takes hours.
        before=(*(group.draft for group in groups), *tunings.values()),
        record=record,
    )


def _list_steps(connection: Connection, group: _Group, evaluation_key: int) -> list[Step]:
    systems = evaluations.list_systems(connection, evaluation_key)
    made = [Step(f"{group.prefix}: {system.name}", system.summaries_key) for system in systems if system.summaries_key]
    return [*made, Step(group.name, evaluation_key)]


def _reference(planning: Planning, base: ResolvedModel, asked: str) -> str:
    """Return what means this version for ever: the jobs run at different times."""
    with planning.database.read() as connection:
        row = connection.execute(select(models.c.name, models.c.version).where(models.c.key == base.key)).one()
    return references.label(row) if getattr(base, "adapter_digest", None) is None else asked


def _draft_tuning(planning: Planning, spec: ExperimentSpec, parts: Parts, method: Method) -> Draft:
    """Return the finetune job of this method, under an id that the other jobs can already name."""
    wanted = FinetuneSpec(
        dataset=parts.training.dataset.id,
        select=parts.training.select,
        model=spec.model,
        method=method,
        prompt=spec.prompt,
        max_input_tokens=spec.max_input_tokens,
        priority=spec.priority,
        labels=spec.labels,
        **spec.training(method),
    )
    made = finetuning.draft(planning.database, planning.tenant_key, wanted, planning.resolve_model)
    made = replace(made, id=make_id("job"))
    planning.makers[f"{OF_A_JOB}{made.id}"] = made
    return made


def _draft_shots(planning: Planning, name: str, parts: Parts) -> NewPrompt:
    is_one = name == "one-shot"
    return draft_examples(
        planning.database,
        planning.tenant_key,
        SHOTS[name],
        kind="one-shot" if is_one else "few-shot",
        dataset=parts.training.dataset.id,
        selection=parts.one_shot if is_one else parts.few_shot,
    )


def _add_prompt(planning: Planning, new: NewPrompt) -> str:
    view, _ = prompt_rows.add(planning.database, planning.tenant_key, new)
    return f"{view.name}@{view.version}"


def _compare_prompts(spec: ExperimentSpec, parts: Parts, shown: dict[str, str]) -> EvaluateSpec:
    plain = {name: name for name in ("none", "instruction", spec.prompt)}
    systems = [SystemSpec(name=name, model=spec.model, prompt=prompt) for name, prompt in (plain | shown).items()]
    return _evaluate(spec, parts, parts.sample, systems)


def _compare_generation(spec: ExperimentSpec, parts: Parts) -> EvaluateSpec:
    systems = [SystemSpec(name=name, model=spec.model, generation=swept) for name, swept in spec.swept.items()]
    return _evaluate(spec, parts, parts.sample, systems)


def _compare_models(spec: ExperimentSpec, parts: Parts, tunings: dict[Method, Draft]) -> EvaluateSpec:
    tuned = [SystemSpec(name=method, model=f"{OF_A_JOB}{tuning.id}") for method, tuning in tunings.items()]
    return _evaluate(spec, parts, parts.test.select, [SystemSpec(name=ORIGINAL, model=spec.model), *tuned])


def _evaluate(spec: ExperimentSpec, parts: Parts, rows: str | None, systems: Sequence[SystemSpec]) -> EvaluateSpec:
    shared: dict[str, Any] = spec.model_dump(
        include={
            "prompt", "generation", "max_input_tokens", "on_overflow", "precision", "metrics", "references", "resamples",
            "seed", "priority", "labels",
        }
    )  # fmt: skip
    return EvaluateSpec(dataset=parts.test.dataset.id, select=rows, models=tuple(systems), **shared)
