"""From a request body to a spec."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from gistmill.errors import Detail, InvalidSpec
from gistmill.specs.evaluate import EvaluateSpec
from gistmill.specs.experiment import ExperimentSpec
from gistmill.specs.finetune import FinetuneSpec
from gistmill.specs.summarize import SummarizeSpec

AnySpec = SummarizeSpec | FinetuneSpec | EvaluateSpec | ExperimentSpec
T = TypeVar("T")


def _kind_of(body: Any) -> str:
    """A body without a kind asks for summaries, as all did before there were others."""
    kind = body.get("kind", "summarize") if isinstance(body, dict) else getattr(body, "kind", "summarize")
    return str(kind)


NO_SUCH_KIND = "there is no such kind of job; there are summarize, finetune, evaluate and experiment"
JobSpec = Annotated[
    Annotated[SummarizeSpec, Tag("summarize")]
    | Annotated[FinetuneSpec, Tag("finetune")]
    | Annotated[EvaluateSpec, Tag("evaluate")]
    | Annotated[ExperimentSpec, Tag("experiment")],
    Discriminator(_kind_of, custom_error_type="unknown_kind", custom_error_message=NO_SUCH_KIND),
]


def parse_spec(body: dict[str, Any]) -> SummarizeSpec:
    """Return the summarize spec that a request body holds.

    Raises:
        InvalidSpec: `details` name each field that does not fit, by JSON pointer.
    """
    return _parse(TypeAdapter(SummarizeSpec), body)


def parse_finetune_spec(body: dict[str, Any]) -> FinetuneSpec:
    """Return the finetune spec that a request body holds.

    Raises:
        InvalidSpec: `details` name each field that does not fit, by JSON pointer.
    """
    return _parse(TypeAdapter(FinetuneSpec), body)


def parse_evaluate_spec(body: dict[str, Any]) -> EvaluateSpec:
    """Return the evaluate spec that a request body holds.

    Raises:
        InvalidSpec: `details` name each field that does not fit, by JSON pointer.
    """
    return _parse(TypeAdapter(EvaluateSpec), body)


def parse_experiment_spec(body: dict[str, Any]) -> ExperimentSpec:
    """Return the experiment spec that a request body holds.

    Raises:
        InvalidSpec: `details` name each field that does not fit, by JSON pointer.
    """
    return _parse(TypeAdapter(ExperimentSpec), body)


def _parse(adapter: TypeAdapter[T], body: dict[str, Any]) -> T:
    try:
        return adapter.validate_python(body)
    except ValidationError as error:
        details = [
            Detail(
                problem["type"],
                problem["msg"].removeprefix("Value error, "),
                pointer="/" + "/".join(str(part) for part in problem["loc"]),
            )
            for problem in error.errors(include_url=False)
        ]
        first = details[0]
        raise InvalidSpec(f"The job cannot run as written: {first.pointer}: {first.message}.", details=details) from error
