"""The command that asks for the same experiment again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from gistmill.specs import ExperimentSpec, GenerationParameters
from gistmill.views import ExperimentView

# Fields with an option of the same name. The others are written by hand below.
PLAIN = (
    "select", "test", "test_select", "sample", "one_shot", "few_shot", "prompt", "max_input_tokens", "on_overflow", "precision",
    "references", "resamples", "seed", "priority",
)  # fmt: skip


def command(experiment: ExperimentView) -> str:
    """Return it, with the very rows and options that are not as usual; a server that has the data takes it as it is."""
    spec = ExperimentSpec.model_validate(experiment.spec)
    options = [part for name, value in _options(spec) for part in (f"--{name.replace('_', '-')}", value)]
    return shlex.join(["gistmill", "experiment", spec.name, *options])


def _options(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    yield "base", spec.model
    yield "data", spec.dataset
    for name in PLAIN:
        value = getattr(spec, name)
        if value != ExperimentSpec.model_fields[name].default:
            yield name, str(value)
    if spec.metrics != ExperimentSpec.model_fields["metrics"].default:
        yield "metrics", ",".join(spec.metrics)
    yield from (("generation", text) for text in _pairs(_changed(spec.generation)))
    for name, parameters in (spec.sweep or {}).items():
        yield "sweep", ",".join([f"name={name}", *_pairs(_changed(parameters))])
    if spec.sweep == {}:
        yield "sweep", "none"
    for method in ("full", "lora"):
        yield from ((method, text) for text in _pairs(spec.training(method)))
    yield from (("label", text) for text in _pairs(spec.labels))


def _changed(parameters: GenerationParameters) -> dict[str, Any]:
    return parameters.model_dump(exclude_defaults=True)


def _pairs(fields: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={'+'.join(map(str, value)) if isinstance(value, list | tuple) else value}" for name, value in fields.items()
    ]
