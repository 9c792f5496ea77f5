"""Rows, batches, scores and weights of training, each on its own."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from safetensors import SafetensorError
from torch.optim import AdamW

from tests.support.models import random_t5
from workers.training.data import Collator, Example, micro_batches
from workers.training.failures import UnknownTargets
from workers.training.grouping import LengthGroupedBatches
from workers.training.plan import TrainingPlan
from workers.training.preparing import check_targets, count_parameters, prepare, restore_weights, trainable_weights
from workers.training.room import SPARE_BYTES, is_disk_full, needed_bytes
from workers.training.scoring import mean_rouge
from workers.training.timetable import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SMALL = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
FLAN_T5_BASE = {"vocab_size": 32_128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12}


def make_plan(**changes: Any) -> TrainingPlan:
    """Return a plan; its files are never opened here."""
    fields = {
        "base_dir": "/m",
        "method": "full",
        "learning_rate": 1e-3,
        "seed": 1,
        "train_file": "/t",
        "checkpoint_every": 10,
        "work_dir": "/w",
    }
    return TrainingPlan.model_validate(fields | changes)


def examples(lengths: list[tuple[int, int]]) -> list[Example]:
    """Return examples of so many input and target tokens, each of its own token."""
    return [
        Example(np.full(tokens, 5 + n, np.int32), np.full(target, 5 + n, np.int32))
        for n, (tokens, target) in enumerate(lengths)
    ]


def test_a_batch_is_padded_to_a_multiple_of_8_and_pads_are_masked() -> None:
    batch = Collator(pad=0)(examples([(3, 9), (17, 2)]))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 24)
    assert batch["labels"].shape == (2, 16)
    assert batch["input_ids"].sum(1).tolist() == [17 * 6, 3 * 5], "the longest comes first"
    assert batch["attention_mask"].sum(1).tolist() == [17, 3]
    assert (batch["labels"] == -100).sum(1).tolist() == [14, 7]


def test_the_parts_of_a_batch_are_cut_to_their_own_rows() -> None:
    batch = Collator(pad=0)(examples([(3, 9), (17, 2), (30, 1)]))
    parts = list(micro_batches(batch, 2))
    assert [tensors["input_ids"].shape for tensors, _ in parts] == [(2, 32), (1, 8)]
    assert [tensors["labels"].shape for tensors, _ in parts] == [(2, 8), (1, 16)]
    assert [share for _, share in parts] == [3 / 12, 9 / 12]


def test_how_a_batch_is_cut_changes_neither_its_loss_nor_its_gradient() -> None:
    torch.manual_seed(0)
    model = random_t5(**SMALL)
    batch = Collator(pad=0)(examples([(3, 9), (17, 2), (30, 1), (8, 5), (8, 8)]))

    def gradient(rows: int) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = torch.stack([model(**tensors).loss * share for tensors, share in micro_batches(batch, rows)]).sum()
        loss.backward()
        return loss.item(), model.shared.weight.grad.clone()

    loss, whole = gradient(5)
    for rows in (1, 2, 3):
        cut_loss, cut = gradient(rows)
        assert cut_loss == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)


def test_each_row_comes_once_per_epoch_among_rows_of_like_length() -> None:
    lengths = [(7 * n) % 101 for n in range(101)]
    batches = LengthGroupedBatches(lengths, batch_size=4, seed=3)
    drawn = list(batches)
    assert len(drawn) == len(batches) == 26
    assert sorted(row for batch in drawn for row in batch) == list(range(101))
    spread = sum(max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in drawn) / len(drawn)
    assert spread < 20, "a quarter of the rows is a pool, and a batch a sixth of it"
    assert 100 in [lengths[row] for row in drawn[0]]


def test_the_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = LengthGroupedBatches(range(40), batch_size=4, seed=seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(1, 0) == order(1, 0)
    assert len({str(order(*where)) for where in ((1, 0), (1, 1), (2, 0), (2, 1))}) == 4


@pytest.mark.parametrize(
    ("changes", "steps"), [({}, (7, 7)), ({"epochs": 2.5}, (7, 18)), ({"epochs": 0.01}, (7, 1)), ({"max_steps": 30}, (7, 30))]
)
def test_the_schedule_counts_optimizer_steps(changes: dict[str, Any], steps: tuple[int, int]) -> None:
    assert Schedule.of(make_plan(**changes), rows=50, effective_batch=8) == Schedule(*steps)


def test_rouge_is_that_of_rouge_score_with_stemming_and_the_best_reference() -> None:
    references = [["The cats were sitting on a mat.", "A dog"], ["nothing at all"]]
    texts = ["cat sits on the mat", "something else"]
    found = mean_rouge(texts, references)
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    best = scorer.score(references[0][0], texts[0])
    assert found is not None
    assert found["rouge1"] == pytest.approx(best["rouge1"].fmeasure / 2)
    assert found["rougeL"] == pytest.approx(best["rougeL"].fmeasure / 2)
    assert found["rouge1"] > 0.3, "without stemming cats are no cat"


def test_a_stop_ends_the_scoring() -> None:
    assert mean_rouge(["a"], [["a"]], lambda: True) is None


def test_flan_t5_base_has_the_parameters_that_the_notebook_counts() -> None:
    """On the meta device: shapes without numbers. Its output layer is its own, which transformers 5 ties when it is built."""
    with torch.device("meta"):
        model = untied(random_t5(**FLAN_T5_BASE))
        assert count_parameters(prepare(model, make_plan())) == (247_577_856, 247_577_856)
        assert count_parameters(prepare(model, make_plan(method="lora"))) == (3_538_944, 251_116_800)


def untied(model: Any) -> Any:
    """Give the model an output layer of its own, as FLAN-T5's checkpoints have it."""
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def test_shared_weights_are_counted_and_kept_once() -> None:
    tied = random_t5(**SMALL)
    assert count_parameters(untied(random_t5(**SMALL)))[0] - count_parameters(tied)[0] == 50 * 16
    assert "lm_head.weight" not in trainable_weights(tied)


