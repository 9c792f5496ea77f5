"""What an experiment was asked for, and how its steps and trainings went, as lists and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gistmill.comparison.figures import duration, share, size
from gistmill.comparison.markdown import escape
from gistmill.comparison.tables import UNKNOWN, Table
from gistmill.report.material import Material, Tuning
from gistmill.specs import ExperimentSpec, GenerationParameters
from gistmill.views import ExperimentView, StepView, SystemView

COLUMNS = (
    "tuning", "model", "trainable parameters", "parameters", "steps", "epochs", "last training loss", "last validation loss",
    "training time", "peak memory", "artifact",
)  # fmt: skip


# Of canonical parameters these are there only where they count.
SAID = ("max_new_tokens", "temperature")


def list_asked(experiment: ExperimentView) -> Iterator[str]:
    """Yield what the experiment is about, a line each, and a blank one."""
    spec = experiment.spec
    yield f"- base model: {escape(experiment.model)}"
    yield f"- trained on: {escape(experiment.dataset)}, {_rows(spec.get('select'))}"
    yield f"- tested on: {escape(experiment.test)}, {_rows(spec.get('test_select'))}"
    yield f"- prompts and generation parameters are compared on the first {spec.get('sample')} of the test rows"
    yield f"- shown by one-shot: row {escape(str(spec.get('one_shot')))}; by few-shot: rows {escape(str(spec.get('few_shot')))}"
    yield f"- prompt of the trainings and of the comparison of the models: {escape(str(spec.get('prompt')))}"
    yield f"- generation: {_parameters(ExperimentSpec.model_validate(spec).generation)}"
    for method in ("full", "lora"):
        if spec.get(method):
            yield f"- {method} tuning, unlike the defaults: {_fields(spec[method])}"
    yield ""


def tabulate_parameters(experiment: ExperimentView) -> Table:
    """Return what each name in the comparison of generation parameters stands for."""
    swept = ExperimentSpec.model_validate(experiment.spec).swept
    rows = tuple((name, _parameters(parameters)) for name, parameters in swept.items())
    return Table("What was compared", ("name", "parameters"), rows, names=2)


def tabulate_tunings(material: Material) -> Table:
    """Return a row per training: what it trained, how long, at what cost, and how it ended."""
    models = material.comparisons.get("models")
    systems = {} if models is None else {system.name: system for system in models.systems}
    rows = tuple(_tuning(tuning, systems.get(tuning.name)) for tuning in material.tunings)
    return Table("What the trainings did", COLUMNS, rows, names=2)


def tabulate_steps(experiment: ExperimentView) -> Table:
    """Return a row per step with its job and how long it took."""
    rows = tuple((str(step.number), step.name, step.kind, step.job, step.state, _took(step)) for step in experiment.steps)
    return Table(f"Steps of {experiment.id}", ("step", "name", "kind", "job", "state", "time"), rows, names=5)


def _tuning(tuning: Tuning, system: SystemView | None) -> tuple[str, ...]:
    job, training = tuning.job, tuning.job.training or {}
    train, evaluation = tuning.last.get("train"), tuning.last.get("eval")
    cost = None if system is None else system.cost
    total = training.get("total_parameters")
    cells = (
        share(training.get("trainable_parameters"), total),
        "" if total is None else f"{total:,}",
        "" if train is None else f"{train.step:,}",
        "" if train is None else f"{train.epoch:.2f}",
        "" if train is None or train.loss is None else f"{train.loss:.4f}",
        "" if evaluation is None or evaluation.loss is None else f"{evaluation.loss:.4f}",
        "" if cost is None else duration(cost.training_s),
        "" if cost is None else size(cost.memory_bytes),
        "" if cost is None else size(cost.artifact_bytes),
    )
    return tuning.name, job.produced or job.state, *(cell or UNKNOWN for cell in cells)


def _took(step: StepView) -> str:
    if step.started_at is None or step.finished_at is None:
        return UNKNOWN
    return duration((step.finished_at - step.started_at).total_seconds())


def _rows(selection: Any) -> str:
    return "all rows" if selection is None else f"rows {escape(str(selection)[:200])}"


def _parameters(parameters: GenerationParameters) -> str:
    return _fields(parameters.canonical())


def _fields(fields: Mapping[str, Any]) -> str:
    """Return fields as NAME=VALUE, without those that are as usual."""
    usual = GenerationParameters.model_fields
    chosen = {
        name: value for name, value in fields.items() if name in SAID or name not in usual or value != usual[name].default
    }
    return ", ".join(f"{name}={value}" for name, value in chosen.items())
