"""Training runs inside this process, on a random T5 with dropout: what they report, resume from and leave."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from peft import PeftModel
from safetensors.torch import load_file

from models_store.importing import import_directory, is_allowed
from models_store.manifest import sha256_of
from models_store.store import Store
from tests.support.models import dialogues, make_tiny_t5
from workers.engine.checkpoint import load_model
from workers.training.checkpoint import find_newest, list_checkpoints
from workers.training.configuration import configuration_digest
from workers.training.data import encode, read_rows
from workers.training.events import (
    Checkpointed,
    Ending,
    Evaluated,
    Event,
    Failed,
    Finished,
    Halted,
    Started,
    Stepped,
)
from workers.training.plan import TrainingPlan
from workers.training.run import PreparedRun, carry_out, prepare_run, run
from workers.training.scoring import Evaluator

# peft asks transformers for a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RESULT_WEIGHTS = {"full": "model.safetensors", "lora": "adapter_model.safetensors"}
ROWS = 42
Whole = tuple[TrainingPlan, list[Event]]


def make_inputs(directory: Path) -> Path:
    """Write base/ with dropout, train.jsonl of 42 rows and validation.jsonl of 6, and return the directory."""
    base = make_tiny_t5(directory / "base")
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dropout_rate": 0.1}))
    write_rows(directory / "train.jsonl", range(ROWS))
    write_rows(directory / "validation.jsonl", range(ROWS, ROWS + 6))
    return directory


def write_rows(path: Path, numbers: range) -> Path:
    """Write rows with one or two references each."""
    prompts, targets = dialogues(ROWS + 6, seed=1), dialogues(2 * (ROWS + 6), seed=2, most_words=8)
    rows = [{"prompt": prompts[n], "references": targets[2 * n : 2 * n + 1 + n % 2]} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_plan(inputs: Path, work_dir: Path, method: str = "full", **changes: Any) -> TrainingPlan:
    """Return a plan of 22 steps in two epochs, with a checkpoint after every second one."""
    fields: dict[str, Any] = {
        "base_dir": inputs / "base",
        "method": method,
        "rank": 4,
        "alpha": 8,
        "dropout": 0.1,
        "learning_rate": 3e-3 if method == "full" else 3e-2,
        "batch_size": 4,
        "epochs": 2,
        "seed": 5,
        "max_target_tokens": 12,
        "train_file": inputs / "train.jsonl",
        "validation_file": inputs / "validation.jsonl",
        "checkpoint_every": 2,
        "threads": 1,
        "work_dir": work_dir,
    }
    return TrainingPlan.model_validate(fields | changes)


def curve(events: list[Event]) -> list[tuple[Any, ...]]:
    """Return what has to be equal of two equal runs: everything but speed and memory."""
    points = []
    for event in events:
        if isinstance(event, Stepped):
            points.append((event.step, event.epoch, event.loss, event.learning_rate, event.gradient_norm))
        elif isinstance(event, Evaluated):
            points.append((event.step, event.epoch, event.loss, event.rouge1, event.rouge2, event.rougeL, event.rougeLsum))
    return points


def result_digest(plan: TrainingPlan) -> str:
    """Return the sha256 of the weights that a run left."""
    return sha256_of(plan.work_dir / "result" / RESULT_WEIGHTS[plan.method])


def train(plan: TrainingPlan, *, stop_when: Callable[[Event], bool] = lambda event: False) -> tuple[list[Event], Ending]:
    """Carry a plan out; once an event is seen for which `stop_when` is true, the run is asked to stop."""
    events: list[Event] = []
    ending = run(plan, events.append, lambda: any(map(stop_when, events)))
    return events, ending


def train_prepared(plan: TrainingPlan, prepare: Callable[[PreparedRun, Event | None], None]) -> tuple[list[Event], Ending]:
    """Carry a plan out with a hand on the model: `prepare` is called before the start and at every event."""
    events: list[Event] = []
    held: list[PreparedRun] = []

    def send(event: Event) -> None:
        events.append(event)
        prepare(held[0], event)

    held.append(prepare_run(plan, send, lambda: False))
    prepare(held[0], None)
    return events, carry_out(held[0], plan, send)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base and the rows of every run here."""
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", params=["full", "lora"])
def whole(request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run of each method that nothing has interrupted."""
    plan = make_plan(inputs, tmp_path_factory.mktemp("whole"), request.param)
    events, ending = train(plan)
    assert isinstance(ending, Finished)
    return plan, events


def test_every_step_and_the_evaluation_of_every_epoch_are_reported_once(whole: Whole) -> None:
    _, events = whole
    started = events[0]
    assert isinstance(started, Started)
    assert (started.total_steps, started.resumed_step) == (22, 0)
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(1, 23))
    assert [event.step for event in events if isinstance(event, Evaluated)] == [11, 22]
    assert [event.step for event in events if isinstance(event, Checkpointed)] == list(range(2, 23, 2))


def test_only_the_newest_checkpoints_are_kept(whole: Whole) -> None:
    plan, _ = whole
    names = sorted(path.name for path in list_checkpoints(plan.work_dir / "checkpoints"))
    assert names == ["checkpoint-000000020", "checkpoint-000000022"]
    assert not list(plan.work_dir.rglob(".writing-*"))


def test_training_lowers_the_loss(whole: Whole) -> None:
    _, events = whole
    losses = [event.loss for event in events if isinstance(event, Stepped)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_full_result_is_a_whole_model_with_its_own_output_layer(inputs: Path, tmp_path: Path) -> None:
    plan = make_plan(inputs, tmp_path)
    events, ending = train(plan)
    assert isinstance(ending, Finished)
    result, base = Path(ending.directory), inputs / "base"
    assert all(is_allowed(path.name) for path in result.iterdir())
    assert import_directory(Store(tmp_path / "store"), result, label="result").dtype == "float32"
    assert json.loads((result / "config.json").read_text())["tie_word_embeddings"] is False
    trained, before = load_file(result / "model.safetensors"), load_file(base / "model.safetensors")
    assert trained.keys() == before.keys()
    assert not torch.equal(trained["lm_head.weight"], before["lm_head.weight"])
    assert not torch.equal(trained["lm_head.weight"], trained["shared.weight"])
    last = [event for event in events if isinstance(event, Evaluated)][-1]
    assert loss_of(load_model(result, device="cpu", precision="float32"), plan) == pytest.approx(last.loss, rel=1e-6)


# peft takes the output layer of FLAN-T5, which is its own, for one that merging has untied.
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning")
def test_a_lora_result_is_an_adapter_that_fits_its_base_merged_and_unmerged(inputs: Path, tmp_path: Path) -> None:
    plan = make_plan(inputs, tmp_path, "lora")
    events, ending = train(plan)
    assert isinstance(ending, Finished)
    result = Path(ending.directory)
    assert sorted(path.name for path in result.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert str(inputs) not in (result / "adapter_config.json").read_text()
    last = [event for event in events if isinstance(event, Evaluated)][-1]
    loaded = load_model(inputs / "base", device="cpu", precision="float32")
    adapted = PeftModel.from_pretrained(loaded.model, result)
    assert loss_of(loaded, plan, adapted) == pytest.approx(last.loss, rel=1e-6)
    assert loss_of(loaded, plan, adapted.merge_and_unload()) == pytest.approx(last.loss, rel=1e-4)


def loss_of(loaded: Any, plan: TrainingPlan, model: Any = None) -> float:
    """Return the loss of a model on the validation rows."""
    assert plan.validation_file is not None
    rows = read_rows(plan.validation_file)
    examples = encode(rows, loaded, max_input_tokens=2048, max_target_tokens=12)
    scores = Evaluator(loaded, rows=rows, examples=examples, most_input_tokens=2048, most_new_tokens=1).evaluate(
        loaded.model if model is None else model, lambda: False
    )
    assert scores is not None
    return scores.loss


def test_a_run_that_was_stopped_and_resumed_equals_the_whole(whole: Whole, inputs: Path, tmp_path: Path) -> None:
    plan, events = whole
    # How often checkpoints are written is no part of what a run computes.
    first = make_plan(inputs, tmp_path / "1", plan.method, checkpoint_every=100)
    _, halted = train(first, stop_when=lambda event: isinstance(event, Stepped) and event.step == 14)
    assert isinstance(halted, Halted)
    assert halted.step == 15
    second = make_plan(inputs, tmp_path / "2", plan.method, resume_dirs=(first.work_dir,))
    resumed, ending = train(second)
    assert isinstance(ending, Finished)
    assert isinstance(resumed[0], Started)
    assert resumed[0].resumed_step == 15
    assert curve(resumed) == curve(events)
    assert result_digest(second) == result_digest(plan)


def test_a_stop_during_an_evaluation_leaves_it_to_the_resumed_run(whole: Whole, inputs: Path, tmp_path: Path) -> None:
    plan, events = whole
    first = make_plan(inputs, tmp_path / "1", plan.method)
    # The step is reported before its evaluation begins.
    heard, halted = train(first, stop_when=lambda event: isinstance(event, Stepped) and event.step == 11)
    assert isinstance(halted, Halted)
    assert halted.step == 11
    assert not any(isinstance(event, Evaluated) for event in heard)
    second = make_plan(inputs, tmp_path / "2", plan.method, resume_dirs=(first.work_dir,))
    resumed, _ = train(second)
    assert curve(resumed) == curve(events)
    assert result_digest(second) == result_digest(plan)


def test_a_stop_during_the_last_evaluation_leaves_only_that(inputs: Path, tmp_path: Path) -> None:
    """Also in the middle of an epoch, whose next batch is at hand."""
    whole = make_plan(inputs, tmp_path / "whole", "lora", max_steps=5)
    events, _ = train(whole)
    first = make_plan(inputs, tmp_path / "1", "lora", max_steps=5)
    _, halted = train(first, stop_when=lambda event: isinstance(event, Stepped) and event.step == 5)
    assert isinstance(halted, Halted)
    second = make_plan(inputs, tmp_path / "2", "lora", max_steps=5, resume_dirs=(first.work_dir,))
    resumed, ending = train(second)
    assert isinstance(ending, Finished)
    assert curve(resumed) == curve(events)
    assert result_digest(second) == result_digest(whole)


@pytest.mark.parametrize("whole", ["lora"], indirect=True)
def test_a_run_whose_newest_checkpoint_is_cut_short_equals_the_whole(whole: Whole, inputs: Path, tmp_path: Path) -> None:
    plan, events = whole
    first = make_plan(inputs, tmp_path / "1", plan.method)
    train(first, stop_when=lambda event: isinstance(event, Stepped) and event.step == 7)
    hurt(first.work_dir / "checkpoints/checkpoint-000000008", "cut")
    second = make_plan(inputs, tmp_path / "2", plan.method, resume_dirs=(first.work_dir,))
    resumed, _ = train(second)
    assert isinstance(resumed[0], Started)
    assert resumed[0].resumed_step == 6
    assert curve(resumed) == curve(events)
    assert result_digest(second) == result_digest(plan)


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "unlisted", "foreign"])
def test_a_damaged_checkpoint_is_logged_and_passed_over_for_the_one_before(damage: str, whole: Whole, tmp_path: Path) -> None:
    plan, _ = whole
    copied = shutil.copytree(plan.work_dir, tmp_path / "copied")
    configuration = configuration_digest(plan, effective_batch=4)
    found = find_newest([copied], configuration=configuration)
    assert found is not None
    assert found.manifest.step == 22
    hurt(found.directory, damage)
    with structlog.testing.capture_logs() as logs:
        older = find_newest([copied], configuration=configuration)
    assert older is not None
    assert older.manifest.step == 20
    assert [(entry["event"], entry["directory"]) for entry in logs] == [("checkpoint_skipped", str(found.directory))]


def test_of_equal_checkpoints_that_of_the_newest_epoch_is_taken(whole: Whole, tmp_path: Path) -> None:
    plan, _ = whole
    copied = shutil.copytree(plan.work_dir, tmp_path / "copied")
    found = find_newest([copied, plan.work_dir], configuration=configuration_digest(plan, effective_batch=4))
    assert found is not None
    assert found.directory.is_relative_to(copied)


def hurt(checkpoint: Path, damage: str) -> None:
    """Damage a checkpoint in one of the ways that disks and people know."""
    state, manifest = checkpoint / "state.pt", checkpoint / "manifest.json"
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:-100])
    elif damage == "changed":
        data = bytearray((checkpoint / "weights.safetensors").read_bytes())
        data[-1] ^= 1
        (checkpoint / "weights.safetensors").write_bytes(data)
    elif damage == "missing":
        state.unlink()
    elif damage == "unlisted":
        manifest.write_text(manifest.read_text()[:50])
    else:
        fields = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(fields | {"configuration": "0" * 64}))


def test_a_checkpoint_of_another_configuration_is_left_alone(inputs: Path, tmp_path: Path) -> None:
    first = make_plan(inputs, tmp_path / "1")
    train(first, stop_when=lambda event: isinstance(event, Stepped))
    other = make_plan(inputs, tmp_path / "2", learning_rate=1e-3, resume_dirs=(first.work_dir,), max_steps=1)
    events, _ = train(other)
    assert isinstance(events[0], Started)
    assert events[0].resumed_step == 0
    assert list_checkpoints(first.work_dir / "checkpoints")


def test_the_configuration_covers_numbers_and_content_but_no_places(inputs: Path, tmp_path: Path) -> None:
    plan = make_plan(inputs, tmp_path)

    def digest(**changes: Any) -> str:
        return configuration_digest(plan.model_copy(update=changes), effective_batch=4)

    copied = write_rows(tmp_path / "copied.jsonl", range(ROWS))
    assert digest(train_file=copied, work_dir=tmp_path / "x", checkpoint_every=9, threads=2) == digest()
    other = write_rows(tmp_path / "other.jsonl", range(ROWS - 1))
    changed = [digest(train_file=other), digest(seed=6), digest(max_steps=5), digest(validation_file=None)]
    assert len({digest(), *changed}) == 5


def test_early_stopping_gives_the_best_weights_also_after_a_resume(inputs: Path, tmp_path: Path) -> None:
    early = {"evaluate_every": 2, "early_stop_patience": 2, "early_stop_metric": "loss", "learning_rate": 0.5, "epochs": 4}
    plan = make_plan(inputs, tmp_path / "whole", **early)
    events, ending = train(plan)
    assert isinstance(ending, Finished)
    assert ending.step < 44
    scored = [event for event in events if isinstance(event, Evaluated)]
    best = min(scored, key=lambda event: event.loss or 0.0)
    assert [event.step for event in scored][-1] == best.step + 4
    loaded = load_model(Path(ending.directory), device="cpu", precision="float32")
    assert loss_of(loaded, plan) == pytest.approx(best.loss, rel=1e-5)

    first = make_plan(inputs, tmp_path / "1", **early)
    train(first, stop_when=lambda event: isinstance(event, Stepped) and event.step == best.step + 2)
    second = make_plan(inputs, tmp_path / "2", **early, resume_dirs=(first.work_dir,))
    resumed, _ = train(second)
    assert curve(resumed) == curve(events)
    assert result_digest(second) == result_digest(plan)


def test_a_lack_of_memory_halves_the_batch_and_changes_no_step(inputs: Path, tmp_path: Path) -> None:
    """Without dropout, for the failed attempt has drawn from its random numbers; it comes after one part of the step."""

    def refuse_the_second(module: Any, arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")

    def prepare(prepared: PreparedRun, event: Event | None) -> None:
        if event is None:
            prepared.model.register_forward_pre_hook(refuse_the_second)

    calls: list[int] = []
    base = make_tiny_t5(tmp_path / "base")
    changes = {"base_dir": base, "max_steps": 4, "validation_file": None, "gradient_accumulation": 2}
    roomy, _ = train(make_plan(inputs, tmp_path / "1", **changes))
    plan = make_plan(inputs, tmp_path / "2", **changes)
    cramped, ending = train_prepared(plan, prepare)
    assert isinstance(ending, Finished)
    assert np.array(curve(cramped)) == pytest.approx(np.array(curve(roomy)), rel=1e-3)
    manifest = json.loads((plan.work_dir / "checkpoints/checkpoint-000000004/manifest.json").read_text())
    assert manifest["micro_batch"] == 2
    resumed, _ = train(plan)
    assert isinstance(resumed[0], Started)
    assert (resumed[0].batch_size, resumed[0].gradient_accumulation) == (2, 4)


def test_no_memory_for_one_row_fails_with_advice(inputs: Path, tmp_path: Path) -> None:
    plan = make_plan(inputs, tmp_path, validation_file=None)
    with pytest.raises(Exception, match="batch of one row") as caught:
        train_prepared(plan, room_for(0))
    assert getattr(caught.value, "code", "") == "out_of_memory"


def test_a_lack_of_memory_halves_what_an_evaluation_runs_at_once(inputs: Path) -> None:
    def refuse(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        asked.append(len(named.get("input_ids", named.get("decoder_input_ids", []))))
        if asked[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")

    asked: list[int] = []
    loaded = load_model(inputs / "base", device="cpu", precision="float32")
    rows = read_rows(inputs / "validation.jsonl")
    examples = encode(rows, loaded, max_input_tokens=2048, max_target_tokens=12)
    evaluator = Evaluator(loaded, rows=rows, examples=examples, most_input_tokens=2048, most_new_tokens=12)
    scores = evaluator.evaluate(loaded.model, lambda: False)
    assert scores is not None
    loaded.model.register_forward_pre_hook(refuse, with_kwargs=True)
    cramped = evaluator.evaluate(loaded.model, lambda: False)
    assert max(asked) > 2
    assert cramped is not None
    assert cramped.loss == pytest.approx(scores.loss, rel=1e-5)
    assert cramped.rouge == scores.rouge


def room_for(rows: int) -> Callable[[PreparedRun, Event | None], None]:
    """Make the model run out of memory, as torch reports it, when it is given more rows at once."""

    def refuse(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        if module.training and len(named["input_ids"]) > rows:
            raise torch.OutOfMemoryError("out of memory")

    def prepare(prepared: PreparedRun, event: Event | None) -> None:
        if event is None:
            prepared.model.register_forward_pre_hook(refuse, with_kwargs=True)

    return prepare


def test_a_loss_that_is_no_number_stops_and_names_step_rate_and_checkpoint(inputs: Path, tmp_path: Path) -> None:
    def poison(prepared: PreparedRun, event: Event | None) -> None:
        if isinstance(event, Checkpointed) and event.step == 4:
            with torch.no_grad():
                prepared.model.lm_head.weight[0, 0] = float("nan")

    plan = make_plan(inputs, tmp_path)
    with pytest.raises(Exception, match="at step 5") as caught:
        train_prepared(plan, poison)
    assert getattr(caught.value, "code", "") == "loss_not_finite"
    assert "learning rate 0.00245455" in str(caught.value)
    assert "checkpoint-000000004" in str(caught.value)
    events, ending = train(plan)
    assert isinstance(events[0], Started)
    assert events[0].resumed_step == 4
    assert isinstance(ending, Finished)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"method": "lora", "targets": ("q", "nowhere")}, "unknown_targets", ["nowhere", "k, lm_head, o", "wi_0"]),
        ({"kept_checkpoints": 10**9}, "disk_full", ["bytes of disk", "are free"]),
        ({"base_dir": Path("/nowhere")}, "model_unreadable", ["nowhere"]),
    ],
)
def test_what_cannot_be_trained_fails_before_the_first_step(
    changes: dict[str, Any], code: str, words: list[str], inputs: Path, tmp_path: Path
) -> None:
    events, ending = train(make_plan(inputs, tmp_path, **changes))
    assert isinstance(ending, Failed)
    assert ending.code == code
    assert all(word in ending.message for word in words), ending.message
    assert events == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ('{"prompt": "a", "references": ["b"]}\n{"prompt": "a", "references": []}\n', "Line 2 of"),
        ("[1]\n", "Line 1 of"),
    ],
)
def test_rows_without_references_fail_with_their_line(text: str, words: str, inputs: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(text)
    _, ending = train(make_plan(inputs, tmp_path, train_file=rows))
    assert isinstance(ending, Failed)
    assert ending.code == "invalid_rows"
    assert words in ending.message


def test_fewer_rows_than_a_batch_are_enough(inputs: Path, tmp_path: Path) -> None:
    plan = make_plan(inputs, tmp_path, train_file=write_rows(tmp_path / "few.jsonl", range(3)), epochs=1, validation_file=None)
    events, ending = train(plan)
    assert isinstance(ending, Finished)
    assert [event.step for event in events if isinstance(event, Stepped)] == [1]


@pytest.mark.parametrize("whole", ["lora"], indirect=True)
def test_workers_of_the_data_loader_change_no_number(whole: Whole, inputs: Path, tmp_path: Path) -> None:
    plan, events = whole
    other = make_plan(inputs, tmp_path, plan.method, dataloader_workers=2)
    again, _ = train(other)
    assert curve(again) == curve(events)
    assert result_digest(other) == result_digest(plan)


def test_gradient_checkpointing_changes_last_digits_only(whole: Whole, inputs: Path, tmp_path: Path) -> None:
    plan, events = whole
    again, _ = train(make_plan(inputs, tmp_path, plan.method, gradient_checkpointing=True, validation_file=None))
    losses = [event.loss for event in events if isinstance(event, Stepped)]
    assert [event.loss for event in again if isinstance(event, Stepped)] == pytest.approx(losses, rel=0.01)


def test_each_epoch_draws_its_own_batches(inputs: Path, tmp_path: Path) -> None:
    """With neither dropout nor a rate to speak of, equal batches would have equal losses."""
    base = make_tiny_t5(tmp_path / "base")
    events, _ = train(make_plan(inputs, tmp_path / "run", base_dir=base, learning_rate=1e-12, validation_file=None))
    losses = [event.loss for event in events if isinstance(event, Stepped)]
    assert losses[:11] != pytest.approx(losses[11:], rel=1e-4)
    assert sum(losses[:11]) == pytest.approx(sum(losses[11:]), rel=0.1)


logging.getLogger("absl").setLevel(logging.ERROR)
