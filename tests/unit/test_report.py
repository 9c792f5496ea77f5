"""The report of an experiment: whatever texts hold, and however little is known."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from gistmill.cli.steps import draw, list_causes, progress
from gistmill.report import Material, as_markdown
from gistmill.report.material import Tuning
from gistmill.report.repeat import command
from gistmill.specs import parse_experiment_spec
from gistmill.views import ExperimentView, JobView, MetricView, PromptView, StepView
from tests.support.comparisons import case, comparison

DATA = {"dataset": "ds_1", "test": "ds_2", "sample": 50, "one_shot": "[0]", "few_shot": "[0,1,2]", "model": "base@1"}


def step(number: int = 1, **fields: Any) -> StepView:
    """Return a step."""
    made = {"number": number, "name": f"step {number}", "job": f"job_{number}", "kind": "summarize", "state": "completed"}
    return StepView.model_validate(made | fields)


def experiment(**fields: Any) -> ExperimentView:
    """Return an experiment with two steps."""
    spec = parse_experiment_spec(DATA | fields.pop("spec", {}))
    made: dict[str, Any] = {
        "id": "job_9", "name": "notebook", "state": "completed", "model": "base@1", "dataset": "calls", "test": "tests",
        "dataset_digest": "d" * 64, "test_digest": "e" * 64, "spec": spec.model_dump(mode="json"), "steps": [step(1), step(2)],
        "comparisons": {"prompts": "job_1", "models": "job_2"},
    }  # fmt: skip
    return ExperimentView.model_validate(made | fields)


def material(**fields: Any) -> Material:
    """Return what a report of everything is made from."""
    compared = comparison()
    made: dict[str, Any] = {
        "experiment": experiment(),
        "comparisons": {"prompts": compared, "models": compared},
        "tunings": [
            Tuning(
                "full",
                JobView(id="job_3", kind="finetune", state="completed", dataset="calls", model="base@1", prompt="instruction",
                        produced="base-full@1", training={"trainable_parameters": 250, "total_parameters": 1000}),
                {"train": MetricView(cursor="m", kind="train", step=1200, epoch=3, loss=0.1234)},
            )
        ],
        "prompts": {"original": PromptView(name="none", version=1, digest="d", template="{dialogue}")},
        "example": case(),
        "cases": [case()],
        "worst": [case(delta=-0.25)],
        "best": [case(delta=0.5), case(delta=0.0, row=77)],
    }  # fmt: skip
    return Material(**(made | fields))


def test_report_holds_the_figures_of_its_comparisons_and_trainings() -> None:
    text = as_markdown(material())
    assert "| full | 42.16 [41.16, 43.16] | 33.84 [32.84, 34.84] | 1:02:05 |" in text
    assert "Absolute improvement in percentage points over original" in text
    assert "| full | base-full@1 | 250 (25.00%) | 1,000 | 1,200 | 3.00 | 0.1234 | - | 1:02:05 |" in text
    assert "Signature: " in text
    assert "not done yet" not in text


def test_dialogue_with_fences_and_control_characters_stays_inside_its_block() -> None:
    text = as_markdown(material(example=case(dialogue="Ann: ```\n# no heading\x1b[2J\n````")))
    assert "`````text\nAnn: ```\n# no heading\ufffd[2J\n````\n`````" in text


def test_only_cases_that_are_worse_or_better_are_called_so() -> None:
    text = as_markdown(material())
    assert "-25.00" in text
    assert "+50.00" in text
    assert "| 77 |" not in text


@pytest.mark.parametrize("state", ["waiting", "failed"])
def test_report_of_what_is_not_done_holds_no_figure(state: str) -> None:
    empty = comparison(state="waiting", measures=[], pairs=[], systems=[], counts={})
    steps = [step(1, state="failed", kind="finetune")]
    text = as_markdown(
        Material(experiment(state=state, steps=steps, error={"message": "no luck"}), {"prompts": empty, "models": empty})
    )
    assert text.count("This part is not done yet.") == 3
    assert f"The experiment is {state}" in text
    assert "no luck" in text
    assert "42.16" not in text


def test_command_holds_what_is_not_as_usual_and_nothing_else() -> None:
    asked = {
        "full": {"epochs": 2},
        "lora": {"targets": ["q", "v"]},
        "sweep": {"wide": {"num_beams": 8}},
        "labels": {"a": "b c"},
    }
    assert shlex.split(command(experiment(spec=asked)))[3:] == [
        *("--base", "base@1", "--data", "ds_1", "--test", "ds_2", "--sample", "50", "--one-shot", "[0]"),
        *("--few-shot", "[0,1,2]", "--sweep", "name=wide,num_beams=8", "--full", "epochs=2.0", "--lora", "targets=q+v"),
        *("--label", "a=b c"),
    ]
    assert command(experiment(spec={"sweep": {}})).endswith("--sweep none")


def test_steps_that_failed_with_another_are_not_the_ones_to_take_up() -> None:
    followed = step(2, state="failed", error={"code": "dependency_failed", "message": "…"})
    view = experiment(steps=[step(1, state="failed", error={"code": "training_failed"}), followed, step(3, state="cancelled")])
    assert [found.number for found in list_causes(view)] == [1, 3]


def test_steps_are_drawn_with_how_far_they_are() -> None:
    training = step(1, kind="finetune", done=3, total=None, produced="base-full@1")
    assert progress(training) == "3 steps, made base-full@1"
    assert progress(step(2, done=7, total=9, failed=1)) == "7 of 9 items, 1 failed"
    assert draw(experiment(steps=[training, step(2)])).row_count == 2
