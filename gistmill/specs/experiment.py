"""What an experiment asks for: prompts, generation parameters, full tuning, LoRA and the comparison, as one graph of jobs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gistmill.settings import DEFAULT_MODEL
from gistmill.specs.evaluate import METRIC_NAME, SYSTEM_NAME, ReferenceRule
from gistmill.specs.finetune import FinetuneSpec, Method
from gistmill.specs.generation import (
    LARGEST_PRIORITY,
    PRECISION_HELP,
    GenerationParameters,
    Overflow,
    Precision,
    check_precision,
)

# What the steps are called that a reader looks for by name.
TUNINGS: dict[Method, str] = {"full": "full tuning", "lora": "LoRA tuning"}
COMPARISONS = {
    "prompts": "comparison of the prompts",
    "generation": "comparison of the generation parameters",
    "models": "comparison of the models",
}
MOST_SWEPT = 24
# What the experiment itself decides for both trainings.
DECIDED = ("kind", "dataset", "select", "model", "method", "prompt", "max_input_tokens", "priority", "labels")
SHORT, MEDIUM = 10, 50
TEMPERATURES = (0.1, 0.5, 1.0)
BEAMS = 4


class ExperimentSpec(BaseModel):
    """Compare prompts and generation parameters on a sample, tune a model fully and with LoRA, and compare all three."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["experiment"] = "experiment"
    name: Literal["notebook"] = "notebook"
    model: str = Field(DEFAULT_MODEL, min_length=1, max_length=300, description="The base model.")
    dataset: str = Field(min_length=1, max_length=300, description="A dataset's id or name: dialogues with references.")
    select: str | None = Field(None, max_length=1_000_000, description="Rows to take: [0:10], [::100] or [10,20,30].")
    test: str | None = Field(
        None, min_length=1, max_length=300, description="A dataset to test on; by default the last tenth of the rows is kept."
    )
    test_select: str | None = Field(None, max_length=1_000_000, description="Rows of the test dataset to take.")
    sample: int | None = Field(
        None, ge=1, le=100_000, description="First rows of the test part for prompts and generation parameters; by default 50."
    )
    one_shot: str | None = Field(None, max_length=1_000, description="The training row that one-shot shows, such as [40].")
    few_shot: str | None = Field(None, max_length=10_000, description="Those that few-shot shows, such as [40,80,120].")
    prompt: str = Field("instruction", min_length=1, max_length=100, description="What is tuned and compared with.")
    generation: GenerationParameters = GenerationParameters()
    sweep: dict[str, GenerationParameters] | None = Field(
        None, max_length=MOST_SWEPT, description="Generation parameters to compare, by name; {} leaves them out."
    )
    full: dict[str, Any] = Field(default_factory=dict, max_length=32, description="Full tuning: fields of a finetune job.")
    lora: dict[str, Any] = Field(default_factory=dict, max_length=32, description="LoRA: fields of a finetune job.")
    max_input_tokens: int = Field(2048, ge=1, le=1_000_000, description="Most tokens of a prompt, special tokens included.")
    on_overflow: Overflow = Field("fail", description="What happens to a longer prompt.")
    precision: Precision = Field("native", description=PRECISION_HELP)
    metrics: tuple[str, ...] = Field(("rouge",), min_length=1, max_length=16)
    references: ReferenceRule = Field("max", description="Several references of a case: the best, the mean, or each alone.")
    resamples: int = Field(5_000, ge=100, le=1_000_000, description="Of the bootstrap and of the randomization test.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of bootstrap and test; trainings have their own.")
    priority: int = Field(0, ge=-LARGEST_PRIORITY, le=LARGEST_PRIORITY, description="Higher runs first.")
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "rouge" not in value or len(set(value)) < len(value) or not all(map(METRIC_NAME.fullmatch, value)):
            raise ValueError("name each metric once, rouge among them")
        return value

    @field_validator("sweep")
    @classmethod
    def _check_sweep(cls, value: dict[str, GenerationParameters] | None) -> dict[str, GenerationParameters] | None:
        wrong = next((name for name in value or () if not SYSTEM_NAME.fullmatch(name)), None)
        if wrong is not None:
            raise ValueError(f"'{wrong[:60]}': a name has 1 to 200 characters without spaces, commas, quotes or any of = < > |")
        return value

    @field_validator("full", "lora")
    @classmethod
    def _check_training(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        decided = next((name for name in value if name in DECIDED), None)
        if decided is not None:
            raise ValueError(f"'{decided}' is the same for both trainings and stands in the experiment itself")
        try:
            checked = FinetuneSpec(dataset="checked", method=info.field_name, **value)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(map(str, problem["loc"]))
            raise ValueError(f"{place}: {problem['msg']}".removeprefix(": ").replace("Value error, ", "")) from error
        known = checked.model_dump(mode="json")
        return {name: known[name] for name in value}

    @model_validator(mode="after")
    def _check_that_fields_fit_together(self) -> ExperimentSpec:
        if self.test_select is not None and self.test is None:
            raise ValueError("test_select chooses rows of a test dataset, and none is named")
        try:
            check_precision(self.precision, (self.generation, *self.swept.values()))
        except ValueError as error:
            raise ValueError(
                f"{error}; of those that are compared, beams and sampling are there unless sweep says others"
            ) from error
        return self

    def training(self, method: Method) -> dict[str, Any]:
        """Return the fields of this method's finetune job that the user has set."""
        return self.full if method == "full" else self.lora

    @property
    def swept(self) -> dict[str, GenerationParameters]:
        """The generation parameters to compare by name: the user's own, or those of the notebook and beams."""
        if self.sweep is not None:
            return self.sweep
        tokens = self.generation.max_new_tokens
        lengths = [GenerationParameters(max_new_tokens=length) for length in (tokens, MEDIUM, SHORT)]
        sampled = [
            GenerationParameters(max_new_tokens=tokens, do_sample=True, temperature=temperature) for temperature in TEMPERATURES
        ]
        beams = GenerationParameters(max_new_tokens=tokens, num_beams=BEAMS)
        return {_name(parameters, tokens): parameters for parameters in (self.generation, *lengths, *sampled, beams)}


def _name(parameters: GenerationParameters, usual_tokens: int) -> str:
    """Return what such parameters are called where no user has named them."""
    how = "greedy" if parameters.num_beams == 1 else f"beams-{parameters.num_beams}"
    if parameters.do_sample:
        chosen = {"t": parameters.temperature, "p": parameters.top_p, "k": parameters.top_k, "seed": parameters.seed}
        usual = {"p": 1.0, "k": 0, "seed": 0}
        how = "-".join(["sampling", *(f"{name}{value:g}" for name, value in chosen.items() if value != usual.get(name))])
    return how if parameters.max_new_tokens == usual_tokens else f"{how}-{parameters.max_new_tokens}-tokens"