def test_unknown_targets_are_named_with_those_that_exist() -> None:
    model = random_t5(**SMALL)
    check_targets(model, ("q", "DenseReluDense.wo", "lm_head"))
    with pytest.raises(UnknownTargets, match=r"named query, w; choose from .*\bk, lm_head, o, q,"):
        check_targets(model, ("q", "query", "w"))


def test_the_seed_decides_a_fresh_adapter_and_the_base_stays_frozen() -> None:
    def adapter(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return trainable_weights(prepare(random_t5(**SMALL), make_plan(method="lora", seed=seed, rank=2)))

    first, again, other = adapter(1), adapter(1), adapter(2)
    assert all("lora_" in name for name in first)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_restored_weights_are_written_in_place() -> None:
    model = random_t5(**SMALL)
    optimizer = AdamW(model.parameters())
    kept = {name: weight + 1 for name, weight in trainable_weights(model).items()}
    restore_weights(model, kept)
    assert all(torch.equal(weight, kept[name]) for name, weight in trainable_weights(model).items())
    assert optimizer.param_groups[0]["params"][0] is next(iter(model.parameters()))


def test_the_room_for_a_run_grows_with_what_it_keeps() -> None:
    model = torch.nn.Linear(1000, 1000, bias=False)
    weights = 4_000_000
    assert needed_bytes(model, make_plan(kept_checkpoints=1)) == SPARE_BYTES + 2 * 3 * weights + weights
    more = needed_bytes(model, make_plan(kept_checkpoints=2, early_stop_patience=1, validation_file="/v"))
    assert more == SPARE_BYTES + 3 * 3 * weights + 4 * weights + weights


@pytest.mark.parametrize(
    ("error", "free_bytes", "is_full"),
    [
        (OSError(errno.ENOSPC, "no room"), 10**12, True),
        (OSError(errno.EACCES, "not allowed"), 0, False),
        (SafetensorError("I/O error"), 1000, True),
        (RuntimeError("file write failed"), 1000, True),
        (RuntimeError("file write failed"), 10**12, False),
    ],
    ids=str,
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, free_bytes: int, is_full: bool) -> None:
    assert is_disk_full(error, free_bytes=free_bytes) is is_full
